"""Which checkpoints and adapters stay, which are found, and what a person is told; no process group needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from egmf_dist.errors import EgmfError
from egmf_dist.training.checkpoint import (
    Progress,
    checkpoint_name,
    find_best,
    find_checkpoint,
    prune,
    read_record,
    replace_folder,
    sha256,
)


def checkpoint(run: Path, step: int, best: int) -> Path:
    """A complete checkpoint with one file, and the adapter it calls its best."""
    folder = run / "checkpoints" / checkpoint_name(step)
    folder.mkdir(parents=True)
    (folder / "weights").write_text(f"step {step}")
    record = {
        "progress": Progress(step=step, best_step=best).__dict__,
        "identity": {"seed": 0},
        "sha256": {"weights": sha256(folder / "weights")},
    }
    (folder / "checkpoint.json").write_text(json.dumps(record))
    (run / "best" / checkpoint_name(best)).mkdir(parents=True, exist_ok=True)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_newest_stay_with_the_adapters_they_name(tmp_path):
    for step, best in ((100, 100), (200, 100), (300, 300), (400, 300)):
        checkpoint(tmp_path, step, best)
    prune(tmp_path, 400, 2)
    assert names(tmp_path / "checkpoints") == ["step-0000300", "step-0000400"]
    assert names(tmp_path / "best") == ["step-0000300"]


def test_going_back_drops_the_timeline_that_was_given_up(tmp_path):
    """A run resumed from 200 writes 300 beside the 400 and 600 it had reached before: 300 must survive."""
    for step in (200, 300, 400, 600):
        checkpoint(tmp_path, step, best=200)
    prune(tmp_path, 300, 2)
    assert names(tmp_path / "checkpoints") == ["step-0000200", "step-0000300"]


def test_a_folder_is_replaced_whole(tmp_path):
    for name, text in (("new", "2"), ("final", "1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    replace_folder(tmp_path / "new", tmp_path / "final")
    assert names(tmp_path) == ["final"]
    assert (tmp_path / "final" / "file").read_text() == "2"


def test_auto_takes_the_one_latest_points_to(tmp_path):
    assert find_checkpoint(tmp_path, "auto") is None
    folder = checkpoint(tmp_path, 100, 100)
    checkpoint(tmp_path, 200, 200)
    (tmp_path / "checkpoints" / "latest.json").write_text(json.dumps({"checkpoint": folder.name}))
    assert find_checkpoint(tmp_path, "auto") == folder
    assert find_checkpoint(tmp_path, "never") is None
    assert find_checkpoint(tmp_path, str(folder)) == folder


def test_another_runs_checkpoint_is_refused(tmp_path):
    folder = checkpoint(tmp_path / "old", 100, 100)
    with pytest.raises(EgmfError, match="not a checkpoint of run"):
        find_checkpoint(tmp_path / "new", str(folder))


def test_an_incomplete_one_is_refused(tmp_path):
    folder = checkpoint(tmp_path, 100, 100)
    (folder / "checkpoint.json").unlink()
    with pytest.raises(EgmfError, match="no complete checkpoint"):
        find_checkpoint(tmp_path, str(folder))


def test_damage_and_another_identity_are_named(tmp_path):
    folder = checkpoint(tmp_path, 100, 100)
    assert read_record(folder, {"seed": 0}).step == 100
    with pytest.raises(EgmfError, match="made with seed 0, this run has 1"):
        read_record(folder, {"seed": 1})
    (folder / "weights").write_text("step 10O")
    with pytest.raises(EgmfError, match="weights is damaged"):
        read_record(folder, {"seed": 0})
    (folder / "weights").unlink()
    with pytest.raises(EgmfError, match="weights is missing"):
        read_record(folder, {"seed": 0})


def test_a_run_without_an_adapter_says_what_to_do(tmp_path):
    with pytest.raises(EgmfError, match="no such run; train first"):
        find_best(tmp_path / "none")
    with pytest.raises(EgmfError, match="nothing trained in it yet"):
        find_best(tmp_path)
