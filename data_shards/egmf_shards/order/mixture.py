"""Several data sets in fixed proportions, whatever their sizes: ``data.weights``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.order.order import Order
from egmf_shards.order.permutation import by_value, permutation


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
        for number, own in by_value(rounds):
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
