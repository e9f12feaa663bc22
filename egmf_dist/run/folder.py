"""A run's folder: where everything in it lies, and how the process that launches opens it before any rank starts."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shlex
import shutil
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from egmf_dist.config import Config, dump_config, load_run_config, read_directory
from egmf_dist.config.rules import ON_RESUME
from egmf_dist.config.zero_options import ROUNDS
from egmf_dist.errors import EgmfError
from egmf_dist.files import discard_unfinished, own_name, sync_folder, sync_tree

NOW_PREFIX = ".now-"
"""Of files that are made to ask for the file system's time (:mod:`egmf_dist.run.lock`)."""
SHARED_PREFIX = ".shared-"
"""Of files that are made to find out which ranks see the same folder (:mod:`egmf_dist.training.hosts`)."""
PINNED_PREFIX = ".pinned-"
"""Of folders in which an evaluation holds the best adapter (:mod:`egmf_dist.model.adapter`)."""
_DAY_S = 86400.0


def checkpoint_name(step: int) -> str:
    """Folder of the checkpoint, or adapter, taken after ``step`` steps."""
    return f"step-{step:07d}"


def step_of(name: str) -> int | None:
    """The inverse of :func:`checkpoint_name`, zeros in front or not; None for another name."""
    number = name.removeprefix("step-")
    return int(number) if number != name and number.isdecimal() else None


ROBUSTNESS = "-robustness"
"""How the names end of what was measured with damaged samples, beside evaluations."""


@dataclass(frozen=True)
class Run:
    """Every path of a run, ``runs/NAME``; nothing else in the program spells one."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.folder / "config.yaml"

    @property
    def manifest(self) -> Path:
        """Versions, hosts and identity of the newest start."""
        return self.folder / "manifest.json"

    @property
    def metrics(self) -> Path:
        """The records, one JSON object a line."""
        return self.folder / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's events."""
        return self.folder / "tensorboard"

    @property
    def wandb(self) -> Path:
        """Folder in which Weights & Biases makes its own, named ``wandb``."""
        return self.folder

    @property
    def mlflow(self) -> Path:
        """Folder of MLflow's store, where no server is named."""
        return self.folder / "mlflow"

    @property
    def trackers(self) -> Path:
        """Under which names trackers know this run."""
        return self.folder / "trackers.json"

    @property
    def lock(self) -> Path:
        """Who trains this run; there only while somebody does."""
        return self.folder / "lock.json"

    @property
    def stop(self) -> Path:
        """A driver's note that its launch is to stop."""
        return self.folder / "stop.json"

    @property
    def quarantine(self) -> Path:
        """Samples set aside, one JSON object a line."""
        return self.folder / "quarantine.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def latest(self) -> Path:
        """Names the checkpoint to go on from."""
        return self.checkpoints / "latest.json"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after ``step`` steps."""
        return self.checkpoints / checkpoint_name(step)

    def saved_checkpoints(self) -> dict[int, Path]:
        """The folders of checkpoints by step, sound or not."""
        found = {step_of(path.name): path for path in self.checkpoints.glob("step-*")}
        return {step: found[step] for step in sorted(step for step in found if step is not None)}

    @property
    def adapters(self) -> Path:
        """Folder of the adapters that were best when they were saved."""
        return self.folder / "best"

    @property
    def best(self) -> Path:
        """Names the best adapter."""
        return self.adapters / "best.json"

    def adapter(self, step: int) -> Path:
        """The adapter saved after ``step`` steps."""
        return self.adapters / checkpoint_name(step)

    @property
    def evaluations(self) -> Path:
        """Folder of what evaluating wrote."""
        return self.folder / "evaluation"

    def evaluation(self, name: str) -> Path:
        """Metrics of a split, or of one without some modalities."""
        return self.evaluations / f"{name}.json"

    def robustness(self, split: str) -> Path:
        """Metrics of a split that is damaged in many ways."""
        return self.evaluations / f"{split}{ROBUSTNESS}.json"

    def predictions(self, name: str) -> Path:
        """One row per sample of the same."""
        return self.evaluations / f"predictions-{name}.jsonl"

    @property
    def report(self) -> Path:
        """Folder of the pictures."""
        return self.folder / "report"

    @property
    def profile(self) -> Path:
        """Where the time of a step goes (``training.profile_steps``): a summary, and a trace that Chrome shows."""
        return self.folder / "profile"

    @property
    def demo(self) -> Path:
        """Seconds and memory of the demo."""
        return self.folder / "demo.json"

    @property
    def ray(self) -> Path:
        """Folder of Ray's own files; each launch has one of its own in it."""
        return self.folder / ".ray"

    def ray_storage(self, verb: str, launch: str) -> Path:
        """Ray's own files of one launch."""
        return self.ray / f"{verb}-{launch}"


def check_run(config: Config, run: Run, resume: str) -> dict[str, list[Any]]:
    """Whether a run may be started, or gone on with; nothing is written.

    Args:
        config: the resolved settings.
        run: the run.
        resume: ``never`` (the run must not exist), ``auto`` (go on with it, or start it where it does not exist, so
            that a job script can always say so), or one of its own checkpoints (:func:`named_checkpoint`).

    Returns:
        Settings that the run was started with and that change now.

    Raises:
        EgmfError: the run exists and is not to be resumed, was made with other settings or is no run; or ``resume``
            names none of its checkpoints.
    """
    folder = run.folder
    check_name(run)
    named_checkpoint(run, resume)
    if folder.exists() and not folder.is_dir():
        raise EgmfError(f"run {run}: a file of that name exists; choose another name")
    if folder.exists() and resume == "never":
        raise EgmfError(f"run {run} exists; choose another name with --run, or go on with it: --resume auto")
    if run.config.is_file():
        return changes(run, load_run_config(run.config), config)
    if folder.exists() and any(folder.iterdir()):
        raise EgmfError(
            f"run {run}: the folder exists and holds no {run.config.name}, so it is no run; choose another name"
        )
    return {}


def named_checkpoint(run: Run, resume: str) -> Path | None:
    """The checkpoint that ``--resume`` names: by its path, its folder's name, or its step (``step-2`` and ``2`` alike).

    Returns:
        Its folder; None for ``auto`` and ``never``.

    Raises:
        EgmfError: the run has no such checkpoint; names those it has.
    """
    if resume in ("auto", "never"):
        return None
    if not run.folder.is_dir():
        raise EgmfError(f"--resume {resume}: there is no run {run} to go on with; start it without --resume")
    saved = run.saved_checkpoints()
    step = int(resume) if resume.isdecimal() else step_of(resume)
    if step is None:
        path = Path(resume).absolute()
        step = step_of(path.name) if path.parent.resolve() == run.checkpoints.resolve() else None
    if step in saved:
        return saved[step]
    there = ", ".join(f"step-{s}" for s in saved)
    right = f"it has {there}; give one of them, auto or never" if there else "it has none yet; give auto or never"
    raise EgmfError(f"--resume {resume}: not a checkpoint of run {run}; {right}")


def check_name(run: Run) -> None:
    """Refuse a name that a terminal, a shell, or our own clearing up would take for something else.

    Raises:
        EgmfError: says what is wrong with it.
    """
    name = run.folder.name
    if name in ("", ".."):
        raise EgmfError(f"run {run}: names no folder of its own; give one such as runs/NAME")
    if not str(run).isprintable():
        raise EgmfError(f"run {str(run)!r}: holds a character that cannot be printed; give a name such as runs/NAME")
    if name.startswith((".", "-")):  # hidden files are what killed writers leave; a dash begins an option
        raise EgmfError(f"run {run}: its name begins with {name[0]!r}; give one such as runs/NAME")


def open_run(config: Config, run: Run, resume: str) -> bool:
    """Check the folder as :func:`check_run` does and, for a new run, make it with the resolved settings inside.

    Returns:
        Whether this call made the run.

    Raises:
        EgmfError: see :func:`check_run`; also where another process made the run in the meantime, or the folder cannot
            be made.
    """
    check_run(config, run, resume)
    if run.config.is_file():
        return False
    missing = [parent for parent in run.folder.parents if not parent.exists()]
    # A name of its own: two starts at once must not write into one folder, and only one rename succeeds.
    temporary = own_name(run.folder)
    try:
        temporary.mkdir(parents=True)
        dump_config(config, Run(temporary).config, Path.cwd())
        sync_tree(temporary)
        os.rename(temporary, run.folder)  # onto an empty folder, or where there is none
    except OSError as error:
        if run.config.is_file():
            check_run(config, run, resume)
            return False
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in missing:  # innermost first
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise EgmfError(
            f"run {run}: its folder cannot be made ({error.strerror}); choose another place with --run"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for made in [run.folder, *missing]:
        sync_folder(made.parent)
    return True


def renew_settings(config: Config, run: Run, resume: str) -> dict[str, list[Any]]:
    """Write what a resumed run changes among its settings; the caller holds the run's lock.

    Returns:
        See :func:`check_run`.

    Raises:
        EgmfError: see :func:`check_run`; or the file cannot be written.
    """
    changed = check_run(config, run, resume)
    # Its paths start here from now on, even if each reads as before; version 1 did not say where.
    if changed or read_directory(run.config) != Path.cwd():
        try:
            dump_config(config, run.config, Path.cwd())
        except OSError as error:
            raise EgmfError(
                f"run {run}: {error.filename} cannot be written ({error.strerror}); make room, then start again"
            ) from error
    return changed


def discard_unused(run: Run) -> bool:
    """Remove a run's folder if nothing happened in it; one with records, checkpoints or anything else stays.

    Returns:
        Whether it was removed.
    """
    # What a run holds before its first record: our settings, who holds it, and Ray's own files.
    opened = {run.config.name, run.lock.name, run.ray.name}
    if not run.folder.is_dir() or any(path.name not in opened for path in run.folder.iterdir()):
        return False
    run.config.unlink(missing_ok=True)
    # The lock is still open: NFS keeps such a file under another name until it is closed, and the folder with it.
    shutil.rmtree(run.folder, ignore_errors=True)
    return True


def discard_storage(storage: Path) -> None:
    """Remove one launch's files of Ray, and the folder above them where no other launch has any."""
    shutil.rmtree(storage, ignore_errors=True)
    with contextlib.suppress(OSError):
        storage.parent.rmdir()


def discard_leftovers(run: Run) -> None:
    """Remove what killed trainings and evaluations left behind; the caller holds the run's lock, so no training lives.

    An evaluation or another start may be beside it: what either makes for a moment goes after a day.
    """
    for storage in run.ray.glob(run.ray_storage("train", "*").name):
        discard_storage(storage)
    run.stop.unlink(missing_ok=True)  # of a launch that has ended
    for folder in (run.folder, run.checkpoints, run.adapters):
        discard_unfinished(folder)
    beside = run.folder.absolute()
    for folder, pattern in (
        (run.folder, f"{NOW_PREFIX}*"),
        (run.folder, f"{SHARED_PREFIX}*"),
        (run.ray, run.ray_storage("evaluate", "*").name),
        (run.evaluations, ".*.????????.tmp"),
        (run.adapters, f"{PINNED_PREFIX}*"),
        (beside.parent, f".{glob.escape(beside.name)}.????????.tmp"),
    ):
        for left in folder.glob(pattern):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _DAY_S:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()


def changes(run: Run, saved: Config, given: Config) -> dict[str, list[Any]]:
    """The settings in which a run's saved ones and the given ones differ: ``{"training.steps": [old, new]}``.

    What may differ is marked on the fields (:mod:`egmf_dist.config.schema`); that a ``place`` holds the same is checked
    by its hash (:mod:`egmf_dist.run.identity`).

    Raises:
        EgmfError: a setting differs that is fixed for a run's life.
    """
    different: dict[str, list[Any]] = {}
    for section in fields(Config):
        old, new = getattr(saved, section.name), getattr(given, section.name)
        for setting in fields(old):
            key, was, now = f"{section.name}.{setting.name}", getattr(old, setting.name), getattr(new, setting.name)
            if was == now:
                continue
            rounding = key == "training.zero_options" and isinstance(now, dict) and was.get(ROUNDS) != now.get(ROUNDS)
            if ON_RESUME not in setting.metadata or rounding:
                raise EgmfError(
                    f"run {run}: {key} was {was!r} and is now {now!r}; resume with the settings it was started with "
                    f"(--{key} {_written(was)}), or choose another name"
                )
            different[key] = [was, now]
    if saved.data.in_blocks != given.data.in_blocks:
        right = "block" if saved.data.in_blocks else "full"
        raise EgmfError(
            f"run {run}: data.shuffle {given.data.shuffle} means another order where data.shards is now "
            f"({', '.join(given.data.shards)}); the run was started with what is {right} there, and cannot go on so"
        )
    return different


def _written(value: Any) -> str:
    """A setting's value as the command line takes it."""
    return shlex.quote(value if isinstance(value, str) else json.dumps(value))
