"""A disk without room, and what only looks like one, while checkpoints and adapters are written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from egmf_dist import distributed
from egmf_dist.config import Config, LoggingConfig, TrainingConfig
from egmf_dist.errors import EgmfError
from egmf_dist.files import writing
from egmf_dist.run.checkpoints import Progress
from egmf_dist.run.folder import Run, open_run, renew_settings
from egmf_dist.run.identity import Identity
from egmf_dist.run.lock import held
from egmf_dist.run.manifest import write_manifest
from egmf_dist.run.records import Records


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


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")  # as write and fsync say it: without a name


def test_a_start_needs_no_room_where_nothing_changes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a restart keeps of its records, and its manifest; what must change is said with its file."""
    config, identity = Config(logging=LoggingConfig(to=[])), Identity(1, "d", 0, {"sha256": "b"})
    lines = [{"kind": "start", "step": 0}, {"kind": "train", "step": 4}]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_manifest(run, config, identity, ["h"], {})
    monkeypatch.setattr(os, "fsync", full)
    Records(run, config, True, False, Progress(step=4)).close()
    write_manifest(run, config, identity, ["h"], {})
    room = r"^{}: No space left on device$"
    with pytest.raises(EgmfError, match=room.format(run.metrics)), distributed.failing_together():
        Records(run, config, True, False, Progress(step=2))
    run.metrics.write_text(run.metrics.read_text() + '{"kind": "tra')  # cut short: the next line would end it
    with pytest.raises(EgmfError, match=room.format(run.metrics)), distributed.failing_together():
        Records(run, config, True, False, Progress(step=4))
    with pytest.raises(EgmfError, match=room.format(run.manifest)):
        distributed.on_rank_zero(lambda: write_manifest(run, config, identity, ["another"], {}))
    assert sorted(path.name for path in run.folder.iterdir()) == ["manifest.json", "metrics.jsonl"]


def test_a_start_that_finds_no_room_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run")
    open_run(Config(), run, "never")
    more = Config(training=TrainingConfig(steps=7))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EgmfError, match=rf"{run.lock} cannot be written \(No space left on device\)"), held(run, "own"):
        pass
    with pytest.raises(EgmfError, match=rf"{run.config} cannot be written \(No space left on device\); make room"):
        renew_settings(more, run, "auto")
