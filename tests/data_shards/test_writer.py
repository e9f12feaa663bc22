"""The writer refuses bad samples by name, leaves nothing half-written, and the same input gives the same bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from egmf_shards import ShardError, ShardSet, ShardWriter, Task, Turn, describe
from egmf_shards.check.verify import verify
from egmf_shards.format.manifest import FeatureStream, dims_of
from egmf_shards.importers.foreign_tars import index_foreign


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_what_is_written_is_read_back(folder, sample, equal):
    out = folder()
    for split in ("train", "valid", "test"):
        written = [s for s in map(sample, range(30)) if s.split == split]
        read = ShardSet.open([out], split)
        assert len(read) == len(written)
        assert all(equal(a, b) for a, b in zip(read, written, strict=True))
        assert [read.key(i) for i in range(len(read))] == [s.id for s in written]
    assert sorted(p.name for p in out.glob("*.tar")) == [
        "test-000000.tar",
        "train-000000.tar",
        "train-000001.tar",
        "train-000002.tar",
        "valid-000000.tar",
    ]


def test_same_input_same_bytes(folder):
    assert digests(folder("one")) == digests(folder("two"))


def test_manifest_counts(folder):
    manifest = json.loads((folder() / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["schema"] == 2
    assert dims_of(manifest) == {"audio": 4, "vision": 3}
    assert manifest["splits"]["train"]["samples"] == 18
    assert manifest["splits"]["train"]["labels"] == {"mood": {"good": 9, "bad": 9}}
    assert manifest["splits"]["train"]["missing"] == {"text": 0, "audio": 6, "vision": 0}
    assert manifest["splits"]["test"]["values"] == {
        "score": {"count": 6, "mean": 0.25, "std": 0.0, "min": 0.25, "max": 0.25}
    }
    assert sum(shard["samples"] for shard in manifest["shards"]) == 30


def test_statistics_are_of_every_frame_of_the_training_split_alone(tmp_path, folder, sample):
    """Far from 0, with a small deviation, in a dimension that never changes; the other splits hold other numbers."""
    rng, samples = np.random.default_rng(0), []
    for i in range(40):
        audio = rng.normal([0, 1000, -3e5, 0.1], [1, 0.01, 4, 0], size=(1 + i % 7, 4)).astype(np.float32)
        split = ("train", "train", "valid", "test")[i % 4]
        samples.append(sample(i, split=split, modalities=("text", "audio", "vision"), audio=audio + (split != "train")))
    out = folder(samples=samples)
    written = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["statistics"]
    for modality in ("audio", "vision"):
        x = np.concatenate([s.features[modality] for s in samples if s.split == "train"]).astype(np.float64)
        assert written[modality]["frames"] == len(x)
        np.testing.assert_allclose(written[modality]["mean"], x.mean(axis=0), rtol=1e-8)
        std = np.where(x.min(axis=0) == x.max(axis=0), 0, x.std(axis=0))
        np.testing.assert_allclose(written[modality]["std"], std, rtol=1e-8)
    assert written["audio"]["std"][3] == 0.0

    # A folder of before has none: it is read all the same, and `egmf shards index --force` adds the same numbers.
    path = out / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["statistics"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert "statistics" not in ShardSet.open([out], "train").manifests[0]
    assert verify(out).ok
    assert index_foreign(out, force=True)["statistics"] == written


def test_a_folder_without_training_samples_has_no_statistics(folder, sample):
    out = folder(samples=[sample(i, split="test") for i in range(3)])
    assert json.loads((out / "manifest.json").read_text(encoding="utf-8"))["statistics"] == {}


def test_two_tasks_of_one_utterance_count_once(folder, sample):
    twice = [sample(0, id="a"), sample(0, id="b", task="score", label=None, value=0.5)]
    splits = describe(folder(samples=twice))["splits"]
    assert (splits["train"]["samples"], splits["train"]["utterances"]) == (2, 1)


BAD = {
    "label": ({"label": "great"}, "label 'great' is not in the label space of task 'mood': good, bad"),
    "a target of the unlabelled": ({"split": "unlabelled"}, "is of samples without a target; this one has one"),
    "value beside label": ({"value": 0.5}, "exclude each other"),
    "value": ({"task": "score", "label": None, "value": 1.5}, r"value 1.5 is outside the range \[-1, 1\]"),
    "nan value": ({"task": "score", "label": None, "value": float("nan")}, "value nan is outside"),
    "key": ({"id": "toy.0"}, "may hold only letters"),
    "empty key": ({"id": ""}, "may hold only letters"),
    "non-ASCII key": ({"id": "toy-é"}, "may hold only letters"),
    "dataset": ({"dataset": "other"}, "this folder holds 'toy'"),
    "split": ({"split": "dev"}, "one of train, valid, test, unlabelled"),
    "task": ({"task": "joy"}, "not among this folder's: mood, score"),
    "language": ({"language": "fr"}, "knows en, zh"),
    "context": ({"context": tuple(Turn("A", "x") for _ in range(13))}, "at most 12"),
    "turn": ({"turn": -1}, "count from 0"),
    "turn of another type": ({"turn": True}, "turn has the wrong type, bool"),
    "no speaker": ({"speaker": None}, "speaker has the wrong type"),
    "too wide": ({"audio": np.zeros((1, 1_000_001), np.float32)}, "audio is 1000001 wide; at most 1000000"),
    "a modality without array": ({"modalities": ("text", "audio", "vision", "smell")}, "smell is declared present"),
    "a modality of no name": ({"modalities": ("text", "audio", "vision", "Smell")}, "stream is called 'Smell'"),
    "modality twice": ({"modalities": ("text", "text", "audio", "vision")}, "at most once"),
    "undeclared array": ({"modalities": ("text", "vision")}, "audio is declared absent but there is an array"),
    "declared without array": ({"audio": None}, "audio is declared present but there is no array"),
    "text absent": ({"text": " "}, "the text is declared present"),
    "text undeclared": ({"modalities": ("audio", "vision")}, "the text is declared absent"),
    "one-dimensional": ({"audio": np.zeros(4, np.float32)}, r"audio is float32 \[4\]"),
    "no frame": ({"audio": np.zeros((0, 4), np.float32)}, "at least one frame"),
    "objects": ({"audio": np.array([[None]])}, "audio is object"),
    "not finite": ({"audio": np.full((2, 4), np.nan, np.float32)}, "not finite"),
    "beyond float32": ({"audio": np.full((2, 4), 1e300)}, "not finite in float32"),
    "another width": ({"audio": np.zeros((2, 5), np.float32)}, "audio has width 5; it is 4 in this folder"),
    "half a character": ({"text": "\ud800"}, "cannot be written as UTF-8"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_sample_is_named_and_leaves_nothing(tmp_path, folder, sample, changes, message):
    good = sample(1, id="good-before")
    bad = sample(0, **changes)
    with pytest.raises(ShardError, match=message) as caught:
        folder("a/b/toy", [good, bad])
    assert repr(bad.id) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_id_twice(tmp_path, folder, sample):
    with pytest.raises(ShardError, match="'toy-3': the id occurs twice"):
        folder(samples=[sample(3), sample(0), sample(3)])
    assert list(tmp_path.iterdir()) == []


def test_any_error_leaves_nothing_and_spares_what_was_there(tmp_path, folder, sample):
    def stopped():
        yield sample(0)
        raise KeyboardInterrupt

    (tmp_path / "kept").mkdir()
    with pytest.raises(KeyboardInterrupt):
        folder("kept/toy", stopped())
    with pytest.raises(ShardError, match="no sample was written"):
        folder("kept/toy", [])
    assert [p.name for p in tmp_path.rglob("*")] == ["kept"]


def test_a_folder_that_exists_is_not_touched(tmp_path, folder):
    out = folder()
    before = digests(out)
    with pytest.raises(ShardError, match="exists already"):
        folder()
    assert digests(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


def test_bad_arguments(tmp_path, folder):
    task = Task(name="t", kind="regression", questions={"en": "?"}, low=0, high=1, step=0.5)
    with pytest.raises(ShardError, match="each name once"):
        ShardWriter(tmp_path / "x", "toy", [task, task])
    with pytest.raises(ShardError, match="a feature stream is called 'text'"):
        ShardWriter(tmp_path / "x", "toy", [task], streams={"text": 3})
    for stream in (FeatureStream(-1), FeatureStream(3, rate=0), FeatureStream(3, rate=float("nan")), True):
        with pytest.raises(ShardError, match=r"stream 'eda': (dim|rate) is"):
            ShardWriter(tmp_path / "x", "toy", [task], streams={"eda": stream})
    with pytest.raises(ShardError, match="16 feature streams; at most 15"):
        ShardWriter(tmp_path / "x", "toy", [task], streams={f"s{i}": 3 for i in range(16)})
    with pytest.raises(ShardError, match="samples_per_shard is 0"):
        ShardWriter(tmp_path / "x", "toy", [task], samples_per_shard=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match="cannot be written"):
        folder("file/toy")


def test_given_streams_are_kept_and_held(folder, sample):
    text_only = sample(0, modalities=("text",), audio=None, vision=None)
    eda = FeatureStream(1, rate=4.0, made_by="a wristband")
    known = {"audio": 9, "vision": 0, "eda": eda}
    found = describe(folder("wide", [text_only], streams=known))["streams"]
    assert found == {
        "audio": {"dim": 9},
        "eda": {"dim": 1, "rate": 4.0, "made_by": "a wristband"},
        "vision": {"dim": 0},
    }
    with pytest.raises(ShardError, match="audio has width 4; it is 9 in this folder"):
        folder("held", [sample(0)], streams={"audio": 9})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"provenance": {"x": float("nan")}}, "a number is nan"),
        ({"ceilings": {"mood": {"metric": 1}}}, "ceilings is no object"),
        ({"provenance": {"x": eval("[" * 90 + "]" * 90)}}, ""),
    ],
    ids=["nan", "ceilings", "deep enough"],
)
def test_a_manifest_that_could_not_be_read_again_is_not_written(tmp_path, sample, given, message):
    def write() -> None:
        task = Task(name="mood", kind="regression", questions={"en": "?"}, low=0, high=1, step=0.5)
        with ShardWriter(tmp_path / "x", "toy", [task], **given) as writer:
            writer.write(sample(0, label=None, value=0.5))

    if not message:
        write()
        assert describe(tmp_path / "x")
        return
    with pytest.raises(ShardError, match=f"would not be readable again .{message}"):
        write()
    assert list(tmp_path.iterdir()) == []
