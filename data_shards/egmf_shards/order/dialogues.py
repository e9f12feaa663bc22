"""The order of a run that keeps dialogues together: epochs are permutations of dialogues, not of samples.

So utterances that share their context come one after another, and a batch can read that context once. A position is
still one integer: the permutation's running lengths say which dialogue it falls into.
"""

from __future__ import annotations

import numpy as np

from egmf_shards.order.order import Order
from egmf_shards.order.permutation import permutation


class DialogueOrder(Order):
    """The endless sequence of sample numbers of a run, dialogue by dialogue; each sample exactly once an epoch.

    A dialogue's samples come in the order of their numbers, a sample of no dialogue as a dialogue of its own.

    Args:
        dialogues: int ``[n]``: the dialogue of each sample, -1 for none.
        seed: the run's.
        index_hash: what the permutations depend on beside seed and epoch.
        mixed: so many first epochs are permutations of samples.
    """

    def __init__(self, dialogues: np.ndarray, seed: int, index_hash: str, mixed: int = 0) -> None:
        self.mixed = mixed
        super().__init__(len(dialogues), seed, index_hash)
        alone = np.where(dialogues < 0, dialogues.max() + 1 + np.arange(self.n), dialogues)
        self._samples = np.argsort(alone, kind="stable")
        self._starts = np.flatnonzero(np.diff(alone[self._samples], prepend=-1))
        self._lengths = np.diff(self._starts, append=self.n)
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def _of_epoch(self, epoch: int, places: np.ndarray) -> np.ndarray:
        if epoch < self.mixed:
            return super()._of_epoch(epoch, places)
        if self._epoch is None or self._epoch[0] != epoch:
            count = len(self._starts)
            order = permutation(count, self.seed, "dialogues", epoch, self.index_hash)(np.arange(count))
            self._epoch = epoch, np.concatenate([[0], np.cumsum(self._lengths[order])]), self._starts[order]
        _, bounds, starts = self._epoch
        dialogue = np.searchsorted(bounds, places, side="right") - 1
        found: np.ndarray = self._samples[starts[dialogue] + places - bounds[dialogue]]
        return found
