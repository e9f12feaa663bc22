"""Who reads which sample when: a pure function of one integer, the position.

Position p counts samples over the whole run. The global batch at p is the slots p, p+1, ..., p+G-1 of an endless
order (:mod:`egmf_shards.order.order`), so it is always full and may cross an epoch's end, and each sample comes
exactly once per epoch. A rank computes a contiguous part of it, cut into micro-batches.

Invariants: the sequence of global batches does not depend on the number of ranks or the micro-batch; parts differ by
at most one sample; the number of micro-batches is the same on every rank, because control flow may never depend on a
sample; where a rank has nothing left for a micro-batch, it repeats its first sample with weight 0; a sample that cannot
be read keeps its position with weight 0 and is never replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.format.sample import Sample
from egmf_shards.order.dialogues import DialogueOrder
from egmf_shards.order.mixture import Mixture
from egmf_shards.order.order import Order, Slot
from egmf_shards.order.partition import partition, partition_by_length
from egmf_shards.read.reader import ShardSet


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
class StreamOptions:
    """How a stream mixes its folders, groups lengths and takes bad samples; the defaults mix everything alike."""

    weights: Sequence[float] = ()
    """The folders' parts of the mixture, one a folder; empty: every sample of every folder once an epoch."""
    block: int = 0
    """Samples of a block that is read as a whole; 0 mixes everything with everything."""
    window: int = 64
    """Blocks that are mixed with each other."""
    by_length: bool = False
    """Partition a global batch so that ranks get alike loads and micro-batches hold alike lengths."""
    dialogues: bool = False
    """Dialogues are shuffled and each stays together."""
    mixed_epochs: int = 0
    """With ``dialogues``: so many first epochs mix all samples alike."""
    tolerate: bool = False
    """A sample that cannot be read keeps its place with weight 0; otherwise it is an error."""


class Stream:
    """The training data of one rank.

    Args:
        shards: the split to train on.
        seed: chooses the order; the run's.
        global_batch: samples of one optimizer step over all ranks.
        micro_batch: the most samples of one forward pass on one rank.
        rank: this process, from 0.
        world: the number of ranks.
        options: see :class:`StreamOptions`.

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
        options: StreamOptions = StreamOptions(),
    ) -> None:
        if micro_batch < 1:
            raise ShardError(f"the micro-batch is {micro_batch}; at least 1 is needed")
        if global_batch < world:
            raise ShardError(
                f"the global batch is {global_batch} for {world} ranks; at least one sample a rank is needed"
            )
        partition(global_batch, rank, world)  # refuses a rank that is none
        self.shards = shards
        self.order: Order | Mixture

        def order(first: int, n: int, name: str) -> Order:
            if options.dialogues:
                dialogues = shards.dialogues.between(first, first + n)
                return DialogueOrder(dialogues, seed, name, options.mixed_epochs)
            return Order(n, seed, name, options.block, options.window)

        if options.weights:
            starts = np.cumsum([0, *shards.counts]).tolist()
            orders = [order(starts[d], n, f"{shards.index_hash} {d}") for d, n in enumerate(shards.counts)]
            self.order = Mixture(orders, options.weights, seed, shards.index_hash)
        else:
            self.order = order(0, len(shards), shards.index_hash)
        self.global_batch, self.rank, self.world, self.tolerate = global_batch, rank, world, options.tolerate
        self._by_length = options.by_length
        self.micro_batches = -(-len(partition(global_batch, 0, world)) // micro_batch)
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
        if self._by_length:
            slots = partition_by_length(slots, _lengths(self.shards, slots), self.rank, self.world)
        else:
            own = partition(len(slots), self.rank, self.world)
            slots = slots[own.start : own.stop]
        cuts = [partition(len(slots), i, self.micro_batches) for i in range(self.micro_batches)]
        return [slots[cut.start : cut.stop] for cut in cuts]

    def read(self, position: int, size: Callable[[Sample], float] | None = None) -> list[MicroBatch]:
        """The samples of :meth:`plan`; an empty micro-batch holds the rank's first sample with weight 0.

        Args:
            position: where the global batch begins.
            size: what a sample counts, above 0: the same samples are then cut into as many micro-batches of about the
                same size.

        Raises:
            ShardError: a sample cannot be read whole, and bad samples are not tolerated.
        """
        parts = self.plan(position)
        slots = [slot for part in parts for slot in part]
        packed = self.shards.read([s.index for s in slots], self.tolerate)
        cuts = np.cumsum([len(part) for part in parts])[:-1].tolist()
        if size is not None:
            cuts = _cuts([size(sample) for sample in packed.samples], len(parts))
        weights = [1.0] * len(slots)
        bad = [BadSlot(slots[known.place], known.key, known.reason) for known in packed.bad]
        for known in packed.bad:
            weights[known.place] = 0.0
        batches = []
        for first, last in pairwise([0, *cuts, len(slots)]):
            own = slice(first, last)
            inside = [fault for known, fault in zip(packed.bad, bad, strict=True) if first <= known.place < last]
            if first < last:
                batches.append(MicroBatch(packed.samples[own], slots[own], weights[own], inside))
            else:
                batches.append(MicroBatch(packed.samples[:1], slots[:1], [0.0], []))
        return batches


def _cuts(sizes: Sequence[float], pieces: int) -> list[int]:
    """Where a sequence is cut into so many pieces of about the same size: what lies across a cut goes where its middle
    is."""
    middle = np.cumsum(sizes) - np.asarray(sizes) / 2
    return np.searchsorted(middle, np.sum(sizes) * np.arange(1, pieces) / pieces).tolist()


def _lengths(shards: ShardSet, slots: Sequence[Slot]) -> np.ndarray:
    """int64 ``[len(slots)]``: what the index counts of each sample, all columns together."""
    indices = np.array([slot.index for slot in slots])
    return np.sum([shards.column(name)[indices].astype(np.int64) for name in shards.columns], axis=0)
