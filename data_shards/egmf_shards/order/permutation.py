"""The order of samples inside an epoch: a permutation that is computed, not stored.

Which sample is at a place of an epoch is a keyed bijection of the place: any place is reached at once, and no process
holds O(n) numbers.

The bijection is a Feistel network on the rectangle ``Z_a x Z_b`` with ``a = ceil(sqrt n)``, ``b = ceil(n / a)``: each
round adds a hash of one half to the other, modulo its size, which is invertible whatever the hash. The rectangle has
fewer than ``a`` cells too many; a place that lands on one is sent through again (cycle walking), which keeps it a
bijection on ``[0, n)``. Round keys come from SHA-256, the round hash is splitmix64's finaliser: mixing, not secrecy.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
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


def by_value(values: np.ndarray) -> Iterator[tuple[int, slice | np.ndarray]]:
    """Each value of ``values`` once, and its places; mostly there is only one."""
    if values.size and values.min() == values.max():
        yield int(values[0]), slice(None)
        return
    for value in np.unique(values).tolist():
        yield value, values == value
