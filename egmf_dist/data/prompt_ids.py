"""Prompts as token ids within a budget: what is cut, is cut on ids.

Rules, in this order: an utterance or preceding turn longer than ``max_text_tokens`` keeps its end; while the prompt is
longer than its limit the oldest turn goes; then the utterance keeps its end; then the speaker's name goes. Question and
answer are never cut. A character (code point)
of several tokens goes whole. Nothing is decoded and encoded again,
because that may change the text and the number of its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from egmf_dist.data.chat import Chat
from egmf_dist.data.prompts import Piece
from egmf_dist.errors import EgmfError


class Limits(NamedTuple):
    """What a model can read."""

    vocabulary: int
    """Rows of the backbone's embedding."""
    eos: int
    """What ends an answer."""
    columns: int | None
    """The most tokens of prompt and answer together; None where nothing limits them."""
    start: tuple[int, ...]
    """Ids before any text."""
    pseudo_tokens: int
    """K."""
    stream_tokens: int
    """The most tokens of a feature stream."""
    chat: Chat | None = None
    """What stands around a prompt of an instruct model; it has its own start and end of an answer."""

    def spoken_as(self, chat: Chat | None) -> Limits:
        """The same for prompts inside ``chat``."""
        if chat is None:
            return self
        more = len(chat.before) + len(chat.after) - len(self.start)
        columns = None if self.columns is None else self.columns - more
        return self._replace(start=chat.before, eos=chat.end, columns=columns, chat=chat)

    @property
    def after(self) -> tuple[int, ...]:
        """Ids between a prompt and its answer."""
        return () if self.chat is None else self.chat.after


class PromptIds(NamedTuple):
    """One prompt."""

    ids: list[int]
    cut: int
    """How many tokens were left out."""
    before: int
    """How many of ``ids`` stand before the pseudo tokens."""


class _Encoded(NamedTuple):
    """A text's tokens: id, the piece each ends in, and the characters it covers (of the whole text).

    A word's token may hold the space before it, which belongs to the piece before; the token is the word's.
    """

    ids: np.ndarray
    piece: np.ndarray
    begin: np.ndarray
    end: np.ndarray


class PromptEncoder:
    """Texts and prompts to token ids. Special tokens that a text spells out are plain text.

    Args:
        tokenizer: the backbone's.
        vocabulary: rows of its embedding; an id beyond them is refused.
        max_text_tokens: the most tokens of an utterance or a preceding turn.
        limit: the most tokens of a prompt.
        apart: the turns and what follows them are tokenized apart, because pseudo tokens stand between them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: int,
        max_text_tokens: int,
        limit: int,
        apart: bool = False,
    ) -> None:
        self.tokenizer, self.vocabulary = tokenizer, vocabulary
        self.max_text_tokens, self.limit, self.apart = max_text_tokens, limit, apart

    def plain(self, text: str) -> list[int]:
        """All ids of a text, nothing cut.

        Raises:
            EgmfError: the text holds a token that the backbone's embedding has no row for.
        """
        return self._checked(self._tokenize([text])["input_ids"][0], text)

    def following(self, before: str, text: str) -> list[int]:
        """All ids of ``text`` as it follows ``before``.

        A tokenizer that marks the beginning of every text (SentencePiece's "▁") would put its mark before a text that
        stands alone. Where the two texts' tokens merge, the text's own are taken.
        """
        first, both = self.plain(before), self.plain(before + text)
        return both[len(first) :] if both[: len(first)] == first else self.plain(text)

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of utterances, each at most ``max_text_tokens``: its end."""
        whole: list[list[int]] = self._tokenize(list(texts))["input_ids"]
        for number, ids in enumerate(whole):
            if len(ids) > self.max_text_tokens:
                encoded = self._encode([texts[number]])
                keep = np.ones(len(encoded.ids), dtype=bool)
                _keep_end(encoded, keep, np.arange(len(keep)), self.max_text_tokens)
                whole[number] = encoded.ids[keep].tolist()
        return [self._checked(ids, text) for ids, text in zip(whole, texts, strict=True)]

    def text_places(self, text: str) -> np.ndarray:
        """For each id of an utterance as :meth:`texts` gives it the characters that it covers: int64 ``[ids, 2]``."""
        encoded = self._encode([text])
        keep = np.ones(len(encoded.ids), dtype=bool)
        _keep_end(encoded, keep, np.arange(len(keep)), self.max_text_tokens)
        return np.stack([encoded.begin, encoded.end], 1)[keep]

    def prompts(self, prompts: Sequence[Sequence[Piece]]) -> list[PromptIds]:
        """The ids of prompts, each at most ``limit``.

        Raises:
            EgmfError: a question alone is longer, or a token has no row in the backbone's embedding.
        """
        parts = [part for pieces in prompts for part in self._parts(pieces)]
        encoded = self._tokenize(["".join(piece.text for piece in part) for part in parts])["input_ids"]
        found, place = [], 0
        for pieces in prompts:
            own = encoded[place : place + len(self._parts(pieces))]
            place += len(own)
            ids = [number for part in own for number in part]
            if self._fits(pieces, len(ids)):
                before = len(own[0]) if len(own) > 1 else 0
                found.append(PromptIds(self._checked(ids, pieces[-2].text), 0, before))
            else:
                found.append(self._fit(pieces))
        return found

    def _parts(self, pieces: Sequence[Piece]) -> list[Sequence[Piece]]:
        """What is tokenized apart: the turns, where there are some, and the rest."""
        turns = sum(piece.kind == "turn" for piece in pieces) if self.apart else 0
        return [pieces[:turns], pieces[turns:]] if turns else [pieces]

    def _fits(self, pieces: Sequence[Piece], tokens: int) -> bool:
        """Whether nothing can have to be cut; most prompts, found without looking for the places of their tokens."""
        if tokens > self.limit or not self.tokenizer.is_fast:
            return False
        if tokens <= self.max_text_tokens:
            return True
        # Without a normalizer a text has no more tokens than bytes.
        if self.tokenizer.backend_tokenizer.normalizer is not None:
            return False
        longest = max((len(piece.text[-piece.spoken - 1 :].encode()) for piece in pieces if piece.spoken), default=0)
        return longest < self.max_text_tokens

    def _fit(self, pieces: Sequence[Piece]) -> PromptIds:
        return self.placed(pieces)[0]

    def placed(self, pieces: Sequence[Piece]) -> tuple[PromptIds, np.ndarray]:
        """A prompt as :meth:`prompts` gives it, and for each of its ids the characters of the whole prompt it covers.

        The latter are int64 ``[ids, 2]``, begin and end; a tokenizer that knows no offsets puts every token at its
        piece's last words.

        Raises:
            EgmfError: see :meth:`prompts`.
        """
        parts = self._parts(pieces)
        tokens = _end_to_end(parts, [self._encode([piece.text for piece in part]) for part in parts])
        keep = np.ones(len(tokens.ids), dtype=bool)
        ends = np.cumsum([len(piece.text) for piece in pieces])
        members = [np.flatnonzero(tokens.piece == number) for number in range(len(pieces))]
        for number, piece in enumerate(pieces):
            if len(members[number]) > self.max_text_tokens and piece.kind in ("turn", "text"):
                # A turn's own words stand before its line break; its speaker's name does not count as them.
                last = ends[number] - (piece.kind == "turn")
                at = np.maximum(tokens.end[members[number]] - 1, tokens.begin[members[number]])
                said = members[number][(at >= last - piece.spoken) & (at < last)]
                _keep_end(tokens, keep, said, self.max_text_tokens)
        for number, piece in enumerate(pieces):
            over = int(keep.sum()) - self.limit
            if over <= 0:
                break
            if piece.kind == "turn":
                keep[members[number]] = False
        for kind in ("text", "speaker"):
            over = int(keep.sum()) - self.limit
            if over > 0:
                number = next(i for i, piece in enumerate(pieces) if piece.kind == kind)
                left = members[number][keep[members[number]]]
                _keep_end(tokens, keep, left, len(left) - over)
        kept = tokens.ids[keep]
        if len(kept) > self.limit:
            raise EgmfError(
                f"a question takes {len(kept)} tokens and a prompt may have {self.limit}; "
                "raise data.max_prompt_tokens, or take a backbone with more positions"
            )
        before = int(keep[tokens.piece < len(parts[0])].sum()) if len(parts) > 1 else 0
        prompt = PromptIds(self._checked(kept.tolist(), pieces[-2].text), int(len(keep) - len(kept)), before)
        return prompt, np.stack([tokens.begin, tokens.end], 1)[keep]

    def _checked(self, ids: list[int], text: str) -> list[int]:
        if ids and max(ids) >= self.vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise EgmfError(
                f"the text {text[:40]!r} holds the token {token!r}, for which the backbone's embedding of "
                f"{self.vocabulary} rows has none; resize its embedding, or take the token out of its tokenizer"
            )
        return ids

    def _tokenize(self, texts: list[str], offsets: bool = False) -> Any:
        return self.tokenizer(
            texts, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=offsets
        )

    def _encode(self, parts: Sequence[str]) -> _Encoded:
        if not self.tokenizer.is_fast:
            # A tokenizer written in Python knows no offsets: pieces are tokenized apart.
            return self._encode_apart(parts)
        found = self._tokenize(["".join(parts)], offsets=True)
        places = np.array(found["offset_mapping"][0], dtype=np.int64).reshape(-1, 2)
        ends = np.cumsum([len(part) for part in parts])
        at = np.maximum(places[:, 1] - 1, places[:, 0])
        piece = np.minimum(np.searchsorted(ends, at, side="right"), len(parts) - 1)
        return _Encoded(np.array(found["input_ids"][0], dtype=np.int64), piece, places[:, 0], places[:, 1])

    def _encode_apart(self, parts: Sequence[str]) -> _Encoded:
        ids: list[int] = []
        piece: list[int] = []
        for number, part in enumerate(parts):
            own = self._tokenize([part])["input_ids"][0] if part else []
            ids += own
            piece += [number] * len(own)
        # Without offsets every token of a piece counts as its last words (before a turn's line break), no character
        # as shared.
        last = np.array(
            [end - min(2, len(part)) for end, part in zip(np.cumsum([*map(len, parts)]), parts, strict=True)]
        )
        number_of = np.array(piece, dtype=np.int64)
        return _Encoded(np.array(ids, dtype=np.int64), number_of, last[number_of], last[number_of])


def _end_to_end(parts: Sequence[Sequence[Piece]], encoded: Sequence[_Encoded]) -> _Encoded:
    """The tokens of parts that were tokenized apart, pieces and characters counted from the first part's first."""
    pieces = np.cumsum([0, *map(len, parts)])
    characters = np.cumsum([0, *(sum(len(piece.text) for piece in part) for part in parts)])
    moved = [
        (own.ids, own.piece + piece, own.begin + character, own.end + character)
        for own, piece, character in zip(encoded, pieces, characters, strict=False)
    ]
    return _Encoded(*(np.concatenate(columns) for columns in zip(*moved, strict=True)))


def _keep_end(tokens: _Encoded, keep: np.ndarray, places: np.ndarray, most: int) -> None:
    """Of the tokens at ``places`` leave out the first ones, so that at most ``most`` stay and none is half a character;
    ``keep`` is changed in place."""
    first = len(places) - max(most, 0)
    if first <= 0:
        return
    while first < len(places) and tokens.begin[places[first]] < tokens.end[places[first - 1]]:
        first += 1
    keep[places[:first]] = False
