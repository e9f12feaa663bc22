"""How a run stands, read from its folder: nothing is written, no lock is asked for, torch is not imported.

Which checkpoint a resume would take is asked of the function that a resume asks (:func:`.checkpoints.find_checkpoint`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egmf_dist.config import load_run_config
from egmf_dist.errors import EgmfError
from egmf_dist.files import set_aside
from egmf_dist.formats import TRAINED_FILE, DamagedError, read_stamped
from egmf_dist.run.adapters import read_best
from egmf_dist.run.checkpoints import find_checkpoint, read_record, steps_before_a_checkpoint, verify
from egmf_dist.run.folder import Run, step_of
from egmf_dist.run.lock import Seen, look
from egmf_dist.run.records import TOLD_TO_STOP, ended, last_start_or_end, read_records
from egmf_shards.checksums import sha256

RUNNING, STOPPING, STOPPED, FINISHED, DIED, NEW = "running", "stopping", "told to stop", "finished", "died", "not begun"
_DEPTH = 3
"""How many folders deep runs are looked for below a folder of runs."""


@dataclass(frozen=True)
class Kept:
    """A checkpoint, or the best adapter."""

    step: int
    bytes: int
    sound: bool | None
    """None: its files were not compared with their hashes."""
    says: str
    """What is wrong with it, or how sound was found out."""
    ranks: int | None = None
    """How many wrote the checkpoint."""
    score: float | None = None
    """The adapter's in validation."""
    selected_by: str | None = None
    """What that score is."""


@dataclass(frozen=True)
class Resume:
    """What ``--resume auto`` would do now."""

    possible: bool
    step: int | None
    """Steps done where it goes on; 0 at the start; None where it is refused."""
    says: str
    passed_over: tuple[str, ...] = ()
    """Newer checkpoints, and why."""


@dataclass(frozen=True)
class Status:
    """A run."""

    run: str
    state: str
    """One of running, stopping, told to stop, finished, died, not begun."""
    says: str
    """How that is known."""
    step: int | None
    """Of the last record."""
    steps: int | None
    """How many the settings ask for."""
    logged_step: int | None
    """Of the last record that has a loss."""
    loss: float | None
    """Its loss; None where that was not finite, too."""
    checkpoints: tuple[Kept, ...]
    unfinished: tuple[str, ...]
    """Folders of checkpoints being written, or left over by a kill."""
    best: Kept | None
    resume: Resume
    bytes: int
    """All its files, one with several names counted once."""


class _AsStarted(Run):
    """A run as a start finds it, which first gives folders back that a killed writer had moved aside."""

    def saved_checkpoints(self) -> dict[int, Path]:
        """The folders of checkpoints by step, under whatever name they are now."""
        back = {step_of(final.name): aside for final, aside in set_aside(self.checkpoints).items()}
        found = super().saved_checkpoints() | {step: path for step, path in back.items() if step is not None}
        return dict(sorted(found.items()))


class _Once:
    """:func:`.checkpoints.verify` that reads each checkpoint once."""

    def __init__(self) -> None:
        self._found: dict[Path, DamagedError | None] = {}

    def __call__(self, checkpoint: Path) -> None:
        if checkpoint not in self._found:
            self._found[checkpoint] = None
            try:
                verify(checkpoint)
            except DamagedError as error:
                self._found[checkpoint] = error
        found = self._found[checkpoint]
        if found is not None:
            raise found


def find_runs(folder: Path) -> list[Run]:
    """The run in a folder, or the runs below it, by name.

    Raises:
        EgmfError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise EgmfError(f"{folder}: no such folder; give a run's, such as runs/NAME, or one of runs")
    found = list(_runs_below(folder, _DEPTH))
    if not found:
        raise EgmfError(f"{folder}: holds no run (no {Run(folder).config.name} in it or below); give another folder")
    return found


def _runs_below(folder: Path, depth: int) -> Iterator[Run]:
    if Run(folder).config.is_file():
        yield Run(folder)
    elif depth:
        for below in sorted(folder.iterdir()):
            if below.is_dir() and not below.name.startswith("."):
                yield from _runs_below(below, depth - 1)


def read_status(run: Run, hashes: bool = True) -> Status:
    """How a run stands.

    Args:
        run: the run; a training may be at work in it.
        hashes: compare the files of checkpoints and of the best adapter with their hashes.
    """
    check = _Once() if hashes else None
    seen = look(run)
    records = read_records(run.metrics) if run.metrics.is_file() else []
    state, says = _state(run, seen, records)
    steps, complaint = None, None
    try:
        steps = load_run_config(run.config).training.steps
    except EgmfError as error:
        complaint = str(error)
    logged: dict[str, Any] = next((r for r in reversed(records) if r.get("kind") == "train"), {})
    resume = _resume(run, check, steps)
    if complaint is not None:
        resume = Resume(False, None, complaint)
    elif state in (RUNNING, STOPPING):
        resume = Resume(False, resume.step, f"refused while it is trained; else: {resume.says}", resume.passed_over)
    return Status(
        run=str(run),
        state=state,
        says=says,
        step=max((r["step"] for r in records if isinstance(r.get("step"), int)), default=None),
        steps=steps,
        logged_step=logged.get("step"),
        loss=logged.get("loss"),
        checkpoints=tuple(_checkpoints(run, check)),
        unfinished=tuple(sorted(path.name for path in run.checkpoints.glob(".step-*.tmp"))),
        best=_best(run, hashes),
        resume=resume,
        bytes=bytes_of(run.folder),
    )


def _state(run: Run, seen: Seen | None, records: list[dict[str, Any]]) -> tuple[str, str]:
    if seen is not None and seen.alive:
        with contextlib.suppress(DamagedError):
            note = read_stamped(run.stop)
            if note.get("launch") == seen.launch:
                return STOPPING, f"{seen.who} was told to stop by {note.get('signal')} and saves first ({seen.why})"
        return RUNNING, f"{seen.who} trains it ({seen.why})"
    held = f"; {seen.who} held it and did not give it back ({seen.why})" if seen is not None else ""
    if not records:
        return (DIED, f"before its first record{held}") if held else (NEW, "it has no record yet")
    if not ended(records):
        return DIED, f"its records stop without an end: it was killed, or met an error{held}"
    reason = str(last_start_or_end(records).get("reason"))
    return (STOPPED if reason.startswith(TOLD_TO_STOP) else FINISHED), f"{reason}{held}"


def _resume(run: Run, check: _Once | None, steps: int | None) -> Resume:
    started = _AsStarted(run.folder)
    try:
        found = find_checkpoint(started, "auto", check=check)
    except (EgmfError, OSError) as error:
        return Resume(False, None, str(error))
    if found is None:
        done = steps_before_a_checkpoint(run)
        again = f", and what was done up to step {done} is done again" if done else ""
        return Resume(True, 0, f"begins at step 0: it has no checkpoint yet{again}")
    step = found.record.progress.step
    how = "every hash is right" if check is not None else "its files were not hashed"
    why = f"the newest sound checkpoint; {how}" if found.skipped else f"{run.latest.name} names it; {how}"
    if found.folder.name.startswith("."):
        why += f"; a killed save had moved it aside, and a start names {found.folder.name} again"
    if steps is not None and step >= steps:
        why += f"; all {steps} steps are done, so nothing is left without more --training.steps"
    return Resume(True, step, f"goes on after step {step}: {why}", tuple(found.skipped))


def _checkpoints(run: Run, check: _Once | None) -> Iterator[Kept]:
    for step, path in _AsStarted(run.folder).saved_checkpoints().items():
        ranks, sound, says = None, None, "not hashed"
        try:
            ranks = read_record(path).state.ranks
            if check is not None:
                check(path)
                sound, says = True, "every hash is right"
        except (EgmfError, OSError) as error:
            sound, says = False, str(error)
        if path.is_dir():  # else a training has removed it meanwhile
            yield Kept(step, bytes_of(path), sound, says, ranks)


def _best(run: Run, hashes: bool) -> Kept | None:
    if not run.best.exists():
        return None
    step, size = 0, 0
    try:
        folder, description = read_best(run)
        step, size = step_of(folder.name) or 0, bytes_of(folder)
        found = {"score": description.get("score"), "selected_by": description.get("selected_by")}
        if not hashes:
            return Kept(step, size, None, "not hashed", **found)
        if not (folder / TRAINED_FILE).is_file():
            return Kept(step, size, False, f"{folder / TRAINED_FILE} is missing", **found)
        right = sha256(folder / TRAINED_FILE) == description.get("sha256")
        says = "its hash is right" if right else f"{folder / TRAINED_FILE} is damaged (another hash than written down)"
        return Kept(step, size, right, says, **found)
    except (EgmfError, OSError) as error:
        return Kept(step, size, False, str(error))


def bytes_of(folder: Path) -> int:
    """Bytes of all files below a folder; one with several names counts once, one that goes meanwhile does not."""
    seen: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(place, name))
                seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())
