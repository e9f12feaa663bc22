"""What opening a folder asks of its whole index, found out in one pass and kept: opening does not depend on its size.

Which rows a split has, which shards these lie in, how wide features could be that the members' bytes can hold, and the
content hash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from egmf_shards.format.arrays import room
from egmf_shards.format.sample import SPLITS

if TYPE_CHECKING:
    from egmf_shards.format.derived import Made
    from egmf_shards.format.index import Index

FACTS = "index facts 1"
"""The number goes up when the checks of an index, or what follows from it, change."""
_ROWS = tuple(f"rows_{split}" for split in SPLITS)
NAMES = ("content_hash", "counts", "first", "dialogues", "shard_splits", "widest", *_ROWS)
"""What is kept; :meth:`Facts.to_arrays`."""
ANY_WIDTH = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Facts:
    """Of an index of F shards and K streams, for each of the four splits."""

    content_hash: str
    counts: np.ndarray
    """int64 ``[4]``; samples."""
    first: np.ndarray
    """int64 ``[4]``; the first row, -1 where there is none."""
    dialogues: np.ndarray
    """int64 ``[4]``; one more than the largest number of a dialogue, 0 where there is none."""
    shard_splits: np.ndarray
    """uint8 ``[F]``; a bit for each split that has samples in the shard."""
    widest: np.ndarray
    """int64 ``[4, K]``; the most numbers a frame that the members of a stream have bytes for, all of them."""
    rows: tuple[np.ndarray, ...]
    """For each split its rows, int64, where they are not neighbours; else empty."""

    @classmethod
    def of(cls, index: Index) -> Facts:
        """From an index that holds together."""
        counts, first, last = (np.full(len(SPLITS), start, np.int64) for start in (0, -1, -1))
        dialogues = np.zeros(len(SPLITS), np.int64)
        shard_splits = np.zeros(len(index.shard_names), np.uint8)
        widest = np.full((len(SPLITS), len(index.frames)), ANY_WIDTH)
        for part in index.pieces(len(index)):
            members = slice(int(index.first_member[part.start]), int(index.first_member[part.stop]))
            shards = index.member_shard[index.first_member[part]]
            numbers, stores = index.split[part], index.dialogue
            widths = _widths(index, part, members)
            for split in np.unique(numbers).tolist():
                own = np.flatnonzero(numbers == split)
                counts[split] += len(own)
                first[split] = part.start + own[0] if first[split] < 0 else first[split]
                last[split] = part.start + own[-1]
                shard_splits[np.unique(shards[own])] |= 1 << split
                if stores is not None:
                    dialogues[split] = max(int(dialogues[split]), int(stores[part][own].max()) + 1)
                widest[split] = np.minimum(widest[split], widths[:, own].min(axis=1, initial=ANY_WIDTH))
        apart = [int(n) if n and last[s] - first[s] + 1 > n else 0 for s, n in enumerate(counts)]
        rows = tuple(_rows(index, split, count) for split, count in enumerate(apart))
        return cls(index.content_hash, counts, first, dialogues, shard_splits, widest, rows)

    def to_arrays(self) -> Made:
        """By name, each of one dimension."""
        found = {name: getattr(self, name) for name in ("counts", "first", "dialogues", "shard_splits")}
        found |= {"content_hash": np.array([self.content_hash]), "widest": self.widest.reshape(-1)}
        return found | dict(zip(_ROWS, self.rows, strict=True))

    @classmethod
    def from_arrays(cls, found: Made) -> Facts:
        """The inverse of :meth:`to_arrays`."""
        counts, first, dialogues = found["counts"], found["first"], found["dialogues"]
        widest, rows = found["widest"].reshape(len(SPLITS), -1), tuple(found[name] for name in _ROWS)
        return cls(str(found["content_hash"][0]), counts, first, dialogues, found["shard_splits"], widest, rows)


def _widths(index: Index, part: slice, members: slice) -> np.ndarray:
    """int64 ``[K, samples]``: the most numbers a frame that each sample's member has bytes for."""
    lengths = np.diff(index.first_member[part.start : part.stop + 1])
    samples, kinds = np.repeat(np.arange(len(lengths)), lengths), index.member_kind[members]
    found = np.full((len(index.frames), len(lengths)), ANY_WIDTH)
    for number, frames in enumerate(index.frames.values()):
        own = np.flatnonzero(kinds == number + 1)
        # The smallest float number has two bytes. A sample has the member exactly where it has frames.
        found[number, samples[own]] = index.member_size[members][own] // (
            2 * frames[part][samples[own]].astype(np.int64)
        )
    return found


def _rows(index: Index, split: int, count: int) -> np.ndarray:
    found, at = room(count, np.int64), 0
    for part in index.pieces(len(index)) if count else ():
        own = part.start + np.flatnonzero(index.split[part] == split)
        found[at : at + len(own)] = own
        at += len(own)
    return found
