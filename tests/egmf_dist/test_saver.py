"""Checkpoints written and gone back to, without an engine: what stands when, and what is left where it fails."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from checkpoints import IDENTITY, found, hold, names

from egmf_dist.errors import EgmfError
from egmf_dist.formats import FORMAT, read_stamped
from egmf_dist.model import adapter
from egmf_dist.model.adapter import describe_best, point_to_best
from egmf_dist.run.checkpoints import Progress, State
from egmf_dist.run.folder import Run
from egmf_dist.training import checkpoint, saver
from egmf_dist.training.checkpoint import load_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


class Engine:
    """Stands in for DeepSpeed's."""


@pytest.fixture
def alone(monkeypatch):
    """One rank without a process group, whose engine holds one number."""
    monkeypatch.setattr(saver, "copy_pieces", lambda engine, state, into: {"weight/0/w": torch.zeros(1)})
    monkeypatch.setattr(saver, "state_of", lambda engine: State(1, 1, {"w": [1]}, {}))
    for name in ("put_pieces", "put_random_state"):
        monkeypatch.setattr(checkpoint, name, lambda *arguments: None)


def save_checkpoint(run: Run, launch: str | None = None, **progress: int) -> saver.Saved:
    own = saver.Saver(Engine(), run, IDENTITY, {}, keep=3, launch=launch)
    own.begin(Progress(**progress))
    return own.publish()


@pytest.mark.usefixtures("alone")
def test_loading_an_earlier_one_takes_both_pointers_back(run):
    """What was best after it belongs to steps that are about to be repeated, and so does the newest checkpoint."""
    hold(run, "first")
    for step, best_step in ((2, 0), (4, 4), (6, 4)):
        if best_step:
            run.adapter(best_step).mkdir(parents=True, exist_ok=True)
            (run.adapter(best_step) / "adapter.json").write_text("{}")
            point_to_best(run, best_step)
        save_checkpoint(run, "first", step=step, best_step=best_step)
    assert describe_best(run)[0].name == "step-0000004"
    hold(run, "second")
    resumed = load_checkpoint(Engine(), run, str(run.checkpoint(2)), IDENTITY, launch="second")
    assert resumed.progress.step == 2
    assert read_stamped(run.latest) == {
        "format": FORMAT, "checkpoint": "step-0000002", "launch": "second"
    }  # fmt: skip
    assert not run.best.exists()  # it had none yet
    hold(run, "third")
    assert load_checkpoint(Engine(), run, "auto", IDENTITY, launch="third").progress.step == 2
    hold(run, "fourth")
    assert load_checkpoint(Engine(), run, str(run.checkpoint(6)), IDENTITY, launch="fourth").progress.step == 6
    assert describe_best(run)[0].name == "step-0000004"


@pytest.mark.usefixtures("alone")
def test_everything_is_on_the_disk_before_the_pointer_moves(run, monkeypatch):
    """Files, then their folder, then its name, then the pointer: the order in which the power may fail."""
    done: list[str] = []
    names = ((os, "fsync"), (saver, "write_json"), (saver, "replace_folder"), (checkpoint, "write_json"))
    for module, name in names:
        real = getattr(module, name)

        def noted(*arguments, name=name, real=real):
            what = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else arguments[-1]
            what = arguments[0] if name == "write_json" else what
            done.append(f"{name} {Path(what).name}")
            return real(*arguments)

        monkeypatch.setattr(module, name, noted)
    save_checkpoint(run, step=2)
    named = [re.sub(r"^(fsync) \.(\w+\.json)\.\w+\.tmp", r"\1 \2", what) for what in done]
    assert named == [
        f"fsync {run.folder.name}",
        "fsync state-00000.safetensors",
        "write_json checkpoint.json", "fsync checkpoint.json", "fsync .step-0000002.tmp",
        "replace_folder step-0000002", "fsync checkpoints",
        "write_json latest.json", "fsync latest.json", "fsync checkpoints",
    ]  # fmt: skip


@pytest.mark.usefixtures("alone")
def test_a_launch_that_was_given_up_moves_no_pointer(run):
    hold(run, "mine")
    save_checkpoint(run, "mine", step=2)
    hold(run, "another")
    with pytest.raises(EgmfError, match=r"process 7 on host h \(since 9:00\) has taken it over"):
        save_checkpoint(run, "mine", step=4)
    assert found(run) == "step-0000002"
    assert names(run.checkpoints) == ["step-0000002"]


@pytest.mark.usefixtures("alone")
def test_a_launch_that_was_given_up_clears_nothing_of_the_holders(run: Run) -> None:
    """It is refused before it touches what the new holder is writing at the same step."""
    hold(run, "another")
    parts = [run.checkpoints / ".step-0000004.tmp" / "part", run.adapters / ".step-0000004.tmp" / "part"]
    for part in parts:
        part.parent.mkdir(parents=True)
        part.touch()
    with pytest.raises(EgmfError, match="has taken it over"):
        save_checkpoint(run, "mine", step=4)
    with pytest.raises(EgmfError, match="has taken it over"):
        adapter.save_adapter(torch.nn.Linear(1, 1), run, 4, {}, "mine")
    assert all(part.exists() for part in parts)


@pytest.mark.usefixtures("alone")
def test_training_goes_on_where_the_disk_is_full(run: Run, monkeypatch) -> None:
    """Whatever fails, and wherever: the one before stays in force, and nothing is left."""
    assert save_checkpoint(run, step=2).error is None

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for module, name in ((saver, "save_file"), (os, "fsync"), (saver, "write_json"), (saver, "replace_folder")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            saved = save_checkpoint(run, step=4)
        assert "cannot be written (No space left on device; " in saved.error, name
        assert saved.step == 4
        assert found(run) == "step-0000002"
        assert sorted(path.name for path in run.checkpoints.iterdir()) == ["latest.json", "step-0000002"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", lambda *_, **__: full())
        assert "No space left" in save_checkpoint(run, step=4).error
    saved = save_checkpoint(run, step=4)
    assert (saved.error, found(run)) == (None, "step-0000004")
    assert saved.stall_s > 0


@pytest.mark.usefixtures("alone")
def test_a_full_disk_is_no_reason_not_to_go_on(run: Run, monkeypatch) -> None:
    """The pointers name what is gone on from already; to go back they would have to move, and that is said."""
    hold(run, "mine")
    for step in (2, 4):
        run.adapter(step).mkdir(parents=True)
        point_to_best(run, step)
        assert save_checkpoint(run, "mine", step=step, best_step=step).error is None
    pointers = run.latest.read_bytes(), run.best.read_bytes()
    hold(run, "second")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert load_checkpoint(Engine(), run, "auto", IDENTITY, launch="second").progress.step == 4
        with pytest.raises(EgmfError, match=rf"^{run.latest}: No space left on device$"):
            load_checkpoint(Engine(), run, "2", IDENTITY, launch="second")
    assert (run.latest.read_bytes(), run.best.read_bytes()) == pointers


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("looks", [0, 1, 2])
def test_training_goes_on_where_its_lock_cannot_be_read(run: Run, monkeypatch, looks: int) -> None:
    """At the beginning, or where the pointer would move: it stays, and so does the best adapter; then all is well."""
    hold(run, "mine")
    assert save_checkpoint(run, "mine", step=2).error is None
    assert adapter.save_adapter(torch.nn.Linear(1, 1), run, 2, {}, "mine") is None
    best, left = read_stamped(run.best), [looks]

    def stale(*_: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(5, "Input/output error", str(run.lock))

    with monkeypatch.context() as patch:
        patch.setattr(saver, "check_held", stale)
        patch.setattr(adapter, "check_held", stale)
        saved = save_checkpoint(run, "mine", step=4)
        assert looks == 2 or "Input/output error" in saved.error
        left[0] = min(looks, 1)
        assert "Input/output error" in adapter.save_adapter(torch.nn.Linear(1, 1), run, 4, {}, "mine")
    assert read_stamped(run.best) == best
    assert found(run) == ("step-0000004" if looks == 2 else "step-0000002")
    assert not list(run.folder.rglob(".*"))
    assert save_checkpoint(run, "mine", step=6).error is None
    assert found(run) == "step-0000006"


@pytest.mark.usefixtures("alone")
def test_what_is_not_published_is_given_up(run: Run) -> None:
    own = saver.Saver(Engine(), run, IDENTITY, {}, keep=3)
    own.begin(Progress(step=2))
    assert own.busy
    own.close()
    assert not own.busy
    assert list(run.checkpoints.iterdir()) == []


@pytest.mark.usefixtures("alone")
def test_what_is_saved_already_is_not_written_again(run: Run) -> None:
    """Told to stop right after a checkpoint: of the same step, but not where a validation was done meanwhile."""
    own = saver.Saver(Engine(), run, IDENTITY, {}, keep=3)
    progress = Progress(step=2)
    assert not own.holds(progress)
    own.begin(progress)
    own.publish()
    assert own.holds(progress)
    progress.validated = 2
    assert not own.holds(progress)
