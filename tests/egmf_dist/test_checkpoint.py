"""Which checkpoints and adapters stay, which are found, and what a person is told; no process group needed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import IDENTITY, found, hold, names, save

from egmf_dist.errors import EgmfError
from egmf_dist.files import remove_folder, replace_folder
from egmf_dist.formats import FORMAT
from egmf_dist.model import adapter
from egmf_dist.model.adapter import describe_best, point_to_best
from egmf_dist.run.folder import Run
from egmf_dist.run.identity import check_identity
from egmf_dist.training import checkpoint, trainer
from egmf_dist.training.checkpoint import (
    Progress,
    find_checkpoint,
    load_checkpoint,
    point_to,
    prune,
    read_record,
    save_checkpoint,
    verify,
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_the_newest_stay_with_the_adapters_they_name(run):
    for step, best_step in ((100, 100), (200, 100), (300, 300), (400, 300)):
        save(run, step, best_step)
    prune(run, 400, 2)
    assert names(run.checkpoints) == ["step-0000300", "step-0000400"]
    assert names(run.adapters) == ["step-0000300"]


def test_a_damaged_checkpoint_costs_no_adapter(run):
    for step in (100, 200, 300):
        save(run, step, step)
    (run.checkpoint(200) / "checkpoint.json").write_text("{")
    prune(run, 300, 2)
    assert names(run.checkpoints) == ["step-0000200", "step-0000300"]
    assert names(run.adapters) == ["step-0000100", "step-0000200", "step-0000300"]


def test_going_back_drops_the_timeline_that_was_given_up(run):
    """A run resumed from 200 writes 300 beside the 400 and 600 it had reached before: 300 must survive."""
    for step in (200, 300, 400, 600):
        save(run, step, best=200)
    prune(run, 300, 2)
    assert names(run.checkpoints) == ["step-0000200", "step-0000300"]


def test_a_folder_is_replaced_and_removed_whole(tmp_path):
    for name, text in (("new", "2"), ("final", "1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    replace_folder(tmp_path / "new", tmp_path / "final")
    assert names(tmp_path) == ["final"]
    assert (tmp_path / "final" / "file").read_text() == "2"
    remove_folder(tmp_path / "final")
    assert names(tmp_path) == []


def test_auto_takes_the_one_latest_points_to(run):
    assert found(run) is None
    save(run, 100, 100)
    save(run, 200, 200)
    assert found(run) == "step-0000200"
    point_to(run, 100, None)
    assert found(run) == "step-0000100"
    assert found(run, "never") is None
    assert found(run, str(run.checkpoint(200))) == "step-0000200"
    run.latest.write_text(json.dumps({"checkpoint": "step-0000100"}))  # version 1
    assert found(run) == "step-0000100"


def test_a_restart_goes_on_where_its_own_launch_has_been(run):
    """Told to resume from 200 of 600, or to begin anew: until this launch has moved the pointer it does as told."""
    for step in (200, 400, 600):
        save(run, step, 200)
    told = str(run.checkpoint(200))
    assert found(run, told, "second") == "step-0000200"  # latest.json names 600, of the first launch
    assert found(run, "never", "second") is None
    point_to(run, 200, "second")  # as loading it does
    assert found(run, told, "second") == "step-0000200"
    point_to(run, 400, "second")  # saved on the new timeline
    assert found(run, told, "second") == "step-0000400"
    assert found(run, "never", "second") == "step-0000400"
    assert found(run, told, "third") == "step-0000200"


def spoil_weights(run: Run) -> None:
    (run.checkpoint(300) / "weights").write_text("step 3")


def lose_weights(run: Run) -> None:
    (run.checkpoint(300) / "weights").unlink()


def spoil_record(run: Run) -> None:
    (run.checkpoint(300) / "checkpoint.json").write_text('{"progr')


def lose_record(run: Run) -> None:
    (run.checkpoint(300) / "checkpoint.json").unlink()


def lose_parts(run: Run) -> None:
    (run.checkpoint(300) / "checkpoint.json").write_text("{}")


def lose_folder(run: Run) -> None:
    shutil.rmtree(run.checkpoint(300))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (spoil_weights, "weights is damaged"),
        (lose_weights, "weights is missing"),
        (spoil_record, "checkpoint.json is damaged"),
        (lose_record, "checkpoint.json is missing"),
        (lose_parts, "checkpoint.json is damaged (it lacks"),
        (lose_folder, "step-0000300 is missing"),
    ],
)
def test_auto_walks_back_to_the_newest_sound_one_and_says_so(run, damage, says):
    for step in (100, 200, 300):
        save(run, step, 100)
    damage(run)
    result = find_checkpoint(run, "auto")
    assert result.folder == run.checkpoint(200)
    assert result.record.progress.step == 200
    (skipped,) = result.skipped
    assert says in skipped
    with pytest.raises(EgmfError, match="step-0000300"):
        find_checkpoint(run, str(run.checkpoint(300)))
    for step in (100, 200):
        (run.checkpoint(step) / "weights").unlink()
    with pytest.raises(EgmfError, match=r"no sound checkpoint to go on from: .*give one with --resume STEP") as caught:
        find_checkpoint(run, "auto")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "[1]", "{"])
def test_a_lost_pointer_is_no_reason_to_begin_anew(run, content):
    save(run, 100, 100)
    save(run, 200, 100)
    run.latest.unlink()
    if content is not None:
        run.latest.write_text(content)
    result = find_checkpoint(run, "auto")
    assert result.folder == run.checkpoint(200)
    assert "latest.json cannot be read" in result.skipped[0]
    for step in (100, 200):
        shutil.rmtree(run.checkpoint(step))
    if content is not None:
        with pytest.raises(EgmfError, match="no sound checkpoint"):
            find_checkpoint(run, "auto")


def test_another_runs_checkpoint_is_refused(tmp_path):
    folder = save(Run(tmp_path / "old"), 100, 100)
    (tmp_path / "new").mkdir()
    with pytest.raises(EgmfError, match="not a checkpoint of run"):
        find_checkpoint(Run(tmp_path / "new"), str(folder))


def test_a_later_version_is_refused_not_skipped(run):
    save(run, 100, 100)
    for path in (save(run, 200, 100) / "checkpoint.json", run.latest):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT + 1}))
        with pytest.raises(EgmfError, match=f"{path.name}: written in format {FORMAT + 1}"):
            find_checkpoint(run, "auto")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": "new"}))
        with pytest.raises(EgmfError, match="its format is 'new'"):
            find_checkpoint(run, "auto")


def test_another_identity_is_named(run):
    made_with = find_checkpoint(run, str(save(run, 100, 100))).record.identity
    check_identity(made_with, IDENTITY, "checkpoint x")
    for change, says in (
        ({"seed": 1}, "made with training.seed 0, this start has 1"),
        ({"world_size": 2}, "made with 1 ranks, this start has 2"),
        ({"data": "other"}, "--data.shards"),
        ({"backbone": {"path": "me/model", "revision": None, "commit": "c"}}, "--backbone.path"),
    ):
        with pytest.raises(EgmfError, match=f"checkpoint x: .*{says}"):
            check_identity(made_with, replace(IDENTITY, **change), "checkpoint x")


def test_a_record_of_another_version_lacks_and_holds_other_counters(run):
    folder = save(run, 100, 100)
    path = folder / "checkpoint.json"
    record = json.loads(path.read_text())
    del record["progress"]["bad"]
    path.write_text(json.dumps(record | {"progress": record["progress"] | {"of_a_later_version": 3}}))
    progress, identity, standardisations, _ = read_record(folder)
    assert standardisations is None
    assert (progress.step, progress.bad, identity) == (100, 0, IDENTITY)
    verify(folder)


class Engine:
    """Stands in for DeepSpeed's: one file a checkpoint."""

    def save_checkpoint(self, folder: str, tag: str, **options: bool) -> None:
        (Path(folder) / tag).mkdir()
        (Path(folder) / tag / "weights").write_text("w")

    def load_checkpoint(self, folder: str, tag: str, **options: bool) -> tuple[str, None]:
        assert (Path(folder) / tag / "weights").is_file()
        return folder, None


@pytest.fixture
def alone(monkeypatch):
    for name, value in {"rank": 0, "barrier": None}.items():
        monkeypatch.setattr(checkpoint.distributed, name, lambda value=value: value)
    monkeypatch.setattr(checkpoint.distributed, "on_rank_zero", lambda do: do())


@pytest.mark.usefixtures("alone")
def test_loading_an_earlier_one_takes_both_pointers_back(run):
    """What was best after it belongs to steps that are about to be repeated, and so does the newest checkpoint."""
    hold(run, "first")
    for step, best_step in ((2, 0), (4, 4), (6, 4)):
        if best_step:
            run.adapter(best_step).mkdir(parents=True, exist_ok=True)
            (run.adapter(best_step) / "adapter.json").write_text("{}")
            point_to_best(run, best_step)
        save_checkpoint(Engine(), run, Progress(step=step, best_step=best_step), IDENTITY, {}, keep=3, launch="first")
    assert describe_best(run)[0].name == "step-0000004"
    hold(run, "second")
    resumed = load_checkpoint(Engine(), run, str(run.checkpoint(2)), IDENTITY, launch="second")
    assert resumed.progress.step == 2
    assert json.loads(run.latest.read_text()) == {
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
    for module, name in ((checkpoint, "sync_tree"), (checkpoint, "replace_folder"), (checkpoint, "write_json")):
        real = getattr(module, name)

        def noted(*arguments, name=name, real=real):
            done.append(f"{name} {arguments[-1 if name == 'replace_folder' else 0].name}")
            return real(*arguments)

        monkeypatch.setattr(module, name, noted)
    save_checkpoint(Engine(), run, Progress(step=2), IDENTITY, {}, keep=1)
    assert done == [
        "sync_tree .step-0000002.tmp",
        "write_json checkpoint.json",
        "replace_folder step-0000002",
        "write_json latest.json",
    ]


@pytest.mark.usefixtures("alone")
def test_a_launch_that_was_given_up_moves_no_pointer(run):
    hold(run, "mine")
    save_checkpoint(Engine(), run, Progress(step=2), IDENTITY, {}, keep=3, launch="mine")
    hold(run, "another")
    with pytest.raises(EgmfError, match=r"process 7 on host h \(since 9:00\) has taken it over"):
        save_checkpoint(Engine(), run, Progress(step=4), IDENTITY, {}, keep=3, launch="mine")
    assert found(run) == "step-0000002"
    assert names(run.checkpoints) == ["step-0000002"]


def test_a_checkpoint_says_by_what_features_were_standardised(run: Run) -> None:
    """The manifest is the newest start's; it may be of another timeline, or damaged."""
    folder = save(run, 2, 0)
    start = trainer.Start("auto")
    run.manifest.write_text(json.dumps({"standardisations": {"audio": 1}}))
    assert trainer.known_standardisations(run, start) == {"audio": 1}
    record = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps(record | {"standardisations": {"audio": 2}}))
    assert trainer.known_standardisations(run, start) == {"audio": 2}
    assert trainer.known_standardisations(run, trainer.Start("never")) == {"audio": 1}


@pytest.mark.usefixtures("alone")
def test_a_launch_that_was_given_up_clears_nothing_of_the_holders(run: Run) -> None:
    """It is refused before it touches what the new holder is writing at the same step."""
    hold(run, "another")
    parts = [run.checkpoints / ".step-0000004.tmp" / "part", run.adapters / ".step-0000004.tmp" / "part"]
    for part in parts:
        part.parent.mkdir(parents=True)
        part.touch()
    with pytest.raises(EgmfError, match="has taken it over"):
        save_checkpoint(Engine(), run, Progress(step=4), IDENTITY, {}, keep=3, launch="mine")
    with pytest.raises(EgmfError, match="has taken it over"):
        adapter.save_adapter(torch.nn.Linear(1, 1), run, 4, {}, "mine")
    assert all(part.exists() for part in parts)
