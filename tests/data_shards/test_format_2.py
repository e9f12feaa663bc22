"""Version 2 of the format: streams named by the data, samples without a target, and version 1 read and upgraded."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from indexes import held_index

from egmf_shards import FeatureInput, FeatureStream, ShardError, ShardSet, Task, synthesize, verify
from egmf_shards.format.index import load_index, save_index
from egmf_shards.format.manifest import read_manifest
from egmf_shards.importers.foreign_tars import index_foreign
from egmf_shards.importers.jsonl import import_jsonl

EDA = np.arange(6, dtype=np.float32).reshape(6, 1)


def as_version_1(folder: Path) -> Path:
    """A copy with the index and the manifest that version 1 wrote; the folder has no other streams than it knew."""
    old = shutil.copytree(folder, folder.with_name(f"{folder.name}-1"))
    with np.load(folder / "index.npz") as arrays:
        kept = {name: arrays[name] for name in arrays.files if name not in ("streams", "target")}
    for stream in ("audio", "vision"):
        kept.setdefault(f"{stream}_frames", np.zeros(len(kept["key"]), np.int32))
    np.savez(old / "index.npz", **(kept | {"version": np.int64(1)}))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    streams = manifest.pop("streams")
    dims = {stream: streams.get(stream, {"dim": 0})["dim"] for stream in ("audio", "vision")}
    for split in manifest["splits"].values():
        split["missing"] = {"audio": split["samples"], "vision": split["samples"]} | split["missing"]
    (old / "manifest.json").write_text(json.dumps(manifest | {"schema": 1, "dims": dims}), encoding="utf-8")
    return old


def tars(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.tar")}


def test_what_version_1_could_say_keeps_its_hash(tmp_path):
    """The number is that of the last code that wrote version 1: the order of every run on such data depends on it."""
    manifest = synthesize(tmp_path / "demo", seed=5, samples=30)
    assert manifest["index"] == "a1a603d8a6c93af60223f2d547708ef9ea11e13fda6f393e793cce66f4903053"


@pytest.mark.parametrize("features", [True, False], ids=["audio and vision", "text alone"])
def test_version_1_is_read_alike_and_upgraded_without_a_tar_being_touched(folder, sample, equal, features):
    changes = {} if features else {"modalities": ("text",), "features": {}}
    new = folder(samples=[sample(i, **changes) for i in range(30)])
    old = as_version_1(new)
    was, shards = ShardSet.open([old], "train"), ShardSet.open([new], "train")
    assert was.index_hash == shards.index_hash
    assert all(equal(a, b) for a, b in zip(was, shards, strict=True))
    assert was.streams == ({"audio": (4,), "vision": (3,)} if features else {"audio": (), "vision": ()})
    assert not len(was.without_target)
    before, said = tars(old), read_manifest(old)

    manifest = index_foreign(old)
    assert (manifest["schema"], json.loads((old / "manifest.json").read_text(encoding="utf-8"))) == (2, manifest)
    assert manifest == said | {"schema": 2}, "source, statistics and hashes stay"
    assert tars(old) == before
    with np.load(old / "index.npz") as arrays:
        assert int(arrays["version"]) == 2
        assert arrays["streams"].tolist() == (["audio", "vision"] if features else [])
    now = ShardSet.open([old], "train")
    assert (now.index_hash, now.streams) == (was.index_hash, was.streams), "the model keeps its places"
    assert all(equal(a, b) for a, b in zip(now, shards, strict=True))
    assert verify(old).ok, list(map(str, verify(old).problems))
    with pytest.raises(ShardError, match="exists already; `--force`"):
        index_foreign(old)


def test_an_index_and_a_manifest_of_two_folders_are_not_upgraded(folder, sample):
    old, other = as_version_1(folder()), as_version_1(folder("other", [sample(0)]))
    shutil.copy(other / "index.npz", old / "index.npz")
    with pytest.raises(ShardError, match="do not belong together"):
        index_foreign(old)
    assert json.loads((old / "manifest.json").read_text(encoding="utf-8"))["schema"] == 1


def with_eda(sample, i: int, **changes: object):
    one = sample(i, **changes)
    names = tuple(sorted({*one.modalities, "eda"} - {"text"}))
    present = ("text", *names)
    return sample(i, modalities=present, features={**one.features, "eda": EDA + i}, **changes)


def test_a_stream_of_any_name_is_written_checked_and_read(folder, sample, equal):
    samples = [with_eda(sample, i) if i % 2 else sample(i) for i in range(30)]
    known = {"eda": FeatureStream(1, rate=4.0, made_by="a wristband"), "gaze": 0}
    out = folder(samples=samples, streams=known)
    assert verify(out).ok, list(map(str, verify(out).problems))
    assert read_manifest(out)["streams"] == {
        "audio": {"dim": 4},
        "eda": {"dim": 1, "rate": 4.0, "made_by": "a wristband"},
        "gaze": {"dim": 0},
        "vision": {"dim": 3},
    }
    shards = ShardSet.open([out], "train")
    assert shards.streams == {"audio": (4,), "eda": (1,), "gaze": (), "vision": (3,)}
    assert shards.columns == ("text_chars", "audio_frames", "eda_frames", "gaze_frames", "vision_frames")
    truth = {s.id: s for s in samples}
    packed = shards.read(range(len(shards)))
    assert all(equal(s, truth[s.id]) for s in packed.samples)
    eda = FeatureInput("eda", 1)
    assert packed.features[eda][:, 0].tolist() == [
        x for s in packed.samples if "eda" in s.features for x in s.features["eda"][:, 0]
    ]
    assert np.asarray(shards.column("eda_frames")).tolist() == packed.frames[eda].tolist()
    assert read_manifest(out)["splits"]["train"]["missing"]["eda"] == sum("eda" not in s.features for s in shards)
    # Tars alone say what is in them; what made it is kept from the manifest of before.
    again = index_foreign(out, force=True)
    assert again["streams"] == read_manifest(out)["streams"]
    assert again["index"] == shards.manifests[0]["index"]


def test_folders_of_different_widths_and_streams_are_read_together(folder, sample, equal):
    wide = [
        sample(i, dataset="wide", id=f"w{i}", split="train", modalities=("text", "audio", "eda"),
               features={"audio": np.full((2, 9), i, np.float32), "eda": EDA})
        for i in range(4)
    ]  # fmt: skip
    first, second = folder("first"), folder("second", wide, dataset="wide")
    shards = ShardSet.open([first, second], "train")
    assert shards.streams == {"audio": (4, 9), "eda": (1,), "vision": (3,)}
    one, two = (list(ShardSet.open([f], "train")) for f in (first, second))
    assert all(equal(a, b) for a, b in zip(shards, [*one, *two], strict=True))
    picked = [len(one), 0, len(one) + 3, 1]
    packed = shards.read(picked)
    assert all(equal(a, shards[i]) for a, i in zip(packed.samples, picked, strict=True))
    for own, rows in packed.features.items():
        parts = [s.features[own.stream] for s in packed.samples if own.stream in s.features]
        parts = [part for part in parts if part.shape[1] == own.dim]
        assert np.array_equal(rows, np.concatenate(parts))
        assert int(packed.frames[own].sum()) == len(rows)
    assert [key.key for key in packed.features] == ["audio_4", "audio_9", "eda_1", "vision_3"]


def test_a_stream_that_the_manifest_does_not_name(folder):
    out = folder()
    manifest = read_manifest(out)
    del manifest["streams"]["audio"], manifest["statistics"]["audio"]
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert "streams.audio is lacking; the shards have it with width 4" in str(verify(out).problems[0])
    with pytest.raises(ShardError, match="the index has audio frames, but the manifest gives no width for them"):
        ShardSet.open([out], "train")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["vision", "audio"], "not different names in their order"),
        (["audio", "audio"], "not different names in their order"),
        (["Audio"], "a feature stream is called 'Audio'"),
        (["text"], "a feature stream is called 'text'"),
        (["\ud800"], "other than a-z"),
        ([f"s{i:02d}" for i in range(16)], "16 streams; at most 15"),
        (["eda"], "lacks eda_frames"),
    ],
)
def test_an_index_with_other_names_is_refused(folder, names, message, refused):
    out = folder()
    codes = np.zeros((len(names), 40), np.uint32)
    for row, name in enumerate(names):
        codes[row, : len(name)] = [ord(c) for c in name]
    with np.load(out / "index.npz") as arrays:
        np.savez(out / "index.npz", **(dict(arrays) | {"streams": codes.view("<U40").reshape(-1)}))
    refused(lambda: load_index(out), message)


def test_more_streams_than_the_index_can_count_are_refused(folder, sample):
    many = {f"s{i}": EDA for i in range(16)}
    with pytest.raises(ShardError, match="s15 is one stream too many; this folder has s0, "):
        folder(samples=[sample(0, modalities=("text", *many), features=many)])


def test_samples_without_a_target(folder, sample, equal):
    samples = [sample(0), sample(1, label=None), sample(2, split="unlabelled", label=None)]
    out = folder(samples=samples)
    assert verify(out).ok, list(map(str, verify(out).problems))
    assert sorted(load_index(out).target.tolist()) == [0, 0, 1]
    train, others = (ShardSet.open([out], split) for split in ("train", "unlabelled"))
    assert [train.key(i) for i in train.without_target] == ["toy-1"]
    assert equal(others[0], samples[2])
    assert not others[0].has_target
    data = samples[2].to_json()
    assert not {"label", "value"} & set(data)
    manifest = read_manifest(out)
    assert manifest["splits"]["unlabelled"]["labels"] == {}
    assert manifest["splits"]["train"]["labels"]["mood"] == {"good": 1, "bad": 0}
    # It is part of the hash, and of what the reader holds a sample to.
    index = held_index(out)
    assert load_index(out).content_hash != load_index(folder("b", [sample(0), sample(1), sample(2)])).content_hash
    index.target[:] = 1
    save_index(out, index)
    fresh = load_index(out)
    text = json.dumps(manifest | {"index": fresh.content_hash})
    (out / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(ShardError, match="lacks its target; the index says otherwise"):
        ShardSet.open([out], "unlabelled")[0]
    assert verify(out).counts["index"] == 2


def test_ones_own_streams_and_unlabelled_lines(tmp_path):
    (tmp_path / "eda").mkdir()
    for name in ("a", "b"):
        np.save(tmp_path / "eda" / f"{name}.npy", EDA)
    (tmp_path / "eda" / "stream.json").write_text('{"rate": 4, "made_by": "a wristband"}')
    lines = [
        {"id": "a", "split": "train", "text": "x", "label": "good", "language": "en"},
        {"id": "b", "split": "unlabelled", "text": "y", "language": "en"},
    ]
    source = tmp_path / "d.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    words = {"labels": ("good", "bad"), "answers": {"en": ("good", "bad")}}
    mood = Task(name="mood", kind="classification", questions={"en": "Mood?"}, **words)
    manifest = import_jsonl(source, tmp_path / "out", "mine", mood, features={"eda": tmp_path / "eda"})
    assert manifest["streams"] == {"eda": {"dim": 1, "rate": 4, "made_by": "a wristband"}}
    assert np.array_equal(ShardSet.open([tmp_path / "out"], "unlabelled")[0].features["eda"], EDA)

    def refuses(message: str, line: dict[str, object], **features: Path) -> None:
        source.write_text(json.dumps(line))
        with pytest.raises(ShardError, match=message):
            import_jsonl(source, tmp_path / "x", "mine", mood, features=features)
        assert not (tmp_path / "x").exists()

    eda = tmp_path / "eda"
    refuses("is of samples without label and value", lines[1] | {"label": "good"}, eda=eda)
    refuses("needs 'label'", {k: v for k, v in lines[0].items() if k != "label"}, eda=eda)
    refuses("unknown field 'eda'", lines[0] | {"eda": "a.npy"})
    refuses("a feature stream is called 'Eda'", lines[0], Eda=eda)
    refuses("a feature stream is called 'speaker', as a field of a line is", lines[0], speaker=eda)
    for text, message in (
        ('{"rate": 0}', "rate is 0"),
        ('{"hz": 4}', "rate, made_by and specification"),
        ("x", "not a readable JSON"),
    ):
        (eda / "stream.json").write_text(text)
        refuses(message, lines[0], eda=eda)
