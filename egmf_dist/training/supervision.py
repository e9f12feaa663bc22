"""What a run keeps an eye on while it trains: losses and gradient norms that are not finite, samples that are bad.

A step's losses stay on its device until somebody wants to know them (a line of metrics, a validation, a checkpoint), so
that the host runs ahead of a GPU. The steps in between are not forgotten: all that were not read are read together, in
one transfer, and each is judged under its own number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from egmf_dist import distributed
from egmf_dist.data.bad_samples import BadSamples
from egmf_dist.data.loader import Step
from egmf_dist.errors import EgmfError, MachineError
from egmf_dist.run.checkpoints import Progress
from egmf_dist.run.records import Records
from egmf_shards import BadSlot, ShardError

MOST_NAMED = 10
"""Bad samples of one step that get a warning each."""


class Facts(NamedTuple):
    """What is known of a global batch before the model sees it; the same on every rank."""

    bad: int
    """Samples that could not be read."""
    valid: float
    """Samples that count: the loss is their mean."""
    tokens: float
    prompts_cut: int
    """Prompts that were too long."""
    prompt_tokens_cut: int
    """Tokens they lost."""
    written: int
    """Ranks whose part of a checkpoint is on the disk."""
    stopping: int
    """Ranks that were told to stop."""


class Losses(NamedTuple):
    """What a step came to, over the global batch."""

    step: int
    position: int
    """Where the next global batch begins."""
    first_sample: str
    """Id of this rank's first sample, to find the batch by."""
    answer: float
    auxiliary: float
    total: float
    """Sums over the valid samples; the total is what is minimised."""
    grad_norm: float
    """Before clipping; DeepSpeed gives inf, in older versions -1, where it is not finite."""


@dataclass
class _Unread:
    step: int
    position: int
    first_sample: str
    sums: torch.Tensor
    grad_norm: torch.Tensor | float


def next_step(steps: Iterator[Step], bad_samples: BadSamples, written: bool, stops: bool) -> tuple[Step, Facts]:
    """The next global batch's part of this rank, and what all ranks agree on; one small all-reduce between the hosts.

    Args:
        steps: this rank's.
        bad_samples: what becomes of samples that cannot be read.
        written: this rank's part of a checkpoint is on the disk.
        stops: this rank was told to stop.

    Raises:
        EgmfError: on every rank, what one of them met while reading.
        MachineError: the same where its machine failed.
    """
    complaint, own = None, [0.0] * len(Facts._fields)
    try:
        step = next(steps)
    except (EgmfError, MachineError, ShardError) as error:
        complaint = distributed.complaint_of(error)
    else:
        bad_samples.leave_out(step)
        valid = float(sum(b.weight_B.sum() for b in step.batches))
        cut = [
            tokens for b in step.batches for tokens, weight in zip(b.cut, b.weight_B.tolist(), strict=True) if weight
        ]
        read = [len(step.bad), valid, sum(b.tokens for b in step.batches), sum(map(bool, cut)), sum(cut)]
        own = [*read, written, stops]
    failed, bad, valid, tokens, *counts = distributed.sum_over_ranks([float(complaint is not None), *own])
    if failed:
        distributed.raise_together(complaint)
    return step, Facts(int(bad), valid, tokens, *map(int, counts))


class Supervision:
    """Judges every step once, as seldom as it can.

    Args:
        progress: counts skipped steps.
        limit: how many non-finite steps in a row are too many; at most so many stay unread.
        records: gets the warnings.
    """

    def __init__(self, progress: Progress, limit: int, records: Records) -> None:
        self.progress, self.limit, self.records = progress, limit, records
        self._unread: list[_Unread] = []
        self._last: Losses | None = None

    def add(self, sums: torch.Tensor, grad_norm: torch.Tensor | float | None, first_sample: str) -> None:
        """Take a step without waiting for it.

        Args:
            sums: this rank's answer loss, auxiliary loss and what is minimised, float64 ``[3]``, on their device.
            grad_norm: of the global batch, as DeepSpeed gives it: None where it computes none.
            first_sample: id of this rank's first sample.
        """
        norm = 0.0 if grad_norm is None else grad_norm  # looking at its value would wait for the device
        self._unread.append(_Unread(self.progress.step, self.progress.position, first_sample, sums, norm))

    @property
    def full(self) -> bool:
        """Whether :meth:`read` must be called now, or ``limit`` bad steps could pass unseen."""
        return len(self._unread) >= self.limit

    def read(self) -> Losses:
        """Judge the steps that were not read yet, in their order. Every rank must call this.

        Returns:
            The newest step's losses.

        Raises:
            EgmfError: ``limit`` steps in a row were not finite; names the last of them.
        """
        steps, self._unread = self._unread, []
        if steps:
            sums_S3 = torch.stack([s.sums for s in steps])
            norm_S = torch.stack([torch.as_tensor(s.grad_norm).to(sums_S3) for s in steps])
            distributed.sum_on_device(sums_S3)
            for s, (answer, auxiliary, total, norm) in zip(
                steps, torch.cat([sums_S3, norm_S[:, None]], 1).tolist(), strict=True
            ):
                self._last = Losses(s.step, s.position, s.first_sample, answer, auxiliary, total, norm)
                note_non_finite(self.progress, self._last, self.limit, self.records)
        assert self._last is not None
        return self._last


def note_non_finite(progress: Progress, losses: Losses, limit: int, records: Records) -> None:
    """Count a step whose loss or gradient is not finite (DeepSpeed skips it), and stop when they do not end.

    Args:
        progress: its counts of skipped steps go up.
        losses: of the step.
        limit: how many in a row are too many.
        records: gets a warning.

    Raises:
        EgmfError: ``limit`` of them in a row.
    """
    if (
        all(map(math.isfinite, (losses.answer, losses.auxiliary, losses.total, losses.grad_norm)))
        and losses.grad_norm >= 0
    ):
        progress.skipped_in_a_row = 0
        return
    progress.skipped += 1
    progress.skipped_in_a_row += 1
    message = (
        f"step {losses.step} was skipped: its loss or gradient is not finite ({progress.skipped} so far); "
        f"its global batch ends at position {losses.position}, rank 0's part begins with sample {losses.first_sample}"
    )
    records.write({"kind": "warning", "step": losses.step, "message": message})
    if progress.skipped_in_a_row >= limit:
        raise EgmfError(
            f"training: {limit} steps in a row up to step {losses.step} had a non-finite loss or gradient; "
            "lower training.learning_rate, or look for non-finite features with: egmf shards info DIR"
        )


def note_bad(new: list[BadSlot], progress: Progress, records: Records) -> None:
    """Say which samples of the step could not be read."""
    for bad in new[:MOST_NAMED]:
        message = f"a sample could not be read and counts 0 ({progress.bad} so far): {bad.reason}"
        records.write({"kind": "warning", "step": progress.step + 1, "message": message})
    if len(new) > MOST_NAMED:
        message = f"{len(new) - MOST_NAMED} more samples of this step could not be read"
        records.write({"kind": "warning", "step": progress.step + 1, "message": message})
