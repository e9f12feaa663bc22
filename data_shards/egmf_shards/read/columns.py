"""The rows of one split over several folders, by number: looked up where the mapped indexes hold them.

Nothing here is as long as the split is: a sample's number says its folder, the folder's facts say its row, and what the
row says is read from the index when it is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from egmf_shards.format.arrays import pieces
from egmf_shards.format.index import Index

KEY, TASK, TARGET, TEXT, DIALOGUE, FOLDER = "key", "task", "target", "text_chars", "dialogue", "folder"
"""Columns; others are the streams' frames."""
UNKNOWN = -2
"""The dialogue of a sample whose index does not say it."""
LET_GO_BYTES = 1 << 30
"""An index of so many bytes is not left mapped page after page until all of it counts as this process's memory."""
LET_GO_SAMPLES = 1 << 14
"""After so many samples were looked up its pages are let go of: at most some 60 KB of pages come with each."""


class Members(NamedTuple):
    """The members of some samples, sample by sample."""

    counts: np.ndarray
    """int64 ``[samples]``."""
    kind: np.ndarray
    shard: np.ndarray
    """Among the shards of all folders."""
    offset: np.ndarray
    size: np.ndarray
    crc: np.ndarray


@dataclass(frozen=True, eq=False)
class Part:
    """One folder's samples of the split."""

    index: Index
    split: int
    """A number of :data:`egmf_shards.format.sample.SPLITS`."""
    tasks: np.ndarray
    """int32 ``[T]``; the run's number of each of the index's tasks."""
    kinds: np.ndarray
    """uint16; the run's number of each of the index's kinds of members."""
    frames: Mapping[str, str]
    """By the column's name the stream, of those that the index has."""
    folder: int
    shards: int
    """Shards of the folders in front of this one."""
    dialogues: int
    """Dialogues of those."""

    def __len__(self) -> int:
        return int(self.index.facts.counts[self.split])

    def rows(self, numbers: np.ndarray | slice) -> np.ndarray | slice:
        """Of samples of this part, counted from 0, where they stand in the index."""
        facts = self.index.facts
        if len(facts.rows[self.split]):
            return facts.rows[self.split][numbers]
        first = int(facts.first[self.split])
        if isinstance(numbers, slice):
            return slice(first + numbers.start, first + numbers.stop)
        return numbers + first

    def column(self, name: str, rows: np.ndarray | slice) -> np.ndarray:
        """What some rows say."""
        index = self.index
        if name == TASK:
            return self.tasks[index.task[rows]]
        if name == DIALOGUE:
            if index.dialogue is None:
                return np.full(_length(rows), UNKNOWN)
            own = index.dialogue[rows].astype(np.int64)
            return np.where(own < 0, -1, own + self.dialogues)
        if name == FOLDER:
            return np.full(_length(rows), self.folder, np.int32)
        if name in (KEY, TARGET, TEXT):
            found: np.ndarray = getattr(index, name)[rows]
            return found
        stream = self.frames.get(name)
        return np.zeros(_length(rows), np.int32) if stream is None else index.frames[stream][rows]

    def members(self, rows: np.ndarray) -> Members:
        """The members of some rows."""
        index, first = self.index, self.index.first_member[rows]
        counts = index.first_member[rows + 1] - first
        at = _ranges(first, counts)
        shards = index.member_shard[at].astype(np.int64) + self.shards
        columns = (index.member_offset[at], index.member_size[at], index.member_crc[at])
        return Members(counts, self.kinds[index.member_kind[at]], shards, *columns)


class Found(NamedTuple):
    """Those of some samples that one folder holds."""

    own: np.ndarray | slice
    """Which of them."""
    part: Part
    rows: np.ndarray | slice


class Columns:
    """The parts side by side: sample numbers go on from one to the next."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        self.counts = [len(part) for part in parts]
        self._starts = np.cumsum([0, *self.counts])
        self._looked_up = 0
        width = max(part.index.key.dtype.itemsize for part in parts) // 4
        self._types = {KEY: np.dtype(f"<U{width}"), TARGET: np.dtype("|u1"), DIALOGUE: np.dtype("<i8")}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def find(self, at: np.ndarray) -> list[Found]:
        """Where samples, int64 ``[B]``, stand."""
        self._looked_up += len(at)
        if self._looked_up >= LET_GO_SAMPLES:
            self._let_go()
        if len(self.parts) == 1:
            return [Found(slice(None), self.parts[0], self.parts[0].rows(at))]
        folders = np.searchsorted(self._starts, at, side="right") - 1
        found = []
        for folder in np.unique(folders).tolist():
            own, part = np.flatnonzero(folders == folder), self.parts[folder]
            found.append(Found(own, part, part.rows(at[own] - self._starts[folder])))
        return found

    def _let_go(self) -> None:
        self._looked_up = 0
        for part in self.parts:
            if part.index.opened is not None and part.index.opened.size >= LET_GO_BYTES:
                part.index.opened.release()

    def take(self, name: str, found: Sequence[Found], count: int) -> np.ndarray:
        """``[count]``: what they say; int32, ``dialogue`` int64, ``target`` uint8, ``key`` text."""
        if len(self.parts) == 1:
            return found[0].part.column(name, found[0].rows)
        taken = np.empty(count, self._types.get(name, np.dtype("<i4")))
        for own, part, rows in found:
            taken[own] = part.column(name, rows)
        return taken

    def members(self, found: Sequence[Found], count: int) -> Members:
        """The members of ``count`` samples, in the order in which these were asked for."""
        if len(self.parts) == 1:
            return found[0].part.members(np.asarray(found[0].rows))
        counts = np.zeros(count, np.int64)
        parts = [(own, part.members(np.asarray(rows))) for own, part, rows in found]
        for own, members in parts:
            counts[own] = members.counts
        types = (np.uint16, np.int64, np.int64, np.int64, np.uint32)
        taken = [np.empty(int(counts.sum()), kind) for kind in types]
        begins = np.cumsum(counts) - counts
        for own, members in parts:
            places = _ranges(begins[own], members.counts)
            for target, column in zip(taken, members[1:], strict=True):
                target[places] = column
        return Members(counts, *taken)

    def pieces(self, name: str, first: int, last: int) -> Iterator[np.ndarray]:
        """A column from sample ``first`` to before ``last``, a piece after the other."""
        for folder, part in enumerate(self.parts):
            begin, start = max(first, int(self._starts[folder])), int(self._starts[folder])
            for own in pieces(min(last, start + len(part)) - begin):
                yield part.column(name, part.rows(slice(begin - start + own.start, begin - start + own.stop)))
                if part.index.opened is not None:
                    part.index.opened.release()


class Column:
    """One column of a split, ``[n]``: its entries are looked up when they are asked for; a slice is read as a whole.

    Args:
        columns: of the split.
        name: of the column.
        first: the first sample.
        last: behind the last one.
    """

    def __init__(self, columns: Columns, name: str, first: int, last: int) -> None:
        self.columns, self.name, self.first, self.last = columns, name, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, at: np.ndarray) -> np.ndarray:
        """The entries at the int places ``at`` ``[B]``.

        Raises:
            IndexError: there is no such place.
        """
        at = np.asarray(at, np.int64)
        if at.size and not 0 <= int(at.min()) <= int(at.max()) < len(self):
            raise IndexError(f"samples {int(at.min())} to {int(at.max())} of {len(self)}")
        return self.columns.take(self.name, self.columns.find(at + self.first), len(at))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it, held: for a split that is known to be small."""
        found = [*self.pieces()]
        return np.concatenate(found, dtype=dtype) if found else np.zeros(0, dtype)

    def pieces(self) -> Iterator[np.ndarray]:
        """All of it, a piece after the other."""
        return self.columns.pieces(self.name, self.first, self.last)

    def between(self, first: int, last: int) -> Column:
        """The entries from ``first`` to before ``last``."""
        return Column(self.columns, self.name, self.first + first, self.first + last)

    @property
    def identity(self) -> str:
        """What another column has otherwise; empty where that cannot be said (:attr:`Archive.identity`)."""
        files = [part.index.opened.identity if part.index.opened else "" for part in self.columns.parts]
        if not all(files):
            return ""
        said = (self.name, self.first, self.last, [part.split for part in self.columns.parts], files)
        return hashlib.sha256(repr(said).encode()).hexdigest()


def _length(rows: np.ndarray | slice) -> int:
    return int(rows.stop - rows.start) if isinstance(rows, slice) else len(rows)


def _ranges(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """int64: ``first[i]`` and the next ``counts[i] - 1`` numbers, for every i."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(first - (ends - counts), counts)
