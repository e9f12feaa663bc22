"""The words the LLM reads and the words it answers with. Training, evaluation, prediction and the tiny backbone's
pre-training all render through this one module.

The prompt is the dialogue's preceding turns, the utterance, and the task's question::

    Chandler: That I did.
    The Interviewer: So let's talk a little bit about your duties.
    [Chandler] My duties?  All right.
    Which emotion ...?

followed by the answer and an end-of-sequence token. The utterance stands in brackets so that it is told from the
context without words of either language. Text absent means an empty utterance here and in the experts' text stream.
"""

from __future__ import annotations

from typing import NamedTuple

from egmf_shards import CLASSIFICATION, Sample, Task

# Written Chinese has no space between words, so an answer there follows the colon directly; elsewhere a space belongs
# to the answer: byte-level tokenizers hold " joy" as one token, and the prompt must not end in a lone space.
_SPACE = {"zh": ""}
_ANSWER_MARK = {"en": "Answer:", "zh": "答："}


class Piece(NamedTuple):
    """A part of a prompt; the pieces' texts end to end are the prompt."""

    kind: str
    """``turn`` (a preceding turn with its line break), ``speaker``, ``text`` (the utterance) or ``question``."""
    text: str
    spoken: int
    """The last ``spoken`` characters before a closing line break are what was said; the rest is the speaker's name."""


def shown_turns(sample: Sample, most: int, stepped: bool) -> int:
    """How many preceding turns of a sample are shown, of at most ``most``; see the setting ``prompt.context``."""
    before = max(len(sample.context), sample.turn)
    if stepped and before > most > 0:
        step = most - most // 2
        return min(most // 2 + 1 + (before - most - 1) % step, len(sample.context))
    return min(most, len(sample.context))


def prompt_pieces(
    sample: Sample, task: Task, context_turns: int, stepped: bool = False, marked: bool = True
) -> list[Piece]:
    """The prompt of one sample, up to where the answer begins, in parts that may be cut one by one.

    Args:
        sample: the utterance; its language chooses the question's.
        task: the sample's task.
        context_turns: how many of the preceding turns to show at most, the most recent ones.
        stepped: see the setting ``prompt.context``.
        marked: the words that an answer follows stand behind the question; a chat template has its own.
    """
    pieces = []
    turns = shown_turns(sample, context_turns, stepped)
    for turn in sample.context[-turns:] if turns else ():
        line = f"{turn.speaker}: {turn.text}" if turn.speaker else turn.text
        pieces.append(Piece("turn", line + "\n", len(turn.text)))
    mark = f" {answer_mark(sample.language)}" if marked else ""
    return [
        *pieces,
        Piece("speaker", f"[{sample.speaker}] ", 0),
        Piece("text", sample.text, len(sample.text)),
        Piece("question", f"\n{task.questions[sample.language]}{mark}", 0),
    ]


def render_prompt(sample: Sample, task: Task, context_turns: int) -> str:
    """The whole prompt of one sample as text; see :func:`prompt_pieces`."""
    return "".join(piece.text for piece in prompt_pieces(sample, task, context_turns))


def answer_mark(language: str) -> str:
    """The words between question and answer."""
    return _ANSWER_MARK.get(language, _ANSWER_MARK["en"])


def render_answer(task: Task, language: str, index: int, marked: bool = True) -> str:
    """The text of legal answer number ``index`` as it follows the prompt; it begins a turn where that is not
    ``marked``."""
    return (_SPACE.get(language, " ") if marked else "") + task.legal_answers(language)[index]


def answer_index(sample: Sample, task: Task) -> int:
    """Which legal answer is the sample's target: its label, or the legal number nearest to its value."""
    if task.kind == CLASSIFICATION:
        assert sample.label is not None
        return task.labels.index(sample.label)
    assert sample.value is not None
    return task.nearest(sample.value)
