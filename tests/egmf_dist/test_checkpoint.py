"""Which checkpoints and adapters stay, which are found, and what a person is told; no process group needed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import IDENTITY, PIECES, found, names, save

from egmf_dist.errors import EgmfError
from egmf_dist.files import remove_folder, replace_folder, write_json
from egmf_dist.formats import FORMAT, DamagedError, read_stamped, sealed
from egmf_dist.model.adapter import point_to_best
from egmf_dist.run.checkpoints import find_checkpoint, read_record, verify
from egmf_dist.run.folder import Run
from egmf_dist.run.identity import check_identity
from egmf_dist.training import trainer
from egmf_dist.training.checkpoint import begun_anew, point_to, prune


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_the_newest_stay_with_the_adapters_they_name(run):
    for step, best_step in ((100, 100), (200, 100), (300, 300), (400, 300)):
        save(run, step, best_step)
    prune(run, 400, 2)
    assert names(run.checkpoints) == ["step-0000300", "step-0000400"]
    assert names(run.adapters) == ["step-0000300"]


def test_an_adapter_that_is_newer_than_a_checkpoint_written_beside_it_stays(run):
    """Step 100's checkpoint goes into force after step 200 was validated and before its own checkpoint is begun."""
    save(run, 100, 0)
    run.adapter(200).mkdir(parents=True)
    point_to_best(run, 200)
    prune(run, 100, 2)
    assert names(run.adapters) == ["step-0000200"]


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
    (run.checkpoint(300) / PIECES).write_text("step 3")


def lose_weights(run: Run) -> None:
    (run.checkpoint(300) / PIECES).unlink()


def bad_sector(run: Run) -> None:
    lose_weights(run)
    (run.checkpoint(300) / PIECES).symlink_to("/proc/self/mem")  # whoever reads it at 0 gets an input/output error


def spoil_record(run: Run) -> None:
    (run.checkpoint(300) / "checkpoint.json").write_text('{"progr')


def lose_record(run: Run) -> None:
    (run.checkpoint(300) / "checkpoint.json").unlink()


def lose_parts(run: Run) -> None:
    (run.checkpoint(300) / "checkpoint.json").write_text("{}")


def flip_digit(run: Run) -> None:
    path = run.checkpoint(300) / "checkpoint.json"
    write_json(path, sealed(json.loads(path.read_text())))
    path.write_text(path.read_text().replace('"adamw_steps": 300', '"adamw_steps": 900'))


def lose_folder(run: Run) -> None:
    shutil.rmtree(run.checkpoint(300))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (spoil_weights, f"{PIECES} is damaged"),
        (lose_weights, f"{PIECES} is missing"),
        (bad_sector, f"{PIECES} cannot be read (Input/output error)"),
        (spoil_record, "checkpoint.json is damaged"),
        (lose_record, "checkpoint.json is missing"),
        (lose_parts, "checkpoint.json is damaged (it lacks"),
        (flip_digit, "checkpoint.json is damaged (its content is not the one that was written)"),
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
        (run.checkpoint(step) / PIECES).unlink()
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


START, STEP = {"kind": "start", "step": 0}, {"kind": "train", "step": 7, "loss": 1.0}


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([START, STEP, {"kind": "checkpoint", "step": 6}, STEP], "metrics.jsonl tells of one at step 6"),
        ([START | {"step": 4}], "metrics.jsonl tells of one at step 4"),
        ([START, STEP, {"kind": "end", "step": 8}], "metrics.jsonl tells of one at step 8"),
        (None, "best/best.json names an adapter"),
        ([], "best/best.json names an adapter"),
        ([START, STEP], None),
        ([START, {"kind": "end", "step": 0}], None),
    ],
)
def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(run, records, says):
    """Its records would go and its best adapter be another's; one that has had none yet is no such run."""
    run.adapter(6).mkdir(parents=True)
    point_to_best(run, 6)
    if records is not None:
        run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    for resume in ("auto", "never"):  # a launch that began the run with never is started again
        if says is None:
            assert find_checkpoint(run, resume, "own") is None
            continue
        with pytest.raises(EgmfError, match=rf"its checkpoints are gone \(.*, and {says}") as caught:
            find_checkpoint(run, resume, "own")
        assert "put that folder back from a copy, or start a new run under another name" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_that_steps_are_done_again_is_said(run):
    assert begun_anew(run).said == []
    run.metrics.write_text(json.dumps(START) + "\n" + json.dumps(STEP) + "\n")
    begun = begun_anew(run)
    assert begun.progress.step == 0
    assert begun.said == ["step 7 was reached before a first checkpoint was saved: training begins anew at step 0"]


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
    check_identity(made_with, replace(IDENTITY, world_size=2), "checkpoint x")
    for change, says in (
        ({"seed": 1}, "made with training.seed 0, this start has 1"),
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
    progress, identity, _, standardisations, _ = read_record(folder)
    assert standardisations is None
    assert (progress.step, progress.bad, identity) == (100, 0, IDENTITY)
    verify(folder)


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


def test_one_of_before_is_named(run: Run) -> None:
    """It held DeepSpeed's own files, for one number of ranks."""
    folder = save(run, 2, 0)
    record = json.loads((folder / "checkpoint.json").read_text())
    del record["state"]
    (folder / "checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(EgmfError, match="an earlier egmf-dist wrote it") as caught:
        find_checkpoint(run, "auto")
    assert "\n" not in str(caught.value)
    (folder / "checkpoint.json").write_text(json.dumps(record | {"state": {"adamw": 3}}))
    with pytest.raises(EgmfError, match=r"checkpoint.json is damaged"):
        find_checkpoint(run, "auto")


def test_a_digit_of_the_record_is_protected_as_weights_are(tmp_path: Path) -> None:
    """The step, the position, AdamW's count: each a number like another, and none is taken for sound."""
    path = tmp_path / "record.json"
    write_json(path, sealed({"progress": {"step": 12, "position": 48}, "state": [1, (2, 3)], "by": {1: None}}))
    whole = {"format": FORMAT, "progress": {"step": 12, "position": 48}, "state": [1, [2, 3]], "by": {"1": None}}
    assert read_stamped(path) == whole
    for old, new in (("12", "92"), ("48", "58"), ("null", "0")):
        text = path.read_text()
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(DamagedError, match="its content is not the one that was written"):
            read_stamped(path)
        path.write_text(text)


def test_going_back_gives_up_what_came_after(run: Run) -> None:
    """2, 4 and 6 are there, 4 is damaged; from 2 on 5 is saved: 2 stays, and nothing of the other timeline."""
    for step in (2, 4, 5, 6):
        save(run, step, 0)
    prune(run, 5, 2, given_up={4, 6})
    assert [*run.saved_checkpoints()] == [2, 5]
