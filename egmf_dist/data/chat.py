"""How an instruct model is spoken to: what its tokenizer's chat template puts around a prompt and behind an answer."""

from __future__ import annotations

import datetime
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from egmf_dist.errors import EgmfError

_PROMPT, _ANSWER = "theuserswords", "theassistantswords"
_DAY = datetime.date(2024, 7, 26)
"""Llama 3's templates show the day, by default this one or today; a prompt must not depend on when it is made."""


class Chat(NamedTuple):
    """What stands around a prompt, as token ids."""

    before: tuple[int, ...]
    """From the text's start to the user's words."""
    after: tuple[int, ...]
    """From the user's words to the answer."""
    opening: str
    """The end of what stands before the answer, behind its last special token."""
    end: int
    """What ends an answer."""


def read_chat(tokenizer: PreTrainedTokenizerBase, vocabulary: int, eos: int) -> Chat | None:
    """The tokenizer's chat template as it frames one question and its answer; None where it has none.

    A model that can think before it answers is asked not to.

    Args:
        tokenizer: the backbone's.
        vocabulary: rows of its embedding.
        eos: ends an answer where the template says nothing else.

    Raises:
        EgmfError: the template fails, or does not show the words as they are.
    """
    if not tokenizer.chat_template:
        return None
    question = [{"role": "user", "content": _PROMPT}]
    answered = [*question, {"role": "assistant", "content": _ANSWER}]
    before, after = _around(_rendered(tokenizer, question, True), _PROMPT)
    _, behind = _around(_rendered(tokenizer, answered, False), _ANSWER)
    special = _special(tokenizer)
    ends = (i for i in _ids(tokenizer, behind) if i in special)
    chat = Chat(
        before=tuple(_ids(tokenizer, before)),
        after=tuple(_ids(tokenizer, after)),
        opening=_opening(after, [special[i] for i in special]),
        end=next(ends, eos),
    )
    highest = max((*chat.before, *chat.after, chat.end))
    if highest >= vocabulary:
        raise EgmfError(
            f"{_WHERE} has the token {tokenizer.convert_ids_to_tokens(highest)!r} (number {highest}), the backbone's "
            f"embedding {vocabulary} rows; {_ELSE}"
        )
    return chat


_WHERE = "prompt.chat_template: the tokenizer's chat template"
_ELSE = "set prompt.chat_template off, or mend the template"


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], asks: bool) -> str:
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=asks,
            enable_thinking=False,
            date_string=_DAY.strftime("%d %b %Y"),
            strftime_now=_DAY.strftime,
        )
    except Exception as error:  # a template is a program of its own, and raises what it likes
        raise EgmfError(f"{_WHERE} fails: {str(error).splitlines()[0] if str(error) else error!r}; {_ELSE}") from error
    return str(text)


def _around(text: str, words: str) -> tuple[str, str]:
    parts = text.split(words)
    if len(parts) != 2:
        raise EgmfError(f"{_WHERE} shows a message's words {len(parts) - 1} times; once is needed; {_ELSE}")
    return parts[0], parts[1]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Tokens that are no text, by number: those the tokenizer calls special, and marks of turns that it added."""
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def _opening(text: str, marks: list[str]) -> str:
    return text[max((text.rfind(mark) + len(mark) for mark in marks if mark in text), default=0) :]
