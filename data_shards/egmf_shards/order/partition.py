"""Which part of a batch a rank computes. Parts differ by at most one sample, and no sample decides how they are cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.order.order import Slot


@dataclass(frozen=True)
class IndexBatch:
    """One batch of an evaluation on one rank: sample numbers, and 1.0 for a real entry or 0.0 for a filler."""

    indices: list[int]
    weights: list[float]


def partition(count: int, rank: int, world: int) -> range:
    """The contiguous part of ``range(count)`` that is ``rank``'s; parts differ by at most one, the first are longer.

    Raises:
        ShardError: ``rank`` is not one of ``world`` ranks.
    """
    if not 0 <= rank < world:
        raise ShardError(f"rank is {rank} of {world}; ranks count from 0 to the number of ranks - 1")
    size, extra = divmod(count, world)
    start = rank * size + min(rank, extra)
    return range(start, start + size + (rank < extra))


def partition_by_length(slots: Sequence[Slot], lengths: np.ndarray, rank: int, world: int) -> list[Slot]:
    """``rank``'s part of a global batch, longest first.

    Sorted by length, the slots go to the ranks in rounds whose direction alternates: 0, 1, ..., n - 1, n - 1, ..., 0.

    Depends on the slots and the index's lengths alone. Parts differ by at most one slot.

    Args:
        slots: the global batch.
        lengths: int ``[len(slots)]``, the slots'.
        rank: from 0.
        world: the number of ranks.
    """
    order = sorted(range(len(slots)), key=lambda i: (-int(lengths[i]), slots[i].position))
    longest_first = [slots[i] for i in order]
    rounds = [longest_first[i : i + world] for i in range(0, len(slots), world)]
    # Only whole rounds are reversed: in the last one the first ranks take what is left, as :func:`partition` does.
    ordered = [taken[::-1] if i % 2 and len(taken) == world else taken for i, taken in enumerate(rounds)]
    return [taken[rank] for taken in ordered if rank < len(taken)]


def sequential(count: int, rank: int, world: int, batch: int) -> list[IndexBatch]:
    """An evaluation's batches on ``rank``: every number below ``count`` exactly once over all ranks, in order.

    Every rank gets as many batches, of the same sizes (at most ``batch`` entries), so that whoever cuts a batch further
    cuts alike on all of them. What is missing in a rank's last batch are fillers of weight 0: the rank's first sample,
    or sample 0 where the rank has none.
    """
    if batch < 1:
        raise ShardError(f"the batch is {batch}; at least 1 is needed")
    own = partition(count, rank, world)
    filler = own[0] if own else 0
    longest = len(partition(count, 0, world))
    batches = []
    for first in range(0, longest, batch):
        real = list(own[first : first + batch])
        fillers = min(batch, longest - first) - len(real)
        batches.append(IndexBatch(real + [filler] * fillers, [1.0] * len(real) + [0.0] * fillers))
    return batches
