"""What checkpoints a run has, which of them are sound, and which one a start goes on from.

Nothing here reads weights but to hash their files, so none of it imports torch: what a launcher, a rank and
``egmf runs show`` are told is told by the same functions. Writing and loading are :mod:`egmf_dist.training.saver`'s and
:mod:`egmf_dist.training.checkpoint`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from egmf_dist.errors import EgmfError
from egmf_dist.formats import DamagedError, read_stamped
from egmf_dist.run.folder import Run, checkpoint_name, named_checkpoint, step_of
from egmf_dist.run.identity import Identity
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
        DamagedError: names the first that is missing or damaged.
    """
    for name, digest in read_record(checkpoint).sha256.items():
        path = checkpoint / name
        if not path.is_file():
            raise DamagedError(f"{path} is missing")
        if sha256(path) != digest:
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
        EgmfError: the path given is no sound checkpoint of this run; or checkpoints are there and not one is sound: a
            run does not begin anew without a word.
    """
    pointed = _pointed(run)
    if launch is not None and pointed is not None and pointed.get("launch") == launch:
        resume = "auto"
    if resume == "never":
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
    elif saved or run.latest.exists():
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
    return None


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
