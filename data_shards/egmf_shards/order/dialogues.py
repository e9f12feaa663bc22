"""The order of a run that keeps dialogues together: epochs are permutations of dialogues, not of samples.

So utterances that share their context come one after another, and a batch can read that context once. A position is
still one integer: the permutation's running lengths say which dialogue it falls into.

Which samples a dialogue has, and how many, is put together once, kept and mapped as the index is. Of the running
lengths every few thousandth is held; those between are added up where a position falls among them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.format.arrays import pieces, room
from egmf_shards.format.derived import Made, derived
from egmf_shards.order.order import Order
from egmf_shards.order.permutation import by_value, permutation
from egmf_shards.read.columns import Column

_NONE = 2**32 - 1
"""In place of -1: samples of no dialogue come behind all others."""
_KEPT_FROM = 2**22
"""Samples; what belongs together in fewer is put together sooner than looked up."""
_BLOCK = 4096
"""Dialogues whose running lengths are added up together."""
_BLOCKS_AT_HAND = 8


class DialogueOrder(Order):
    """The endless sequence of sample numbers of a run, dialogue by dialogue; each sample exactly once an epoch.

    A dialogue's samples come in the order of their numbers, a sample of no dialogue as a dialogue of its own.

    Args:
        dialogues: int ``[n]``: the dialogue of each sample, -1 for none.
        seed: the run's.
        index_hash: what the permutations depend on beside seed and epoch.
        mixed: so many first epochs are permutations of samples.

    Raises:
        ShardError: no sample, or about 2^32 samples or dialogues and more.
    """

    def __init__(self, dialogues: np.ndarray | Column, seed: int, index_hash: str, mixed: int = 0) -> None:
        self.mixed = mixed
        super().__init__(len(dialogues), seed, index_hash)
        self._dialogues = dialogues
        self._put_together()

    def _put_together(self) -> None:
        dialogues = self._dialogues
        identity = dialogues.identity if isinstance(dialogues, Column) and self.n >= _KEPT_FROM else ""
        found = derived(identity, "dialogues 1", ("samples", "starts"), lambda: _together(dialogues))
        self._samples, self._starts = found["samples"], found["starts"]
        self._sums: tuple[int, np.ndarray] | None = None
        self._blocks: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        own = ("_samples", "_starts", "_sums", "_blocks")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._put_together()

    def _of_epoch(self, epoch: int, places: np.ndarray) -> np.ndarray:
        if epoch < self.mixed:
            return super()._of_epoch(epoch, places)
        sums = self._block_sums(epoch)
        found = np.empty_like(places)
        for block, own in by_value(np.searchsorted(sums, places, side="right") - 1):
            bounds, starts = self._block(epoch, block)
            inside = places[own] - sums[block]
            dialogue = np.searchsorted(bounds, inside, side="right") - 1
            found[own] = self._samples[starts[dialogue] + inside - bounds[dialogue]]
        return found

    def _block_sums(self, epoch: int) -> np.ndarray:
        """int64: how many samples come before each :data:`_BLOCK` dialogues of an epoch."""
        if self._sums is None or self._sums[0] != epoch:
            count = len(self._starts) - 1
            lengths = [int(self._ordered(epoch, block)[1].sum()) for block in range(-(-count // _BLOCK))]
            self._sums = epoch, np.cumsum([0, *lengths[:-1]])
        return self._sums[1]

    def _block(self, epoch: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 each, for some dialogues in their order: samples before each of them, counted from the first one, and
        where its own begin."""
        if (epoch, block) not in self._blocks:
            if len(self._blocks) >= _BLOCKS_AT_HAND:
                del self._blocks[next(iter(self._blocks))]
            starts, lengths = self._ordered(epoch, block)
            self._blocks[epoch, block] = np.cumsum(lengths) - lengths, starts
        return self._blocks[epoch, block]

    def _ordered(self, epoch: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 each, of some dialogues in an epoch's order: where their samples begin, and how many they are."""
        count = len(self._starts) - 1
        places = np.arange(block * _BLOCK, min((block + 1) * _BLOCK, count))
        own = permutation(count, self.seed, "dialogues", epoch, self.index_hash)(places)
        starts = self._starts[own].astype(np.int64)
        return starts, self._starts[own + 1] - starts


def _together(dialogues: np.ndarray | Column) -> Made:
    """``samples``, uint32 ``[n]``: dialogue by dialogue, and ``starts``, uint32 ``[dialogues + 1]``: where there each
    begins, and n."""
    n = len(dialogues)
    if n >= _NONE:
        raise ShardError(f"{n} samples: an order of dialogues takes fewer than {_NONE}")
    # Sorted in place as one number each: what says which sample it is comes along.
    rows, at = room(n, np.uint64), 0
    for numbers in dialogues.pieces() if isinstance(dialogues, Column) else (dialogues[part] for part in pieces(n)):
        if int(numbers.max(initial=0)) >= _NONE:
            raise ShardError(f"dialogue number {numbers.max()}: an order of dialogues takes fewer than {_NONE}")
        high = np.where(numbers < 0, _NONE, numbers).astype(np.uint64)
        rows[at : at + len(high)] = (high << np.uint64(32)) | np.arange(at, at + len(high), dtype=np.uint64)
        at += len(high)
    rows.sort()
    starts, at = room(sum(len(_begins(rows, part)) for part in pieces(n)) + 1, np.uint32), 0
    starts[-1] = n
    samples = room(n, np.uint32)
    for part in pieces(n):
        own = _begins(rows, part)
        samples[part] = rows[part]  # the lower half
        starts[at : at + len(own)] = own
        at += len(own)
    return {"samples": samples, "starts": starts}


def _begins(rows: np.ndarray, part: slice) -> np.ndarray:
    """uint32: which of some sorted rows begin a dialogue."""
    high = (rows[max(part.start - 1, 0) : part.stop] >> np.uint64(32)).astype(np.uint32)
    before = high[:-1] if part.start else np.concatenate([[np.uint32(_NONE)], high[:-1]])
    own = high[1:] if part.start else high
    return (part.start + np.flatnonzero((own != before) | (own == _NONE))).astype(np.uint32)
