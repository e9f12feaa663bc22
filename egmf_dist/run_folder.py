"""A run's folder: opened by the process that launches, before any rank starts."""

from __future__ import annotations

import shutil
from pathlib import Path

from egmf_dist.config import Config, dump_config, load_config
from egmf_dist.errors import EgmfError

CONFIG = "config.yaml"


def open_run(config: Config, run: Path, resume: str) -> None:
    """Make the folder and write the resolved settings, or check that a resumed run has the same ones.

    Args:
        config: the resolved settings.
        run: ``runs/NAME``.
        resume: ``never``, ``auto``, or a checkpoint's path.

    Raises:
        EgmfError: the run exists and is not to be resumed, does not exist and is, or was made with other settings.
    """
    settings = run / CONFIG
    if resume not in ("auto", "never") and not Path(resume).is_dir():
        raise EgmfError(f"resume {resume}: no such folder; give runs/NAME/checkpoints/step-N, auto or never")
    if run.exists() and resume == "never":
        raise EgmfError(f"run {run} exists; choose another name, or go on with it: --resume auto")
    if settings.is_file():
        difference = first_difference(load_config(settings), config)
        if difference:
            raise EgmfError(
                f"run {run}: {difference}; resume with the settings it was started with, or choose another name"
            )
        return
    if run.exists() and any(run.iterdir()):
        raise EgmfError(f"run {run}: the folder exists and holds no {CONFIG}, so it is no run; choose another name")
    temporary = run.with_name(f".{run.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    dump_config(config, temporary / CONFIG)
    if run.exists():
        run.rmdir()
    temporary.rename(run)


def first_difference(saved: Config, given: Config) -> str | None:
    """The first setting in which a run's saved settings and the given ones differ; how ranks are launched may."""
    for section in ("data", "backbone", "model", "training"):
        old, new = getattr(saved, section), getattr(given, section)
        for key in old.__dataclass_fields__:
            if getattr(old, key) != getattr(new, key):
                return f"{section}.{key} was {getattr(old, key)!r} and is now {getattr(new, key)!r}"
    return None
