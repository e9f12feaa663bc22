"""One data set's endless order: position p of a run means epoch ``p // n`` and place ``p % n`` of its permutation.

So the state of a data stream is one integer, and the sample at any position is computed, not remembered.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.order.permutation import BlockPermutation, Permutation, by_value, permutation


@dataclass(frozen=True)
class Slot:
    """One place of the run and the sample that is read there."""

    position: int
    """Counts samples over the whole run, from 0."""
    epoch: int
    index: int
    """The sample's number in the shard set."""


class Order:
    """The endless sequence of sample numbers of a run: epoch after epoch, each a permutation of its own.

    Args:
        n: samples of an epoch.
        seed: the run's.
        index_hash: what the permutations depend on beside seed and epoch.
        block: samples of a block that is read as a whole (:class:`BlockPermutation`); 0 mixes everything with
            everything.
        window: blocks that are mixed with each other.
    """

    def __init__(self, n: int, seed: int, index_hash: str, block: int = 0, window: int = 64) -> None:
        if n < 1:
            raise ShardError(f"an order of {n} samples: at least 1 sample is needed")
        self.n = n
        self.seed = seed
        self.index_hash = index_hash
        self.block, self.window = block, window

    def epoch(self, position: int) -> int:
        """The epoch that ``position`` belongs to."""
        return position // self.n

    def index(self, position: int) -> int:
        """The sample number at ``position`` (from 0, over the whole run)."""
        return int(self.indices(position, 1)[0])

    def indices(self, position: int, count: int) -> np.ndarray:
        """int64 ``[count]``: the sample numbers from ``position`` on; may cross an epoch's end."""
        return self.at(np.arange(position, position + count))[0]

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample numbers and epochs, int64 ``[P]`` each, of the int ``positions`` ``[P]``."""
        if positions.size and positions.min() < 0:
            raise ShardError(f"position is {positions.min()}; positions count samples from 0")
        epochs, places = np.divmod(positions.astype(np.int64), self.n)
        indices = np.empty_like(places)
        for epoch, own in by_value(epochs):
            indices[own] = self._of_epoch(epoch, places[own])
        return indices, epochs

    def _of_epoch(self, epoch: int, places: np.ndarray) -> np.ndarray:
        key = (self.n, self.block, self.window, self.seed, epoch, self.index_hash)
        if places.size > _CHUNK:
            return _epoch_permutation(*key)(places)
        chunks, offsets = np.divmod(places, _CHUNK)
        numbers = np.empty_like(offsets)
        for chunk, same in by_value(chunks):
            numbers[same] = _chunk_of_places(chunk, *key)[offsets[same]]
        return numbers


@lru_cache(maxsize=8)
def _epoch_permutation(n: int, block: int, window: int, *key: int | str) -> Permutation | BlockPermutation:
    return BlockPermutation(n, block, window, *key) if block else permutation(n, *key)


# Places that are permuted together: for a batch of 32 the arithmetic costs less than calling it does.
_CHUNK = 2048


@lru_cache(maxsize=16)
def _chunk_of_places(chunk: int, n: int, block: int, window: int, *key: int | str) -> np.ndarray:
    """The sample numbers at places ``chunk * _CHUNK`` and on, of an epoch."""
    places = np.arange(chunk * _CHUNK, min((chunk + 1) * _CHUNK, n))
    return _epoch_permutation(n, block, window, *key)(places)
