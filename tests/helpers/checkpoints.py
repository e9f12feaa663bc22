"""Checkpoints and adapters of a run as files, without a model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from egmf_dist.model.adapter import point_to_best
from egmf_dist.run.checkpoints import Progress, State, find_checkpoint
from egmf_dist.run.folder import Run
from egmf_dist.run.identity import Identity
from egmf_dist.training.checkpoint import point_to
from egmf_dist.training.pieces import file_name
from egmf_shards.checksums import sha256

PIECES = file_name(0)
IDENTITY = Identity(1, "d", 0, {"sha256": "b"})


def save(run: Run, step: int, best: int) -> Path:
    """A complete checkpoint with one file, pointed to, and the adapter it calls its best."""
    folder = run.checkpoint(step)
    folder.mkdir(parents=True)
    (folder / PIECES).write_text(f"step {step}")
    record = {
        "progress": asdict(Progress(step=step, best_step=best)),
        "identity": IDENTITY.to_json(),
        "state": State(step, 1, {}, {})._asdict(),
        "sha256": {PIECES: sha256(folder / PIECES)},
    }
    (folder / "checkpoint.json").write_text(json.dumps(record))
    if best:
        run.adapter(best).mkdir(parents=True, exist_ok=True)
        point_to_best(run, best)
    point_to(run, step, "first")
    return folder


def hold(run: Run, launch: str) -> None:
    run.lock.write_text(json.dumps({"format": 2, "host": "h", "pid": 7, "since": "9:00", "launch": launch}))


def found(run: Run, resume: str = "auto", launch: str | None = None) -> str | None:
    result = find_checkpoint(run, resume, launch)
    return None if result is None else result.folder.name


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".json")
