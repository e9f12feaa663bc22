"""What a run does about samples that cannot be read: ``strict``, ``skip`` or ``quarantine``.

A bad sample keeps its position with weight 0 and is never replaced, so the sequence of global batches is that of a
sound folder. Every rank learns of every bad sample in the step that meets it, so that all count alike, and stop
together when there are too many.

* ``strict``: the first one stops the run.
* ``skip``: counted, said, weight 0. It is tried again in the next epoch.
* ``quarantine``: also written to ``quarantine.jsonl`` in the run's folder and not used again in this run, even where
  it can be read by then.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from egmf_dist import distributed
from egmf_dist.config import DataConfig
from egmf_dist.data.loader import Step
from egmf_dist.errors import EgmfError
from egmf_dist.files import WaitingLines, write_json_lines
from egmf_dist.run.folder import Run
from egmf_shards import BadSlot


class Counts(Protocol):
    """The counters of a run's progress, which checkpoints keep."""

    position: int
    bad: int
    bad_in_a_row: int
    bad_in_epoch: int


class BadSamples:
    """One run's account of bad samples; the same on every rank.

    Args:
        config: the policy and its budget.
        run: the run.
        epoch: samples of one epoch.
        global_batch: samples of a step.
        counts: where the run stands; counted up here.
    """

    def __init__(self, config: DataConfig, run: Run, epoch: int, global_batch: int, counts: Counts) -> None:
        self.config, self.path, self.epoch, self.global_batch, self.counts = (
            config,
            run.quarantine,
            epoch,
            global_batch,
            counts,
        )
        self.allowed = config.max_bad_fraction * epoch
        self.quarantined: set[int] = set()
        self._lines = WaitingLines(self.path)
        if config.bad_samples == "quarantine":
            self.quarantined = set(distributed.on_rank_zero(self._resume))

    def _resume(self) -> list[int]:
        """Sample numbers set aside so far; lines after the checkpoint go: their steps are about to be repeated."""
        lines = [line for line in read_quarantine(self.path) if line["position"] < self.counts.position]
        if self.path.exists():
            write_json_lines(self.path, lines)
        return [int(line["sample"]) for line in lines]

    def leave_out(self, step: Step) -> None:
        """Give this rank's samples that are in quarantine weight 0, in place."""
        for batch, slots in zip(step.batches, step.slots, strict=True):
            for b, slot in enumerate(slots):
                if slot.index in self.quarantined:
                    batch.weight_B[b] = 0.0

    def take(self, step: Step, number: int) -> list[BadSlot]:
        """Count the step's bad samples. Every rank must call this.

        Args:
            step: this rank's part of the global batch at ``counts.position``.
            number: of bad samples in the whole global batch; most have none, and then no rank hears of another.

        Returns:
            On every rank, the global batch's newly met bad samples, in the order of their positions.

        Raises:
            EgmfError: on every rank, more of them than the budget allows.
        """
        if self.config.bad_samples == "strict":
            return []
        met = sorted(distributed.share_objects(step.bad), key=lambda bad: bad.slot.position) if number else []
        new = [bad for bad in met if bad.slot.index not in self.quarantined]
        if self.config.bad_samples == "quarantine" and new:
            # A global batch longer than an epoch meets a sample twice; the first time sets it aside.
            first = {bad.slot.index: bad for bad in reversed(new)}
            new = sorted(first.values(), key=lambda bad: bad.slot.position)
            self.quarantined |= first.keys()
            distributed.on_rank_zero(lambda: self._lines.append("".join(map(quarantine_line, new))))
        longest, most = self._count(new)
        self._check(new, longest, max(most, len(self.quarantined)))
        return new

    def _count(self, new: Iterable[BadSlot]) -> tuple[int, int]:
        """Go through the global batch's positions in order, so that every cut into ranks counts alike.

        Returns:
            The longest row of bad samples, and the most of one epoch, that this global batch has seen.
        """
        counts, bad = self.counts, {b.slot.position for b in new}
        longest = most = 0
        counts.bad += len(bad)
        for position in range(counts.position, counts.position + self.global_batch):
            if position % self.epoch == 0:
                counts.bad_in_epoch = 0
            counts.bad_in_epoch += position in bad
            counts.bad_in_a_row = counts.bad_in_a_row + 1 if position in bad else 0
            longest, most = max(longest, counts.bad_in_a_row), max(most, counts.bad_in_epoch)
        return longest, most

    def _check(self, new: list[BadSlot], longest: int, most: int) -> None:
        config = self.config
        if longest >= config.max_bad_in_a_row:
            reason = f"{longest} samples in a row (data.max_bad_in_a_row)"
        elif most > self.allowed:
            share = f"{config.max_bad_fraction:g} of {self.epoch}"
            reason = f"{most} samples of one epoch, more than {share} (data.max_bad_fraction),"
        else:
            return
        last = new[-1].reason if new else "see the warnings before"
        raise EgmfError(f"data: {reason} could not be read; the last: {last}. Look at all: egmf shards verify DIR")


def read_quarantine(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``quarantine.jsonl``; none where there is no such file."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            found = json.loads(line)
            lines.append(found | {"position": int(found["position"]), "sample": int(found["sample"])})
        except (ValueError, TypeError, KeyError):
            break  # a kill cut the last line short
    return lines


def quarantine_line(bad: BadSlot) -> str:
    """``position``, ``epoch``, ``sample`` (its number), ``key``, ``reason``."""
    line = {"position": bad.slot.position, "epoch": bad.slot.epoch, "sample": bad.slot.index}
    return json.dumps(line | {"key": bad.key, "reason": bad.reason}, ensure_ascii=False) + "\n"
