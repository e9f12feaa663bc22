"""Checkpoints: complete or invisible, verified by hash, with position and random state; and the best adapter so far.

A checkpoint is written into a hidden folder, hashed, renamed, and only then pointed to by ``latest.json``; whatever
dies on the way leaves the previous one in force. DeepSpeed writes the partitions (trained weights and optimiser; the
frozen backbone is named, not copied).
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from egmf_dist import distributed
from egmf_dist.errors import EgmfError
from egmf_dist.files import sha256, write_json
from egmf_dist.model.build import TRAINED_FILE, trained_parameters

STATE = "state"
RECORD = "checkpoint.json"
LATEST = "latest.json"
BEST = "best.json"


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
    skipped: int = 0
    """Steps skipped for non-finite gradients."""
    skipped_in_a_row: int = 0
    bad: int = 0
    """Samples that could not be read."""
    bad_in_a_row: int = 0
    bad_in_epoch: int = 0


def checkpoint_name(step: int) -> str:
    """Folder of the checkpoint taken after ``step`` steps."""
    return f"step-{step:07d}"


def save_checkpoint(engine: Any, run: Path, progress: Progress, identity: dict[str, Any], keep: int) -> None:
    """Write a checkpoint; every rank must call this.

    Args:
        engine: DeepSpeed's.
        run: the run's folder, shared by all ranks.
        progress: where the run stands.
        identity: what a resume must agree with (world size, data, backbone).
        keep: how many checkpoints stay.
    """
    folder = run / "checkpoints"
    final, temporary = folder / checkpoint_name(progress.step), folder / f".{checkpoint_name(progress.step)}.tmp"

    def prepare() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    distributed.on_rank_zero(prepare)
    engine.save_checkpoint(str(temporary), tag=STATE, save_latest=False, exclude_frozen_parameters=True)
    random_state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random_state["cuda"] = torch.cuda.get_rng_state()
    save_file(random_state, temporary / f"random-{distributed.rank():05d}.safetensors")
    distributed.barrier()

    def publish() -> None:
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        hashes = {str(p.relative_to(temporary)): sha256(p) for p in files}
        write_json(temporary / RECORD, {"progress": progress.__dict__, "identity": identity, "sha256": hashes})
        replace_folder(temporary, final)
        write_json(folder / LATEST, {"checkpoint": final.name})
        prune(run, progress.step, keep)

    distributed.on_rank_zero(publish)


def replace_folder(temporary: Path, final: Path) -> None:
    """Rename a finished folder into place; one of the same name is moved aside first and removed last."""
    aside = final.with_name(f".{final.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        os.rename(final, aside)
    os.rename(temporary, final)
    shutil.rmtree(aside, ignore_errors=True)


def prune(run: Path, step: int, keep: int) -> None:
    """Remove what a run that stands at ``step`` no longer needs.

    Checkpoints after ``step`` are of a timeline that was given up by resuming from an earlier one; of the others the
    newest ``keep`` stay. Adapters stay that a kept checkpoint calls its best: a resume from it must find them.
    """
    checkpoints = {int(p.name.removeprefix("step-")): p for p in (run / "checkpoints").glob("step-*")}
    kept = sorted(s for s in checkpoints if s <= step)[-keep:]
    best = {checkpoint_name(recorded_progress(checkpoints[s]).best_step) for s in kept}
    stale = [path for s, path in checkpoints.items() if s not in kept]
    stale += [path for path in (run / "best").glob("step-*") if path.name not in best]
    for path in stale:
        shutil.rmtree(path)


def recorded_progress(checkpoint: Path) -> Progress:
    """The progress a checkpoint was written at."""
    return Progress(**json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))["progress"])


def find_checkpoint(run: Path, resume: str) -> Path | None:
    """The checkpoint a resume means.

    ``auto`` means the newest (None where there is none yet), a path that one, ``never`` None.

    Raises:
        EgmfError: a path was given and is no complete checkpoint.
    """
    if resume == "never":
        return None
    if resume == "auto":
        pointer = run / "checkpoints" / LATEST
        if not pointer.is_file():
            return None
        found = pointer.parent / str(json.loads(pointer.read_text(encoding="utf-8"))["checkpoint"])
    else:
        found = Path(resume)
        if (run / "checkpoints").resolve() != found.resolve().parent:
            raise EgmfError(f"resume {found}: not a checkpoint of run {run}; give {run}/checkpoints/step-N or auto")
    if not (found / RECORD).is_file():
        raise EgmfError(
            f"resume {found}: no complete checkpoint there ({RECORD} is missing); "
            "give runs/NAME/checkpoints/step-N or auto"
        )
    return found


def read_record(checkpoint: Path, identity: dict[str, Any]) -> Progress:
    """Verify a checkpoint's files and that it belongs to this run.

    Raises:
        EgmfError: a file is missing or damaged, or the checkpoint was made under another identity; names the
            difference.
    """
    record = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))
    for name, digest in record["sha256"].items():
        path = checkpoint / name
        if not path.is_file() or sha256(path) != digest:
            state = "is damaged" if path.is_file() else "is missing"
            raise EgmfError(f"checkpoint {checkpoint}: {name} {state}; resume from another one with --resume PATH")
    for key, value in identity.items():
        if record["identity"].get(key) != value:
            raise EgmfError(
                f"checkpoint {checkpoint}: made with {key} {record['identity'].get(key)!r}, this run has {value!r}; "
                "resume with what it was made with, or start a new run"
            )
    return Progress(**record["progress"])


def load_checkpoint(engine: Any, run: Path, resume: str, identity: dict[str, Any]) -> Progress | None:
    """Restore engine and random state; None where there is nothing to resume. Every rank must call this.

    Raises:
        EgmfError: on every rank alike, if the checkpoint is missing, damaged, or another run's.
    """

    def choose() -> tuple[str, Progress] | None:
        found = find_checkpoint(run, resume)
        if found is None:
            return None
        progress = read_record(found, identity)
        # The best adapter goes back in time with the rest: a later one belongs to steps that are about to be repeated.
        if progress.best_step:
            write_json(run / "best" / BEST, {"adapter": checkpoint_name(progress.best_step)})
        return str(found), progress

    chosen = distributed.on_rank_zero(choose)
    if chosen is None:
        return None
    path, progress = chosen
    loaded, _ = engine.load_checkpoint(path, tag=STATE, load_module_strict=False)
    if loaded is None:
        raise EgmfError(f"checkpoint {path}: DeepSpeed found no state in it")
    random_state = load_file(Path(path) / f"random-{distributed.rank():05d}.safetensors")
    torch.set_rng_state(random_state["cpu"])
    if "cuda" in random_state and torch.cuda.is_available():
        torch.cuda.set_rng_state(random_state["cuda"])
    result: Progress = progress
    return result


def gather_trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """The trained weights, whole, on rank 0's CPU (an empty dictionary elsewhere). Every rank must call this."""
    parameters = trained_parameters(model)
    partitioned = [p for p in parameters.values() if hasattr(p, "ds_id")]
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(partitioned, enabled=bool(partitioned)):
        if distributed.rank() != 0:
            return {}
        return {name: p.detach().cpu().clone().contiguous() for name, p in parameters.items()}


def save_best(model: nn.Module, run: Path, step: int, description: dict[str, Any]) -> None:
    """Keep the trained weights as the run's best adapter; every rank must call this.

    The one before it goes when no checkpoint names it any more (:func:`prune`).

    Args:
        model: the module inside the engine.
        run: the run's folder.
        step: after how many steps.
        description: what loading needs (settings, tasks) and what selected it.
    """
    weights = gather_trained(model)

    def publish() -> None:
        folder = run / "best"
        final, temporary = folder / checkpoint_name(step), folder / f".{checkpoint_name(step)}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(weights, temporary / TRAINED_FILE)
        write_json(temporary / "adapter.json", description | {"sha256": sha256(temporary / TRAINED_FILE)})
        replace_folder(temporary, final)
        write_json(folder / BEST, {"adapter": final.name})

    distributed.on_rank_zero(publish)


def find_best(run: Path) -> tuple[Path, dict[str, Any]]:
    """Folder and description of a run's best adapter.

    Raises:
        EgmfError: the run has none yet, or its weights do not have the hash that was written down.
    """
    pointer = run / "best" / BEST
    if not pointer.is_file():
        what = "no such run" if not run.is_dir() else "nothing trained in it yet (best/best.json is missing)"
        raise EgmfError(f"run {run}: {what}; train first: egmf train --config FILE.yaml --run {run}")
    folder = pointer.parent / str(json.loads(pointer.read_text(encoding="utf-8"))["adapter"])
    description = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    if sha256(folder / TRAINED_FILE) != description["sha256"]:
        raise EgmfError(f"{folder / TRAINED_FILE} is damaged: its hash is not the one in adapter.json")
    return folder, description
