"""The order of a run that keeps dialogues together: epochs are permutations of dialogues, not of samples.

So utterances that share their context come one after another, and a batch can read that context once. A position is
still one integer: the permutation's running lengths say which dialogue it falls into.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.order.permutation import by_value, permutation


class DialogueOrder:
    """The endless sequence of sample numbers of a run, dialogue by dialogue; each sample exactly once an epoch.

    A dialogue's samples come in the order of their numbers, a sample of no dialogue as a dialogue of its own.

    Args:
        dialogues: int ``[n]``: the dialogue of each sample, -1 for none.
        seed: the run's.
        index_hash: what the permutations depend on beside seed and epoch.
    """

    def __init__(self, dialogues: np.ndarray, seed: int, index_hash: str) -> None:
        if not len(dialogues):
            raise ShardError("an order of 0 samples: at least 1 sample is needed")
        self.n, self.seed, self.index_hash = len(dialogues), seed, index_hash
        alone = np.where(dialogues < 0, dialogues.max() + 1 + np.arange(self.n), dialogues)
        self._samples = np.argsort(alone, kind="stable")
        starts = np.flatnonzero(np.diff(alone[self._samples], prepend=-1))
        self._starts, self._lengths = starts, np.diff(starts, append=self.n)
        self._epoch = lru_cache(maxsize=2)(self._of_epoch)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample numbers and epochs, int64 ``[P]`` each, of the int ``positions`` ``[P]``."""
        if positions.size and positions.min() < 0:
            raise ShardError(f"position is {positions.min()}; positions count samples from 0")
        epochs, places = np.divmod(positions.astype(np.int64), self.n)
        indices = np.empty_like(places)
        for epoch, own in by_value(epochs):
            ends, starts = self._epoch(epoch)
            dialogue = np.searchsorted(ends, places[own], side="right")
            # A dialogue ends where its last sample is the one before ``ends``; counted back from there.
            indices[own] = self._samples[starts[dialogue] + places[own] - np.concatenate([[0], ends])[dialogue]]
        return indices, epochs

    def _of_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the epoch's dialogues in their order: where each ends, and where its samples begin in ``_samples``."""
        count = len(self._starts)
        order = permutation(count, self.seed, "dialogues", epoch, self.index_hash)(np.arange(count))
        return np.cumsum(self._lengths[order]), self._starts[order]
