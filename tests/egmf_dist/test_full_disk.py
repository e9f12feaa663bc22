"""A disk without room, and what only looks like one, while checkpoints and adapters are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from egmf_dist.errors import EgmfError
from egmf_dist.files import writing
from egmf_dist.run.folder import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def no_room(path: Path) -> None:
    with open("/dev/full", "wb") as full:
        full.write(b"x" * 100_000)


def no_room_for_torch(path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, "/dev/full")


def no_room_for_safetensors(path: Path) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def removed_by_another_rank(path: Path) -> None:
    path.joinpath("part").open("rb")


def not_allowed(path: Path) -> None:
    raise PermissionError(13, "Permission denied")


def dead_peer(path: Path) -> None:
    raise RuntimeError("Connection closed by peer")


def stopped(path: Path) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("fails", [no_room, no_room_for_torch, no_room_for_safetensors])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(run: Run, fails: Callable[[Path], None]) -> None:
    folder = run.checkpoints / ".step-0000002.tmp"
    folder.mkdir(parents=True)
    with pytest.raises(EgmfError) as caught, writing(folder, "checkpoint 2"):
        fails(folder)
    assert list(run.checkpoints.iterdir()) == []
    said = str(caught.value)
    assert said.startswith("checkpoint 2 cannot be written (")
    assert said.endswith(f"MiB are free in {run.checkpoints}); make room, then go on with --resume auto")
    assert "\n" not in said


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("fails", [removed_by_another_rank, not_allowed, dead_peer, stopped])
def test_what_is_not_the_disks_is_not_said_of_it(run: Run, fails: Callable[[Path], None]) -> None:
    folder = run.checkpoints / ".step-0000002.tmp"
    folder.mkdir(parents=True)
    with pytest.raises((OSError, RuntimeError, KeyboardInterrupt)), writing(folder, "checkpoint 2"):
        fails(folder)
    assert list(run.checkpoints.iterdir()) == []


def test_a_rank_does_not_take_away_what_others_are_writing(run: Run) -> None:
    folder = run.checkpoints / ".step-0000002.tmp"
    folder.mkdir(parents=True)
    with pytest.raises(RuntimeError), writing(folder, "checkpoint 2", clears=False):
        dead_peer(folder)
    assert folder.is_dir()
