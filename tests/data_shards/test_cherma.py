"""CHERMA's own layout, generated at its real widths and ragged lengths."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from egmf_shards import ShardError, ShardSet
from egmf_shards.importers.cherma import LABELS, import_cherma


@pytest.fixture
def cherma(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    root = tmp_path / "cherma"
    for split, count in (("train", 8), ("valid", 2), ("test", 2)):
        entries = []
        for i in range(count):
            name = f"{split}_{i:03d}"
            entries.append(
                {
                    "audio_file": f"{name}.wav",
                    "video_file": f"{name}.mp4",
                    "txt_label": "平静",
                    "audio_label": list(LABELS)[(i + 1) % 7],
                    "visual_label": list(LABELS)[(i + 2) % 7],
                    "video_label": list(LABELS)[i % 7],
                }
            )
            for folder, file, dim in (("audio", name, 1024), ("visual", f"{name}.mp4", 2048), ("text", name, 1024)):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
                if (split, i, folder) != ("train", 3, "visual"):
                    array = rng.normal(size=(int(rng.integers(1, 40)), dim)).astype(np.float32)
                    np.save(root / folder / split / f"{file}.npy", array)
        (root / f"{split}.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    return root


def test_entries_become_samples(cherma, tmp_path):
    manifest = import_cherma(cherma, tmp_path / "out")
    train = list(ShardSet.open([tmp_path / "out"], "train"))
    assert [len(list(ShardSet.open([tmp_path / "out"], s))) for s in ("train", "valid", "test")] == [8, 2, 2]
    assert {s.label for s in train} == set(LABELS.values())
    samples = {s.id: s for s in train}
    whole, half = samples["cherma-train-train_000"], samples["cherma-train-train_003"]
    assert (whole.modalities, whole.text, whole.language, whole.label) == (("audio", "vision"), "", "zh", "anger")
    assert (whole.features["audio"] == np.load(cherma / "audio" / "train" / "train_000.npy")).all()
    assert (whole.features["vision"] == np.load(cherma / "visual" / "train" / "train_000.mp4.npy")).all()
    assert half.modalities == ("audio",)
    assert manifest["source"]["features"]["vision"]["clips_without_file"] == 1
    assert [file["file"] for file in manifest["source"]["files"]] == ["train.json", "valid.json", "test.json"]
    assert manifest["source"]["files"][0]["sha256"] == hashlib.sha256((cherma / "train.json").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_label": "happy"}, r"entry 0: video_label is 'happy'; it must be one of 愤怒"),
        ({"audio_file": None}, r"entry 0: audio_file is None; audio_file, video_file, video_label are needed"),
    ],
)
def test_a_bad_entry_is_named(cherma, tmp_path, change, message):
    path = cherma / "train.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    entries[0] |= change
    path.write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(ShardError, match=message):
        import_cherma(cherma, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"), [("{}", "a list of entries"), ("[", "not JSON"), (None, "no such file")]
)
def test_a_bad_file_is_named(cherma, tmp_path, content, message):
    path = cherma / "valid.json"
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ShardError, match=message):
        import_cherma(cherma, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_clips_with_chinese_names_keep_them(cherma, tmp_path):
    path = cherma / "test.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    for entry, name in zip(entries, ("安家", "安居"), strict=True):
        old = entry["video_file"].removesuffix(".mp4")
        entry |= {"audio_file": f"{name}.wav", "video_file": f"{name}.mp4"}
        for folder, suffix in (("audio", ""), ("visual", ".mp4")):
            (cherma / folder / "test" / f"{old}{suffix}.npy").rename(cherma / folder / "test" / f"{name}{suffix}.npy")
    path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    import_cherma(cherma, tmp_path / "out")
    samples = list(ShardSet.open([tmp_path / "out"], "test"))
    assert {s.id: s.source_id for s in samples} == {
        "cherma-test-_u5b89__u5bb6_": "安家", "cherma-test-_u5b89__u5c45_": "安居"
    }  # fmt: skip
    assert all(s.modalities == ("audio", "vision") for s in samples)


def test_the_same_clip_twice(cherma, tmp_path):
    path = cherma / "test.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(entries + entries[:1]), encoding="utf-8")
    with pytest.raises(
        ShardError, match=r"test.json, entry 2: sample 'cherma-test-test_000': .*, first in .*, entry 0"
    ):
        import_cherma(cherma, tmp_path / "out")


def test_labels_of_one_modality_alone(cherma, tmp_path):
    manifest = import_cherma(cherma, tmp_path / "out", modality_labels=True)
    found = ShardSet.open([tmp_path / "out"], "train")
    samples, keys = {s.id: s for s in found}, list(LABELS.values())
    assert len(samples) == 8 + 8 + 7, "one clip has no vision, and none has words"
    for i in range(8):
        whole, heard = samples[f"cherma-train-train_{i:03d}"], samples[f"cherma-train-train_{i:03d}-audio"]
        assert (heard.modalities, heard.label, heard.task) == (("audio",), keys[(i + 1) % 7], "cherma-emotion-audio")
        assert (heard.features["audio"] == whole.features["audio"]).all()
        assert "vision" not in heard.features
        seen = samples.get(f"cherma-train-train_{i:03d}-vision")
        assert (seen is None) == (i == 3)
        assert seen is None or (seen.label, seen.modalities) == (keys[(i + 2) % 7], ("vision",))
    questions = {t["name"]: t["questions"]["zh"] for t in manifest["tasks"]}
    whole_question = questions.pop("cherma-emotion")
    assert questions == {
        "cherma-emotion-text": f"只看文字：{whole_question}",
        "cherma-emotion-audio": f"只听声音：{whole_question}",
        "cherma-emotion-vision": f"只看画面：{whole_question}",
    }
    assert manifest["splits"]["train"]["utterances"] == 8
    report = manifest["source"]["modality_labels"]
    assert report["text"] == {"samples": 0, "clips_without_the_modality": 12, "clips_without_the_label": 0}
    assert report["vision"] == {"samples": 11, "clips_without_the_modality": 1, "clips_without_the_label": 0}


def test_a_bad_label_of_one_modality(cherma, tmp_path):
    path = cherma / "test.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    entries[1]["visual_label"] = "happy"
    path.write_text(json.dumps(entries), encoding="utf-8")
    import_cherma(cherma, tmp_path / "read not")
    with pytest.raises(ShardError, match=r"entry 1: visual_label is 'happy'; it must be one of 愤怒"):
        import_cherma(cherma, tmp_path / "out", modality_labels=True)
    assert not (tmp_path / "out").exists()
