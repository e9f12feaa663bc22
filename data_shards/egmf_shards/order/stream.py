"""Who reads which sample when: a pure function of one integer, the position.

Position p counts samples over the whole run. The global batch at p is the slots p, p+1, ..., p+G-1 of an endless
order (:mod:`egmf_shards.order.permutation`), so it is always full and may cross an epoch's end, and each sample comes
exactly once per epoch. A rank computes a contiguous share of it, cut into micro-batches.

Invariants: the sequence of global batches does not depend on the number of ranks or the micro-batch; shares differ by
at most one sample; the number of micro-batches is the same on every rank, because control flow may never depend on a
sample; where a rank has nothing left for a micro-batch, it repeats its first sample with weight 0; a sample that cannot
be read keeps its position with weight 0 and is never replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.format.sample import Sample
from egmf_shards.order.permutation import Mixture, Order
from egmf_shards.read.reader import ShardSet


@dataclass(frozen=True)
class Slot:
    """One place of the run and the sample that stands there."""

    position: int
    """Counts samples over the whole run, from 0."""
    epoch: int
    index: int
    """The sample's number in the shard set."""


@dataclass(frozen=True)
class BadSlot:
    """A place whose sample could not be read; it keeps its place with weight 0."""

    slot: Slot
    key: str
    reason: str
    """One line that names shard, sample and member."""


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What one forward pass reads; the three lists run in parallel and are never empty."""

    samples: list[Sample]
    slots: list[Slot]
    weights: list[float]
    """1.0 for a real entry, 0.0 for a filler or a bad sample, which must not count."""
    bad: list[BadSlot]


@dataclass(frozen=True)
class IndexBatch:
    """One batch of an evaluation on one rank: sample numbers, and 1.0 for a real entry or 0.0 for a filler."""

    indices: list[int]
    weights: list[float]


def share(count: int, rank: int, world: int) -> range:
    """The contiguous share of ``range(count)`` that is ``rank``'s; shares differ by at most one, the first are longer.

    Raises:
        ShardError: ``rank`` is not one of ``world`` ranks.
    """
    if not 0 <= rank < world:
        raise ShardError(f"rank is {rank} of {world}; ranks count from 0 to the number of ranks - 1")
    size, extra = divmod(count, world)
    start = rank * size + min(rank, extra)
    return range(start, start + size + (rank < extra))


def sequential(count: int, rank: int, world: int, batch: int) -> list[IndexBatch]:
    """An evaluation's batches on ``rank``: every number below ``count`` exactly once over all ranks, in order.

    Every rank gets as many batches, of the same sizes (at most ``batch`` entries), so that whoever cuts a batch further
    cuts alike on all of them. What is missing in a rank's last batch are fillers of weight 0: the rank's first sample,
    or sample 0 where the rank has none.
    """
    if batch < 1:
        raise ShardError(f"the batch is {batch}; at least 1 is needed")
    own = share(count, rank, world)
    filler = own[0] if own else 0
    longest = len(share(count, 0, world))
    batches = []
    for first in range(0, longest, batch):
        real = list(own[first : first + batch])
        fillers = min(batch, longest - first) - len(real)
        batches.append(IndexBatch(real + [filler] * fillers, [1.0] * len(real) + [0.0] * fillers))
    return batches


class Stream:
    """The training data of one rank.

    Args:
        shards: the split to train on.
        seed: chooses the order; the run's.
        global_batch: samples of one optimizer step over all ranks.
        micro_batch: the most samples of one forward pass on one rank.
        rank: this process, from 0.
        world: the number of ranks.
        weights: the folders' shares of the mixture, one a folder; empty: every sample of every folder once an epoch.
        block: samples of a block that is read as a whole; 0 mixes everything with everything.
        window: blocks that are mixed with each other.
        by_length: share a global batch out so that ranks get alike loads and micro-batches hold alike lengths.
        tolerate: a sample that cannot be read keeps its place with weight 0; otherwise it is an error.

    Raises:
        ShardError: a number below 1, a rank that is none, a global batch smaller than the number of ranks, or weights
            that do not fit.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        seed: int,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world: int,
        weights: Sequence[float] = (),
        block: int = 0,
        window: int = 64,
        by_length: bool = False,
        tolerate: bool = False,
    ) -> None:
        if micro_batch < 1:
            raise ShardError(f"the micro-batch is {micro_batch}; at least 1 is needed")
        if global_batch < world:
            raise ShardError(
                f"the global batch is {global_batch} for {world} ranks; at least one sample a rank is needed"
            )
        share(global_batch, rank, world)  # refuses a rank that is none
        self.shards = shards
        self.order: Order | Mixture
        if weights:
            orders = [Order(n, seed, f"{shards.index_hash} {d}", block, window) for d, n in enumerate(shards.counts)]
            self.order = Mixture(orders, weights, seed, shards.index_hash)
        else:
            self.order = Order(len(shards), seed, shards.index_hash, block, window)
        self.global_batch, self.rank, self.world, self.tolerate = global_batch, rank, world, tolerate
        self._lengths = _lengths(shards) if by_length else None
        self.micro_batches = -(-len(share(global_batch, 0, world)) // micro_batch)
        """Micro-batches of one global batch: the same on every rank."""

    def global_slots(self, position: int) -> list[Slot]:
        """The whole global batch that begins at ``position``: the same on every rank, for any number of ranks."""
        positions = range(position, position + self.global_batch)
        indices, epochs = self.order.at(np.arange(positions.start, positions.stop))
        return [Slot(*row) for row in zip(positions, epochs.tolist(), indices.tolist(), strict=True)]

    def plan(self, position: int) -> list[list[Slot]]:
        """This rank's part of the global batch at ``position``: :attr:`micro_batches` lists as equally long as can be.

        Only real entries: a list is empty where :meth:`read` puts a filler. A pure function of the arguments.
        """
        slots = self.global_slots(position)
        if self._lengths is None:
            own = share(len(slots), self.rank, self.world)
            slots = slots[own.start : own.stop]
        else:
            slots = deal(slots, self._lengths, self.rank, self.world)
        cuts = [share(len(slots), i, self.micro_batches) for i in range(self.micro_batches)]
        return [slots[cut.start : cut.stop] for cut in cuts]

    def read(self, position: int) -> list[MicroBatch]:
        """The samples of :meth:`plan`; an empty micro-batch holds the rank's first sample with weight 0.

        Raises:
            ShardError: a sample cannot be read whole, and bad samples are not tolerated.
        """
        batches: list[MicroBatch] = []
        for slots in self.plan(position):
            if slots:
                packed = self.shards.read([s.index for s in slots], self.tolerate)
                weights = [1.0] * len(slots)
                for known in packed.bad:
                    weights[known.place] = 0.0
                bad = [BadSlot(slots[known.place], known.key, known.reason) for known in packed.bad]
                batches.append(MicroBatch(packed.samples, slots, weights, bad))
            else:  # never the first: a rank has at least one sample
                first = batches[0]
                batches.append(MicroBatch(first.samples[:1], first.slots[:1], [0.0], []))
        return batches


def deal(slots: Sequence[Slot], lengths: np.ndarray, rank: int, world: int) -> list[Slot]:
    """``rank``'s part of a global batch, longest first: handed out from the longest to the shortest, in
    alternating direction.

    Depends on the slots and the index's lengths alone. Parts differ by at most one slot.

    Args:
        slots: the global batch.
        lengths: int ``[samples]``, by sample number.
        rank: from 0.
        world: the number of ranks.
    """
    longest_first = sorted(slots, key=lambda slot: (-int(lengths[slot.index]), slot.position))
    rounds = [longest_first[i : i + world] for i in range(0, len(slots), world)]
    # Only whole rounds change direction: in a part of one the first ranks take what is left, as in a plain share.
    turned = [cards[::-1] if i % 2 and len(cards) == world else cards for i, cards in enumerate(rounds)]
    return [cards[rank] for cards in turned if rank < len(cards)]


def _lengths(shards: ShardSet) -> np.ndarray:
    columns = (shards.column(name) for name in ("text_chars", "audio_frames", "vision_frames"))
    return np.sum([column.astype(np.int64) for column in columns], axis=0)
