"""Checkpoints: complete or invisible, verified by hash, with position and random state.

A checkpoint is written into a hidden folder, put on the disk, hashed, renamed, and only then pointed to by
``latest.json`` (:mod:`.saver`); whatever dies on the way, the power included, leaves the previous one in force. It
holds what training changes, by parameter name (:mod:`.pieces`), so any number of ranks and any ZeRO stage goes on from
it; the frozen backbone is named, not copied.

``latest.json`` also says which launch moved it last. A group of workers that is started again within a launch goes on
from there if its launch has moved the pointer, and else does what the launch was told: so an explicit checkpoint is
kept through restarts, and nothing that another launch left behind is taken for a restart.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from egmf_dist import distributed
from egmf_dist.engine import Engine
from egmf_dist.errors import EgmfError
from egmf_dist.files import remove_folder, write_json
from egmf_dist.formats import DamagedError, read_stamped, stamped
from egmf_dist.model.adapter import point_to_best
from egmf_dist.run.folder import Run, checkpoint_name, named_checkpoint, step_of
from egmf_dist.run.identity import Identity, check_identity
from egmf_dist.run.lock import check_held
from egmf_dist.training.pieces import State, put_pieces, put_random_state
from egmf_shards.checksums import sha256

RECORD = "checkpoint.json"


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


class Resumed(NamedTuple):
    """Where a start goes on."""

    progress: Progress
    said: list[str]
    """What a person must know of it, a sentence each."""


def point_to(run: Run, step: int, launch: str | None) -> None:
    """Make the checkpoint of ``step`` the one to go on from."""
    write_json(run.latest, stamped({"checkpoint": checkpoint_name(step), "launch": launch}))


def prune(run: Run, step: int, keep: int) -> None:
    """Remove what a run that stands at ``step`` no longer needs.

    Checkpoints after ``step`` are of a timeline that was given up by resuming from an earlier one; of the others the
    newest ``keep`` stay. Adapters stay that a kept checkpoint calls its best: a resume from it must find them.
    """
    checkpoints = run.saved_checkpoints()
    kept = sorted(s for s in checkpoints if s <= step)[-keep:]
    best, known = set(), True
    for s in kept:
        try:
            best.add(checkpoint_name(read_record(checkpoints[s]).progress.best_step))
        except DamagedError:
            known = False  # which adapter it needs cannot be told: none goes
    stale = [path for s, path in checkpoints.items() if s not in kept]
    if known:
        stale += [path for path in run.adapters.glob("step-*") if path.name not in best]
    for path in stale:
        remove_folder(path)


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


def find_checkpoint(run: Run, resume: str, launch: str | None = None, hashes: bool = True) -> Found | None:
    """The checkpoint that a start goes on from, or None where it begins at step 0.

    Args:
        run: the run.
        resume: ``auto`` is the newest sound one that is no later than what ``latest.json`` names (None where there is
            no checkpoint at all), a step, name or path that one, ``never`` None.
        launch: this launch's token. If it stands in ``latest.json``, the workers of this launch were started again
            after they had gone on or saved, and go on from there whatever ``resume`` says.
        hashes: compare files with their hashes; without, only records are read.

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
            return _sound(path, hashes, [])
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
            return _sound(saved[step], hashes, skipped)
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


def _sound(checkpoint: Path, hashes: bool, skipped: list[str]) -> Found:
    record = read_record(checkpoint)
    if hashes:
        verify(checkpoint)
    return Found(checkpoint, record, skipped)


def load_checkpoint(
    engine: Engine, run: Run, resume: str, identity: Identity, launch: str | None = None
) -> Resumed | None:
    """Restore engine and random state; None where there is nothing to resume. Every rank must call this.

    ``latest.json`` and ``best.json`` then name this checkpoint and its adapter, so that what goes on from it later does
    not go on from a timeline that was given up.

    Raises:
        EgmfError: on every rank alike, if the checkpoint is missing, damaged, or another run's or model's.
    """

    def choose() -> Found | None:
        found = find_checkpoint(run, resume, launch)
        if found is not None:
            check_identity(found.record.identity, identity, f"checkpoint {found.folder}")
        return found

    found: Found | None = distributed.on_rank_zero(choose)
    if found is None:
        return None
    record = found.record
    put_pieces(engine, record.state, found.folder)
    put_random_state(found.folder, identity.seed, record.progress.step, record.state.ranks)

    def rewind() -> None:
        check_held(run, launch)
        point_to(run, record.progress.step, launch)
        point_to_best(run, record.progress.best_step)

    distributed.on_rank_zero(rewind)
    said, ranks = list(found.skipped), distributed.world_size()
    if record.state.ranks != ranks:
        said.append(
            f"checkpoint {found.folder.name} was made with {record.state.ranks} ranks, and {ranks} go on: the same "
            "global batches; dropout draws other numbers"
        )
    return Resumed(record.progress, said)
