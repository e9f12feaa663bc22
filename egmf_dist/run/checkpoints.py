"""What checkpoints a run has, which of them are sound, and which one a start goes on from.

Nothing here reads weights but to hash their files, so none of it imports torch: what a launcher, a rank and
``egmf runs show`` are told is told by the same functions. Writing and loading are :mod:`egmf_dist.training.saver`'s and
:mod:`egmf_dist.training.checkpoint`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from egmf_dist.errors import EgmfError
from egmf_dist.formats import DamagedError, read_stamped
from egmf_dist.run.folder import Run, checkpoint_name, named_checkpoint, step_of
from egmf_dist.run.identity import Identity
from egmf_dist.run.records import read_records
from egmf_shards.checksums import sha256

RECORD = "checkpoint.json"
WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """Where a run stands; everything that a resumed run must know beside the weights."""

    step: int = 0
    """Optimiser steps done."""
    position: int = 0
    """Samples consumed over the whole run."""
    best_score: float | None = None
    best_step: int = 0
    without_improvement: int = 0
    validated: int = 0
    """Step of the last validation that was not broken off."""
    skipped: int = 0
    """Steps skipped for non-finite gradients."""
    skipped_in_a_row: int = 0
    bad: int = 0
    """Samples that could not be read."""
    bad_in_a_row: int = 0
    bad_in_epoch: int = 0
    prompts_cut: int = 0
    """Prompts that were too long."""
    prompt_tokens_cut: int = 0
    """Tokens they lost."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Progress:
        """From a checkpoint of any version: a counter it lacks is 0, one that is gone is passed over."""
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})


class State(NamedTuple):
    """What all ranks' pieces have in common; JSON-able as a dictionary."""

    adamw_steps: int
    """Skipped steps do not raise it; 0: there are no moments yet."""
    ranks: int
    """That wrote it, a file each."""
    shapes: dict[str, list[int]]
    """Of the trained parameters, by name."""
    counters: dict[str, int]

    @property
    def kinds(self) -> tuple[str, ...]:
        """What there is of each parameter."""
        return (WEIGHT, *MOMENTS) if self.adamw_steps else (WEIGHT,)


class Record(NamedTuple):
    """What a checkpoint says of itself."""

    progress: Progress
    identity: Identity
    state: State
    standardisations: dict[str, Any] | None
    """By what statistics features were standardised; None in checkpoints that do not say so."""
    sha256: dict[str, str]
    """Hashes of its files, by path."""


class Found(NamedTuple):
    """The checkpoint that a start goes on from."""

    folder: Path
    record: Record
    skipped: list[str]
    """Newer ones that were passed over, and why, a sentence each."""


def read_record(checkpoint: Path) -> Record:
    """What a checkpoint says of itself.

    Raises:
        DamagedError: it cannot be read.
        EgmfError: a later version wrote it, or one of before that kept DeepSpeed's own files.
    """
    path = checkpoint / RECORD
    record = read_stamped(path)
    if "progress" in record and "state" not in record:
        raise EgmfError(
            f"{checkpoint}: an earlier egmf-dist wrote it, as DeepSpeed's pickled files for one number of ranks, which "
            "are not read any more; end the run with that version, or start a new one"
        )
    try:
        hashes = {str(name): str(digest) for name, digest in record["sha256"].items()}
        progress, identity = Progress.from_json(record["progress"]), Identity.from_json(record["identity"], path)
        return Record(progress, identity, State(**record["state"]), record.get("standardisations"), hashes)
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged (it lacks {error})") from error


def verify(checkpoint: Path) -> None:
    """Compare every file of a checkpoint with its hash.

    Raises:
        DamagedError: names the first that is missing, damaged, or not given by the system.
    """
    for name, digest in read_record(checkpoint).sha256.items():
        path = checkpoint / name
        try:
            found = sha256(path)
        except FileNotFoundError as error:
            raise DamagedError(f"{path} is missing") from error
        except OSError as error:  # a bad sector, another owner: an earlier checkpoint may be whole
            raise DamagedError(f"{path} cannot be read ({error.strerror or error})") from error
        if found != digest:
            raise DamagedError(f"{path} is damaged (its hash is not the one in {RECORD})")


def find_checkpoint(
    run: Run, resume: str, launch: str | None = None, check: Callable[[Path], None] | None = verify
) -> Found | None:
    """The checkpoint that a start goes on from, or None where it begins at step 0.

    Args:
        run: the run.
        resume: ``auto`` is the newest sound one that is no later than what ``latest.json`` names (None where there is
            no checkpoint at all), a step, name or path that one, ``never`` None.
        launch: this launch's token. If it stands in ``latest.json``, the workers of this launch were started again
            after they had gone on or saved, and go on from there whatever ``resume`` says.
        check: raises DamagedError for a checkpoint whose files are not as its record says; None: records alone are
            read.

    Raises:
        EgmfError: the path given is no sound checkpoint of this run; or checkpoints are there and not one is sound, or
            none is there and the run has had one: a run does not begin anew without a word.
    """
    pointed = _pointed(run)
    if launch is not None and pointed is not None and pointed.get("launch") == launch:
        resume = "auto"
    if resume == "never":
        _check_not_lost(run)  # a launch that began the run is started again, and has saved since
        return None
    path = named_checkpoint(run, resume)
    if path is not None:
        try:
            return _sound(path, check, [])
        except DamagedError as error:
            raise EgmfError(f"--resume {resume}: {error}; give another one, or auto") from error
    saved = run.saved_checkpoints()
    skipped = []
    newest = max(saved, default=0)
    if pointed is not None:
        name = str(pointed.get("checkpoint"))
        step = step_of(name)
        newest = newest if step is None else step
        if newest not in saved:
            skipped.append(f"checkpoint {run.checkpoints / name} is missing")
    elif saved or os.path.lexists(run.latest):
        skipped.append(f"{run.latest} cannot be read, so the newest checkpoint is looked for")
    for step in sorted((s for s in saved if s <= newest), reverse=True):
        try:
            return _sound(saved[step], check, skipped)
        except DamagedError as error:
            skipped.append(f"checkpoint {checkpoint_name(step)} was passed over: {error}")
    if skipped:
        raise EgmfError(
            f"run {run}: no sound checkpoint to go on from: {'; '.join(skipped)}; "
            "put one back from a copy, give one with --resume STEP, or start a new run"
        )
    _check_not_lost(run)
    return None


def steps_before_a_checkpoint(run: Run) -> int:
    """How many steps a run without checkpoints has on record: a start repeats them."""
    return max((r["step"] for r in _records(run) if isinstance(r.get("step"), int)), default=0)


def _check_not_lost(run: Run) -> None:
    """Refuse to begin a run anew, over its records and its best adapter, where only its checkpoints are gone.

    An adapter alone says nothing: a run that was killed after its first validation had no checkpoint yet.

    Raises:
        EgmfError: there is none, and the run has had one.
    """
    if run.saved_checkpoints():
        return
    records, tells = _records(run), None
    for record in records:
        step, kind = record.get("step"), record.get("kind")
        # A start after step 0 went on from one, and an end has saved what was done.
        if isinstance(step, int) and (kind == "checkpoint" or (kind in ("start", "end") and step > 0)):
            tells = f"{run.metrics.name} tells of one at step {step}"
    if tells is None and not any(r.get("kind") == "start" for r in records) and os.path.lexists(run.best):
        tells = f"{run.best.relative_to(run.folder)} names an adapter, and no record says that none was saved"
    if tells is not None:
        raise EgmfError(
            f"run {run}: its checkpoints are gone ({run.checkpoints} holds none, and {tells}); "
            "put that folder back from a copy, or start a new run under another name with --run"
        )


def _records(run: Run) -> list[dict[str, Any]]:
    return read_records(run.metrics) if run.metrics.is_file() else []


def _pointed(run: Run) -> dict[str, Any] | None:
    try:
        return read_stamped(run.latest)
    except DamagedError:
        return None


def _sound(checkpoint: Path, check: Callable[[Path], None] | None, skipped: list[str]) -> Found:
    record = read_record(checkpoint)
    if check is not None:
        check(checkpoint)
    return Found(checkpoint, record, skipped)
