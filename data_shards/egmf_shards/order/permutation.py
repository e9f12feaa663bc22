"""The order of samples inside an epoch: a permutation that is computed, not stored.

Position p of a run means: epoch ``p // n``, place ``p % n``; which sample is there is a keyed bijection of the
place. So the state of a data stream is one integer, any position is reached at once, and no process holds O(n)
numbers.

The bijection is a Feistel network on the rectangle ``Z_a x Z_b`` with ``a = ceil(sqrt n)``, ``b = ceil(n / a)``: each
round adds a hash of one half to the other, modulo its size, which is invertible whatever the hash. The rectangle has
fewer than ``a`` cells too many; a place that lands on one is sent through again (cycle walking), which keeps it a
bijection on ``[0, n)``. Round keys come from SHA-256, the round hash is splitmix64's finaliser: mixing, not secrecy.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from egmf_shards.errors import ShardError

_ROUNDS = 8
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


def _hash(x: np.ndarray, key: np.uint64) -> np.ndarray:
    """splitmix64's finaliser of ``x + key``, uint64."""
    x = x + key
    x = (x ^ (x >> _30)) * _MULTIPLIER_1
    x = (x ^ (x >> _27)) * _MULTIPLIER_2
    return x ^ (x >> _31)


class Permutation:
    """A bijection of ``[0, n)`` chosen by ``key``; called with places, it gives sample numbers."""

    def __init__(self, n: int, *key: int | str) -> None:
        if not 1 <= n < 1 << 62:
            raise ShardError(f"a permutation of {n} items: at least 1 item is needed")
        self.n = n
        a = math.isqrt(n - 1) + 1
        self._a, self._b = np.uint64(a), np.uint64(-(-n // a))
        digest = b"".join(hashlib.sha256(json.dumps([*key, i]).encode()).digest() for i in range(_ROUNDS // 4))
        self._keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """int64 sample numbers of the int ``places`` (any shape), each in ``[0, n)``."""
        places = np.asarray(places)
        if places.size and (places.min() < 0 or places.max() >= self.n):
            raise ShardError(f"places must be in [0, {self.n}); found {places.min()} to {places.max()}")
        result = self._scramble(places.astype(np.uint64).ravel())
        outside = np.flatnonzero(result >= self.n)
        while outside.size:
            result[outside] = self._scramble(result[outside])
            outside = outside[result[outside] >= self.n]
        return result.astype(np.int64).reshape(places.shape)

    def _scramble(self, x: np.ndarray) -> np.ndarray:
        left, right = np.divmod(x, self._b)
        for i in range(0, _ROUNDS, 2):
            left = (left + _hash(right, self._keys[i]) % self._a) % self._a
            right = (right + _hash(left, self._keys[i + 1]) % self._b) % self._b
        return left * self._b + right


class BlockPermutation:
    """A bijection of ``[0, n)`` that reads blocks of neighbours: for storage that wants sequential reads.

    Blocks of ``block`` neighbouring numbers come in random order; ``window`` blocks at a time are mixed sample by
    sample. So a reader meets at most ``window`` blocks in ``window * block`` places, and each of them whole.
    """

    def __init__(self, n: int, block: int, window: int, *key: int | str) -> None:
        if block < 1 or window < 1:
            raise ShardError(f"blocks of {block} samples, {window} in a window: at least 1 each is needed")
        self.n, self._key, self._span = n, key, block * window
        blocks = -(-n // block)
        order = Permutation(blocks, *key, "blocks")(np.arange(blocks))
        sizes = np.where(order == blocks - 1, n - (blocks - 1) * block, block)
        self._first = order * block
        self._starts = np.cumsum(sizes) - sizes

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """int64 sample numbers of the int ``places`` ``[P]``, each in ``[0, n)``."""
        places = np.asarray(places, dtype=np.int64)
        mixed = np.empty_like(places)
        windows = places // self._span
        for window in np.unique(windows).tolist():
            start, own = window * self._span, windows == window
            inside = permutation(min(self._span, self.n - start), *self._key, "window", window)
            mixed[own] = start + inside(places[own] - start)
        at = np.searchsorted(self._starts, mixed, side="right") - 1
        return np.asarray(self._first[at] + mixed - self._starts[at])


@lru_cache(maxsize=64)
def permutation(n: int, *key: int | str) -> Permutation:
    """A :class:`Permutation`, made once."""
    return Permutation(n, *key)


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


def _alike(values: np.ndarray) -> Iterator[tuple[int, slice | np.ndarray]]:
    """Each value of ``values`` once, and its places; mostly there is only one."""
    if values.size and values.min() == values.max():
        yield int(values[0]), slice(None)
        return
    for value in np.unique(values).tolist():
        yield value, values == value


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
        for epoch, own in _alike(epochs):
            indices[own] = self._of_epoch(epoch, places[own])
        return indices, epochs

    def _of_epoch(self, epoch: int, places: np.ndarray) -> np.ndarray:
        key = (self.n, self.block, self.window, self.seed, epoch, self.index_hash)
        if places.size > _CHUNK:
            return _epoch_permutation(*key)(places)
        chunks, offsets = np.divmod(places, _CHUNK)
        numbers = np.empty_like(offsets)
        for chunk, same in _alike(chunks):
            numbers[same] = _chunk_of_places(chunk, *key)[offsets[same]]
        return numbers


class Mixture:
    """Several orders in fixed proportions: every run of :data:`SLOTS` positions holds the same number of each.

    Which of them holds which is shuffled anew for each run of slots. An order's own position follows by arithmetic, so
    each data set is seen exactly once per its own epoch, however long the others are.

    Args:
        orders: one a data set; data set d's sample numbers begin where those of d - 1 end.
        weights: one a data set, above 0; only their proportions count.
        seed: the run's.
        index_hash: as an :class:`Order`'s.

    Raises:
        ShardError: not one weight a data set, one that is not above 0, or so small that it gets no slot.
    """

    SLOTS = 1000

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], seed: int, index_hash: str) -> None:
        self.orders, self.seed, self.index_hash = list(orders), seed, index_hash
        self.quotas = quotas(weights, len(orders), self.SLOTS)
        self._slots = np.concatenate([[0], np.cumsum(self.quotas)])
        self._first = np.concatenate([[0], np.cumsum([order.n for order in orders])])

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`Order.at`; the epochs are those of each sample's own data set."""
        if positions.size and positions.min() < 0:
            raise ShardError(f"position is {positions.min()}; positions count samples from 0")
        rounds, places = np.divmod(positions.astype(np.int64), self.SLOTS)
        slots = np.empty_like(places)
        for number, own in _alike(rounds):
            slots[own] = permutation(self.SLOTS, self.seed, "mixture", number, self.index_hash)(places[own])
        which = np.searchsorted(self._slots, slots, side="right") - 1
        indices, epochs = np.empty_like(places), np.empty_like(places)
        for d, order in enumerate(self.orders):
            own = which == d
            if own.any():
                numbers, epochs[own] = order.at(rounds[own] * self.quotas[d] + slots[own] - self._slots[d])
                indices[own] = numbers + self._first[d]
        return indices, epochs


def quotas(weights: Sequence[float], count: int, slots: int) -> list[int]:
    """``slots`` divided in proportion to ``weights`` by the largest remainders.

    Raises:
        ShardError: not ``count`` weights, one that is not a number above 0, or one that gets no slot.
    """
    if len(weights) != count:
        raise ShardError(f"{len(weights)} weights for {count} folders of shards; one a folder is needed")
    if not all(math.isfinite(w) and w > 0 for w in weights):
        raise ShardError(f"weights are {list(weights)}; numbers above 0 are needed")
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * slots
    shares = np.floor(exact).astype(np.int64)
    for d in np.argsort(-(exact - shares), kind="stable")[: slots - int(shares.sum())]:
        shares[d] += 1
    if shares.min() < 1:
        raise ShardError(f"weights are {list(weights)}; the smallest must be at least 1/{slots} of their sum")
    return [int(s) for s in shares]
