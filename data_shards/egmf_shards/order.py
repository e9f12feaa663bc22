"""The order of samples inside an epoch: a permutation that is computed, not stored.

Position p of a run means: epoch ``p // n``, place ``p % n``; which sample stands there is a keyed bijection of the
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


@lru_cache(maxsize=16)
def _permutation(n: int, seed: int, epoch: int, index_hash: str) -> Permutation:
    return Permutation(n, seed, epoch, index_hash)


class Order:
    """The endless sequence of sample numbers of a run: epoch after epoch, each a permutation of its own."""

    def __init__(self, n: int, seed: int, index_hash: str) -> None:
        if n < 1:
            raise ShardError(f"an order of {n} samples: at least 1 sample is needed")
        self.n = n
        self.seed = seed
        self.index_hash = index_hash

    def epoch(self, position: int) -> int:
        """The epoch that ``position`` belongs to."""
        return position // self.n

    def index(self, position: int) -> int:
        """The sample number at ``position`` (from 0, over the whole run)."""
        return int(self.indices(position, 1)[0])

    def indices(self, position: int, count: int) -> np.ndarray:
        """int64 ``[count]``: the sample numbers from ``position`` on; may cross an epoch's end."""
        if position < 0:
            raise ShardError(f"position is {position}; positions count samples from 0")
        parts, end = [], position + count
        while position < end:
            epoch, place = divmod(position, self.n)
            stop = min(self.n, place + end - position)
            permutation = _permutation(self.n, self.seed, epoch, self.index_hash)
            parts.append(permutation(np.arange(place, stop)))
            position += stop - place
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
