"""What was trained, whole, with what loading it needs: the best adapter so far; complete or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from egmf_dist import distributed
from egmf_dist.errors import EgmfError
from egmf_dist.files import replace_folder, sync_tree, unfinished, write_json, writing
from egmf_dist.formats import TRAINED_FILE, DamagedError, sealed
from egmf_dist.model.trained import gather_trained
from egmf_dist.run.adapters import DESCRIPTION, read_best
from egmf_dist.run.folder import PINNED_PREFIX, Run, checkpoint_name
from egmf_dist.run.lock import check_held
from egmf_shards.checksums import sha256
from egmf_shards.messages import unbroken

T = TypeVar("T")

_MEND = "; put it back from a copy, or go on from a checkpoint of before its step: --resume STEP"


def save_adapter(
    model: nn.Module, run: Run, step: int, description: dict[str, Any], launch: str | None = None
) -> str | None:
    """Keep the trained weights as the run's best adapter; every rank must call this.

    The one before it goes when no checkpoint names it any more (:func:`egmf_dist.training.checkpoint.prune`).

    Args:
        model: the module inside the engine.
        run: the run.
        step: after how many steps.
        description: what loading needs (settings, tasks, identity) and what selected it.
        launch: this launch's token.

    Returns:
        Why the disk did not take it, the same on every rank; the one before it then stays the best. None: it is kept.

    Raises:
        EgmfError: another launch has taken the run over.
    """
    weights = gather_trained(model)

    def publish() -> str | None:
        try:
            check_held(run, launch)  # before anything is cleared: it may be the holder's
        except OSError as error:
            return unbroken(str(error))
        final = run.adapter(step)
        temporary = unfinished(final)
        try:
            with writing(temporary, f"adapter {final}", then="the next better one is kept"):
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
                save_file(weights, temporary / TRAINED_FILE)
                hashed = {"sha256": sha256(temporary / TRAINED_FILE)}
                write_json(temporary / DESCRIPTION, sealed(description | hashed))
                sync_tree(temporary)
        except (EgmfError, OSError, SafetensorError) as error:
            return unbroken(str(error))
        try:
            check_held(run, launch)
            replace_folder(temporary, final)
            point_to_best(run, step)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            return unbroken(str(error))
        return None

    refused: str | None = distributed.on_rank_zero(publish)
    return refused


def point_to_best(run: Run, step: int) -> None:
    """Make the adapter of ``step`` the run's best; with 0 it has none."""
    if step:
        write_json(run.best, sealed({"adapter": checkpoint_name(step)}))
    else:
        run.best.unlink(missing_ok=True)


class Best(NamedTuple):
    """A run's best adapter at one moment."""

    name: str
    """Of its folder."""
    folder: Path
    """Where its weights can be read, also when a training removes the adapter meanwhile."""
    description: dict[str, Any]


@contextlib.contextmanager
def best_adapter(run: Run) -> Iterator[Best]:
    """The best adapter, the same on every rank and there for as long as the body; every rank must call this.

    A training beside this may find a better one at any time, and remove this one with the last checkpoint that names
    it.

    Raises:
        EgmfError: on every rank, the run has none yet, or its weights do not have the hash that was written down.
    """
    pinned: Best = distributed.on_rank_zero(lambda: pin(run))
    try:
        yield pinned
        distributed.barrier()
    finally:
        if distributed.rank() == 0:
            shutil.rmtree(pinned.folder, ignore_errors=True)


def pin(run: Run) -> Best:
    """Give the best adapter's weights a second name; it costs no space where the file system has hard links.

    Raises:
        EgmfError: see :func:`best_adapter`.
    """
    folder = run.adapters / f"{PINNED_PREFIX}{secrets.token_hex(4)}"

    def link() -> Best:
        found, description = read_best(run)
        weights, pinned = found / TRAINED_FILE, folder / TRAINED_FILE
        folder.mkdir(exist_ok=True)
        try:
            os.link(weights, pinned)
        except FileNotFoundError as error:
            raise DamagedError(f"{weights} is missing") from error
        except OSError:
            shutil.copyfile(weights, pinned)
        if sha256(pinned) != description.get("sha256"):
            raise EgmfError(f"{weights} is damaged: its hash is not the one in {DESCRIPTION}{_MEND}")
        return Best(found.name, folder, description)

    try:
        return _beside_a_training(link)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def describe_best(run: Run) -> tuple[Path, dict[str, Any]]:
    """Folder and description of a run's best adapter; its weights are not read.

    Raises:
        EgmfError: the run has none yet, or its description cannot be read.
    """
    return _beside_a_training(lambda: read_best(run))


def _beside_a_training(action: Callable[[], T]) -> T:
    """Do it again where a file was missing: a training may have replaced the best adapter in this moment."""
    for _ in range(2):
        with contextlib.suppress(DamagedError):
            return action()
    try:
        return action()
    except DamagedError as error:
        raise EgmfError(f"{error}{_MEND}") from error
