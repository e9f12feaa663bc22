"""Global batches in order, read and packed ahead of the model by torch's DataLoader.

The loader holds no state: a batch is a pure function of its position, DataLoader returns batches in the order of the
positions however many processes read them, and a resumed run asks for the next position. A sample that cannot be used
travels as a message, not as an exception, because an exception loses its one line on the way out of a process.
"""

from __future__ import annotations

import copy
import os
import signal
import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from egmf_dist.config import DataConfig
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.data.collate import Collator
from egmf_dist.data.perturb import Augmentation
from egmf_dist.errors import EgmfError, MachineError
from egmf_shards import BadSlot, MicroBatch, Sample, ShardError, Slot, Stream
from egmf_shards.errors import UnreachableError
from egmf_shards.messages import unbroken

_LOOKED_AT = 8
"""Global batches that say how many micro-batches there are."""


class Step(NamedTuple):
    """This rank's part of one global batch."""

    batches: list[RaggedBatch]
    """The stream's micro-batches, packed; empty where ``error`` is set."""
    slots: list[list[Slot]]
    """Which samples they hold."""
    bad: list[BadSlot]
    """Samples that could not be read; they have weight 0."""
    error: str | None
    """Why the batch could not be made."""
    unreachable: bool = False
    """Because its store, or this machine, is at fault."""


class Steps(Dataset[Step]):
    """A rank's steps by position: ``steps[position]`` reads, changes and packs; ``by_length`` cuts by the rows'
    lengths."""

    def __init__(
        self, stream: Stream, collator: Collator, by_length: bool = False, augmentation: Augmentation | None = None
    ) -> None:
        self.stream, self.collator, self.augmentation = stream, collator, augmentation
        self.size = collator.row_bytes if by_length else None

    def __getitem__(self, position: int) -> Step:
        try:
            micro_batches = self.stream.read(position, self.size)
            batches = [self.collator(self._changed(m), m.weights) for m in micro_batches]
        except (EgmfError, ShardError) as error:
            return Step([], [], [], str(error), isinstance(error, UnreachableError))
        return Step(batches, [m.slots for m in micro_batches], [b for m in micro_batches for b in m.bad], None)

    def _changed(self, micro_batch: MicroBatch) -> list[Sample]:
        if self.augmentation is None:
            return micro_batch.samples
        pairs = zip(micro_batch.samples, micro_batch.slots, strict=True)
        return [self.augmentation(sample, slot.position) for sample, slot in pairs]


def micro_batches_of(stream: Stream, collator: Collator, tokens: int, packed: bool) -> int:
    """Into how many micro-batches of about ``tokens`` tokens of the LLM a rank's part of a global batch is cut.

    Of a few global batches, spread over the first epoch, the one with the most tokens says it; every rank reads the
    same ones. Where rows are ``packed``, what a batch shares (contexts) counts once.
    """
    epoch = len(stream.shards)
    most, own = 0, copy.copy(collator)
    own.packed = packed
    for position in range(0, epoch, max(1, epoch // _LOOKED_AT)):
        indices = [slot.index for slot in stream.global_slots(position)]
        batch = own(stream.shards.read(indices, stream.tolerate).samples, [1.0] * len(indices))
        most = max(most, int((batch.rows.end_RC > 0).sum()))
    wanted = -(-most // (stream.world * tokens))
    return max(1, min(wanted, -(-stream.global_batch // stream.world)))


def _only_the_trainer_ends_it(_: int) -> None:
    """A signal that reaches every process of a job is the trainer's to answer, and it still needs its batches then."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # A handler is not told who sent a signal, and DataLoader itself ends what is left of its processes by SIGTERM.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    trainer = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def load(
    stream: Stream,
    collator: Collator,
    positions: range,
    config: DataConfig,
    by_length: bool = False,
    augmentation: Augmentation | None = None,
) -> Iterator[Step]:
    """The steps at ``positions``, in that order.

    Args:
        stream: of this rank.
        collator: packs its samples.
        positions: where global batches begin.
        by_length: micro-batches are cut by the lengths of what the LLM reads.
        augmentation: what is lost of each sample.
        config: ``workers`` processes read ``prefetch`` global batches ahead each; with 0 the caller reads.

    Raises:
        EgmfError: a step's ``error``.
        MachineError: the same where a store is at fault, or a loader process died: the system kills one where memory
            is short.
    """
    workers = config.workers if config.workers is not None else 2 * torch.cuda.is_available()
    loader: DataLoader[Step] = DataLoader(
        Steps(stream, collator, by_length, augmentation),
        batch_size=None,
        sampler=positions,
        num_workers=workers,
        prefetch_factor=config.prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
        # DataLoader draws a seed when it starts; from the global generator that would change the dropout after it.
        generator=torch.Generator(),
        worker_init_fn=_only_the_trainer_ends_it,
    )
    steps = iter(loader)
    for _ in positions:
        try:
            step = next(steps)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            raise MachineError(
                f"data.workers: a loader process died ({unbroken(str(error))}); "
                "look for a lack of memory, or train with data.workers 0"
            ) from error
        if step.error is not None:
            raise (MachineError if step.unreachable else EgmfError)(step.error)
        yield step
