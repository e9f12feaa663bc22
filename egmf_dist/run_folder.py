"""A run's folder: opened by the process that launches, before any rank starts."""

from __future__ import annotations

import shutil
from pathlib import Path

from egmf_dist.config import Config, dump_config, load_config
from egmf_dist.errors import EgmfError

CONFIG = "config.yaml"
# What a run holds before its first record: our settings, and Ray's own files.
_OPENED = (CONFIG, ".ray")
# Settings a resumed run may change: they do not change which samples a batch holds, only whether bad ones stop it.
_FREE = {
    f"data.{key}"
    for key in (
        "workers", "prefetch", "bad_samples", "max_bad_in_a_row", "max_bad_fraction",
        "cache_dir", "cache_gib", "retries",
    )
}  # fmt: skip


def check_run(config: Config, run: Path, resume: str) -> None:
    """Whether :func:`open_run` would open the folder; nothing is written.

    Args:
        config: the resolved settings.
        run: ``runs/NAME``.
        resume: ``never`` (the run must not exist), ``auto`` (go on with it, or start it where it does not exist, so
            that a job script can always say so), or the path of one of its own checkpoints.

    Raises:
        EgmfError: the run exists and is not to be resumed, was made with other settings or is no run; or ``resume`` is
            a path that is not a folder in ``run/checkpoints``.
    """
    if resume not in ("auto", "never"):
        if not run.is_dir():
            raise EgmfError(f"resume {resume}: there is no run {run} to go on with; start it without --resume")
        if Path(resume).absolute().parent.resolve() != (run / "checkpoints").resolve():
            raise EgmfError(
                f"resume {resume}: not a checkpoint of run {run}; give {run}/checkpoints/step-N, auto or never"
            )
        if not Path(resume).is_dir():
            raise EgmfError(f"resume {resume}: no such folder; give {run}/checkpoints/step-N, auto or never")
    if run.exists() and not run.is_dir():
        raise EgmfError(f"run {run}: a file of that name exists; choose another name")
    if run.exists() and resume == "never":
        raise EgmfError(f"run {run} exists; choose another name with --run, or go on with it: --resume auto")
    if (run / CONFIG).is_file():
        difference = first_difference(load_config(run / CONFIG), config)
        if difference:
            raise EgmfError(
                f"run {run}: {difference}; resume with the settings it was started with, or choose another name"
            )
    elif run.exists() and any(run.iterdir()):
        raise EgmfError(f"run {run}: the folder exists and holds no {CONFIG}, so it is no run; choose another name")


def open_run(config: Config, run: Path, resume: str) -> bool:
    """Check the folder as :func:`check_run` does and, for a new run, make it with the resolved settings inside.

    Returns:
        Whether this call made the run.

    Raises:
        EgmfError: see :func:`check_run`.
    """
    check_run(config, run, resume)
    if (run / CONFIG).is_file():
        return False
    temporary = run.with_name(f".{run.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    dump_config(config, temporary / CONFIG)
    if run.exists():
        run.rmdir()
    temporary.rename(run)
    return True


def discard_unused(run: Path) -> bool:
    """Remove a run's folder if nothing happened in it; one with records, checkpoints or anything else stays.

    Returns:
        Whether it was removed.
    """
    if not run.is_dir() or any(path.name not in _OPENED for path in run.iterdir()):
        return False
    shutil.rmtree(run)
    return True


def first_difference(saved: Config, given: Config) -> str | None:
    """The first setting in which a run's saved settings and the given ones differ; how ranks are launched may, and how
    shards are read, as long as the batches stay the same."""
    for section in ("data", "backbone", "model", "training"):
        old, new = getattr(saved, section), getattr(given, section)
        for key in old.__dataclass_fields__:
            if f"{section}.{key}" in _FREE:
                continue
            if getattr(old, key) != getattr(new, key):
                return f"{section}.{key} was {getattr(old, key)!r} and is now {getattr(new, key)!r}"
    return None
