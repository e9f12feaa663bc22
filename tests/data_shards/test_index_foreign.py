"""Tars of another program become a folder like any other: indexed as they lie, or refused whole with a reason."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from foreign_tars import DIMS, MOOD, SCORE, TASKS, foreign, record

from egmf_shards import ShardError, ShardSet, Stream
from egmf_shards.check.verify import print_report, verify
from egmf_shards.format.index import load_index, save_index
from egmf_shards.format.manifest import dims_of, read_manifest
from egmf_shards.importers.foreign_tars import index_foreign


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_indexed_tars_are_read_like_our_own(tmp_path):
    records = [record(i) for i in range(24)]
    out = foreign(tmp_path / "foreign", records)
    before = digests(out)
    manifest = index_foreign(out)
    after = digests(out)
    assert {name: after[name] for name in before} == before, "not a byte of the tars is touched"
    assert set(after) - set(before) == {"index.npz", "manifest.json"}
    assert read_manifest(out) == manifest
    assert manifest["dataset"] == "foreign"
    assert dims_of(manifest) == DIMS
    assert {s: d["samples"] for s, d in manifest["splits"].items()} == {"train": 12, "valid": 6, "test": 6}
    assert {s["name"]: s["sha256"] for s in manifest["shards"]} == {
        n: d for n, d in before.items() if n != "tasks.json"
    }
    report = verify(out)
    assert report.ok, list(map(str, report.problems))

    train = ShardSet.open([out], "train")
    written = {r["__key__"]: r for r in records if r["json"]["split"] == "train"}
    assert {s.id for s in train} == set(written)
    for one in train:
        theirs = written[one.id]
        assert (one.text, one.label, one.value) == tuple(theirs["json"].get(k) for k in ("text", "label", "value"))
        for modality in DIMS:
            array = one.features.get(modality)
            assert (array is None) == (f"{modality}.npy" not in theirs)
            assert array is None or np.array_equal(array, theirs[f"{modality}.npy"])
    assert ShardSet.open([out], "valid")[0].context[0].speaker == "Ann"


def test_statistics_are_those_of_all_frames_of_the_training_split(tmp_path):
    records = [record(i) for i in range(24)]
    found = index_foreign(foreign(tmp_path / "foreign", records))["statistics"]
    for modality in DIMS:
        parts = [r[f"{modality}.npy"] for r in records if r["json"]["split"] == "train" and f"{modality}.npy" in r]
        x = np.concatenate(parts).astype(np.float64)
        assert found[modality]["frames"] == len(x)
        for name, values in (("mean", x.mean(0)), ("std", x.std(0)), ("min", x.min(0)), ("max", x.max(0))):
            np.testing.assert_allclose(found[modality][name], values, rtol=1e-5, atol=1e-6)
    text = (tmp_path / "foreign" / "manifest.json").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200, "a list of numbers stays on one line"


def test_a_training_stream_reads_each_indexed_sample_once_an_epoch(tmp_path):
    out = foreign(tmp_path / "foreign", [record(i) for i in range(24)])
    index_foreign(out)
    train = ShardSet.open([out], "train")
    ranks = [Stream(train, seed=1, global_batch=4, micro_batch=1, rank=r, world=2) for r in range(2)]
    seen = [
        sample.id
        for position in range(0, len(train), 4)
        for rank in ranks
        for batch in rank.read(position)
        for sample, weight in zip(batch.samples, batch.weights, strict=True)
        if weight
    ]
    assert len(seen) == len(train) == 12
    assert set(seen) == {s.id for s in train}


def tamper(i: int, **changes: object) -> list[dict]:
    records = [record(k) for k in range(4)]
    records[i]["json"] = records[i]["json"] | changes
    return records


BAD = {
    "no tasks": (tamper(0), None, "tasks.json: there is no such file; give the tasks as JSON"),
    "empty tasks": (tamper(0), [], "tasks.json: holds no task"),
    "bad task": (tamper(0), [{"name": "mood"}], "tasks.json: a task is malformed"),
    "task unknown": (tamper(0), [SCORE], "sample 'clip_0': schema: task 'mood' is not among"),
    "label": (tamper(0, label="great"), TASKS, "part-0.tar, sample 'clip_0': schema: label 'great' is not in"),
    "id": (tamper(1, id="clip_9"), TASKS, "part-1.tar, sample 'clip_1', member 'json': schema: names the id 'clip_9'"),
    "type": (tamper(1, text=5), TASKS, "text has the wrong type, int; str is needed"),
    "data set": (tamper(1, dataset="other"), TASKS, "data set is 'other'; this folder holds 'foreign'"),
    "no sample": ([], TASKS, "its tars hold no sample"),
    "id twice": ([record(0), record(0)], TASKS, "duplicate key: the id occurs in part-0.tar, too"),
    "not ours": ([record(0) | {"mp4": b""}], TASKS, "member 'clip_0.mp4': unknown member"),
}


@pytest.mark.parametrize(("records", "tasks", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_folder_is_refused_and_left_as_it_was(tmp_path, records, tasks, message):
    out = foreign(tmp_path / "foreign", records, tasks)
    before = digests(out)
    with pytest.raises(ShardError) as caught:
        index_foreign(out)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert digests(out) == before


def test_several_problems_are_counted(tmp_path):
    records = tamper(0, label="great")
    records[1]["json"]["value"] = 9
    with pytest.raises(ShardError, match=r"'great'.*\(and 1 more problems\)$"):
        index_foreign(foreign(tmp_path / "foreign", records))


def test_a_finished_folder_a_missing_one_and_one_without_tars(tmp_path):
    out = foreign(tmp_path / "foreign", [record(i) for i in range(4)])
    index_foreign(out)
    before = digests(out)
    with pytest.raises(ShardError, match=r"index\.npz: exists already; `--force` indexes the folder anew"):
        index_foreign(out)
    assert digests(out) == before
    with pytest.raises(ShardError, match="no such folder of tars"):
        index_foreign(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShardError, match=r"holds no \.tar file"):
        index_foreign(tmp_path / "empty")


def test_force_makes_both_anew_after_a_shard_was_taken_away(tmp_path):
    out = foreign(tmp_path / "foreign", [record(i) for i in range(24)])
    first = index_foreign(out)
    (out / "part-1.tar").unlink()
    (out / "tasks.json").unlink()
    with pytest.raises(ShardError, match="the shard is missing"):
        ShardSet.open([out], "train")
    second = index_foreign(out, force=True)
    assert [s["name"] for s in second["shards"]] == ["part-0.tar"]
    assert second["tasks"] == first["tasks"], "without tasks.json those of the old manifest hold"
    assert second["source"] == {"importer": "index", "before": {"importer": "index"}}
    assert second["index"] != first["index"]
    assert read_manifest(out) == second
    assert verify(out).ok
    assert sorted(p.name for p in out.iterdir()) == ["index.npz", "manifest.json", "part-0.tar"]


@pytest.mark.parametrize("broken", ["index.npz", "manifest.json"])
def test_force_where_one_of_the_two_is_broken(tmp_path, broken):
    out = foreign(tmp_path / "foreign", [record(i) for i in range(8)])
    whole = index_foreign(out)
    (out / broken).write_bytes(b"\x00")
    again = index_foreign(out, force=True)
    assert {k: v for k, v in again.items() if k != "source"} == {k: v for k, v in whole.items() if k != "source"}
    assert verify(out).ok
    (out / broken).unlink()
    index_foreign(out, force=True)
    assert verify(out).ok


def test_force_leaves_the_old_ones_where_a_sample_breaks_a_rule(tmp_path):
    out = foreign(tmp_path / "foreign", [record(i) for i in range(8)])
    index_foreign(out)
    with webdataset.TarWriter(str(out / "part-2.tar")) as sink:
        sink.write(record(0))
    before = digests(out)
    with pytest.raises(ShardError, match="duplicate key"):
        index_foreign(out, force=True)
    assert digests(out) == before


@pytest.mark.parametrize("stopped", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "^C"])
@pytest.mark.parametrize("forced", [False, True])
def test_a_manifest_that_cannot_be_put_in_place_takes_the_index_back(tmp_path, monkeypatch, forced, stopped):
    out = foreign(tmp_path / "foreign", [record(i) for i in range(8)])
    if forced:
        index_foreign(out)
        (out / "part-1.tar").unlink()
    before, replace = digests(out), os.replace

    def refuse(source: Path, target: Path) -> None:
        if Path(target).name == "manifest.json":
            raise stopped
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    expected = pytest.raises(KeyboardInterrupt)
    if isinstance(stopped, OSError):
        expected = pytest.raises(ShardError, match=r"cannot be written \(No space left on device\)")
    with expected:
        index_foreign(out, force=forced)
    assert digests(out) == before


def test_force_keeps_the_streams_that_there_is_room_for(tmp_path):
    """Fifteen are named, of which no sample has one; the tars bring a sixteenth."""
    out = foreign(tmp_path / "foreign", [record(i) for i in range(8)])
    manifest = index_foreign(out)
    manifest["streams"] |= {f"s{i:02d}": {"dim": 0, "made_by": "x"} for i in range(15 - len(manifest["streams"]))}
    for split in manifest["splits"].values():
        split["missing"] |= dict.fromkeys(manifest["streams"], split["samples"])
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert len(ShardSet.open([out], "train").manifests[0]["streams"]) == 15
    array = np.zeros((2, 3), np.float32)
    extra = record(8)
    extra["json"] = extra["json"] | {"modalities": [*extra["json"]["modalities"], "zz"]}
    with webdataset.TarWriter(str(out / "part-9.tar")) as sink:
        sink.write(extra | {"zz.npy": array})
    again = index_foreign(out, force=True)
    assert len(again["streams"]) == 15
    assert again["streams"]["zz"]["dim"] == 3
    assert verify(out).ok


def test_a_version_1_folder_without_its_index_says_what_would_help(tmp_path):
    out = foreign(tmp_path / "foreign", [record(i) for i in range(8)])
    manifest = index_foreign(out)
    streams = manifest.pop("streams")
    dims = {name: stream["dim"] for name, stream in streams.items()}
    (out / "manifest.json").write_text(json.dumps(manifest | {"schema": 1, "dims": dims}))
    (out / "index.npz").unlink()
    with pytest.raises(ShardError, match=r"holds no index.npz.*`--force` makes both anew from the tars"):
        index_foreign(out)


def test_tasks_from_elsewhere_and_one_task_alone(tmp_path):
    records = [record(i) for i in (0, 4, 8)]
    out = foreign(tmp_path / "foreign", records, None)
    (tmp_path / "mood.json").write_text(json.dumps(MOOD), encoding="utf-8")
    assert [t["name"] for t in index_foreign(out, tmp_path / "mood.json")["tasks"]] == ["mood"]


def test_tars_of_plain_tarfile_in_gnu_form_with_long_names(tmp_path):
    """As GNU tar writes them: name order, long names in an L record, real owners and times."""
    out = tmp_path / "gnu"
    out.mkdir()
    key = "clip-" + "x" * 150
    one = record(1)
    members = {"json": json.dumps(one["json"] | {"id": key}).encode()}
    for name in ("audio.npy", "vision.npy"):
        buffer = io.BytesIO()
        np.save(buffer, one[name])
        members[name] = buffer.getvalue()
    with tarfile.open(out / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name in sorted(members):
            info = tarfile.TarInfo(f"{key}.{name}")
            info.size, info.mtime, info.uname, info.uid = len(members[name]), 1_700_000_000, "ann", 1000
            tar.addfile(info, io.BytesIO(members[name]))
    (out / "tasks.json").write_text(json.dumps(TASKS), encoding="utf-8")
    index_foreign(out)
    assert np.array_equal(ShardSet.open([out], "train")[0].features["audio"], one["audio.npy"])
    assert verify(out).ok


def test_a_task_that_only_the_index_names(tmp_path):
    """The reader refuses it; verify names it."""
    out = foreign(tmp_path / "[x]", [record(i) for i in range(8)])
    manifest = index_foreign(out)
    index = load_index(out)
    odd = dataclasses.replace(index, task_names=np.array([*index.task_names.tolist(), "ghost"]))
    save_index(out, odd)
    (out / "manifest.json").write_text(json.dumps(manifest | {"index": odd.content_hash}))
    with pytest.raises(ShardError, match="the index names task 'ghost'"):
        ShardSet.open([out], "train")
    report = verify(out)
    assert "the index names task 'ghost', which the manifest lacks" in str(report.problems[0])
    assert print_report(report) == 1  # in a folder whose name reads like markup
