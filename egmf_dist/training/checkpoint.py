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

import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from egmf_dist import distributed
from egmf_dist.engine import Engine
from egmf_dist.files import remove_folder, write_json
from egmf_dist.formats import DamagedError, read_stamped, sealed
from egmf_dist.model.adapter import point_to_best
from egmf_dist.run.checkpoints import Found, Progress, find_checkpoint, read_record, steps_before_a_checkpoint
from egmf_dist.run.folder import Run, checkpoint_name
from egmf_dist.run.identity import Identity, check_identity
from egmf_dist.run.lock import check_held
from egmf_dist.training.pieces import put_pieces, put_random_state


class Resumed(NamedTuple):
    """Where a start goes on."""

    progress: Progress
    said: list[str]
    """What a person must know of it, a sentence each."""


def point_to(run: Run, step: int, launch: str | None) -> None:
    """Make the checkpoint of ``step`` the one to go on from; this launch has moved the pointer then."""
    write_json(run.latest, sealed({"checkpoint": checkpoint_name(step), "launch": launch}))


def prune(run: Run, step: int, keep: int, given_up: Collection[int] = ()) -> None:
    """Remove what a run that stands at ``step`` no longer needs: among others checkpoints that are ``given_up``.

    Checkpoints after ``step`` are of a timeline that was given up by resuming from an earlier one; of the others the
    newest ``keep`` stay. Adapters stay that a kept checkpoint calls its best: a resume from it must find them; and so
    does the run's best, which may be newer than the checkpoint that was written beside the training.
    """
    checkpoints = run.saved_checkpoints()
    kept = sorted(s for s in checkpoints if s <= step and s not in given_up)[-keep:]
    best, known = set(), True
    for s in kept:
        try:
            best.add(checkpoint_name(read_record(checkpoints[s]).progress.best_step))
        except DamagedError:
            known = False  # which adapter it needs cannot be told: none goes
    try:
        best.add(str(read_stamped(run.best).get("adapter")) if run.best.exists() else "")
    except DamagedError:
        known = False
    stale = [path for s, path in checkpoints.items() if s not in kept]
    if known:
        stale += [path for path in run.adapters.glob("step-*") if path.name not in best]
    for path in stale:
        remove_folder(path)


def _named(pointer: Path, what: str) -> str | None:
    """What a pointer names; None where it names nothing."""
    try:
        return str(read_stamped(pointer).get(what)) if os.path.lexists(pointer) else None
    except DamagedError:
        return ""  # something that has to go


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
        step, best_step = record.progress.step, record.progress.best_step
        # A full disk is no reason not to go on from what the pointers name already.
        try:
            point_to(run, step, launch)
        except OSError:
            if _named(run.latest, "checkpoint") != checkpoint_name(step):
                raise
        if _named(run.best, "adapter") != (checkpoint_name(best_step) if best_step else None):
            point_to_best(run, best_step)

    distributed.on_rank_zero(rewind)
    said, ranks = list(found.skipped), distributed.world_size()
    if record.state.ranks != ranks:
        said.append(
            f"checkpoint {found.folder.name} was made with {record.state.ranks} ranks, and {ranks} go on: the same "
            "global batches; dropout draws other numbers"
        )
    return Resumed(record.progress, said)


def begun_anew(run: Run) -> Resumed:
    """Step 0, where :func:`load_checkpoint` found nothing; every rank must call this.

    That steps are repeated is said: a run that was killed before its first checkpoint has records that go.
    """
    done: int = distributed.on_rank_zero(lambda: steps_before_a_checkpoint(run))
    said = f"step {done} was reached before a first checkpoint was saved: training begins anew at step 0"
    return Resumed(Progress(), [said] if done else [])
