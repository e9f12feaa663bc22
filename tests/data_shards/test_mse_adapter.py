"""MSE-Adapter's pickles, made here in their exact layout at their real widths: what becomes of each part."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egmf_shards import Sample, ShardError, ShardSet
from egmf_shards.importers.mse_adapter import import_mse_adapter


def write(path: Path, data: Any, protocol: int = 4) -> None:
    path.write_bytes(pickle.dumps(data, protocol))


def by_id(out: Path) -> dict[str, Sample]:
    return {s.id: s for split in ("train", "valid", "test") for s in ShardSet.open([out], split)}


ADAPTER = {  # padded frames and widths of audio and video, labels as the files write them
    "meld": (157, 64, 32, 64, ["neutral", "Joy", "anger"]),
    "cherma": (543, 1024, 16, 2048, ["愤怒", "惊奇", "happiness"]),
}


def adapter_files(folder: Path, dataset: str, protocol: int = 4) -> dict[str, list[dict[str, Any]]]:
    """MSE-Adapter's three files, three utterances each."""
    audio_cap, audio_dim, video_cap, video_dim, labels = ADAPTER[dataset]
    rng = np.random.default_rng(1)
    folder.mkdir()
    files = {}
    for split in ("train", "valid", "test"):
        rows = []
        for number, label in enumerate(labels):
            lengths = int(rng.integers(1, audio_cap + 1)), np.int64(rng.integers(1, video_cap + 1))
            audio, video = np.zeros((audio_cap, audio_dim), np.float32), np.zeros((video_cap, video_dim), np.float32)
            audio[: lengths[0]] = rng.normal(size=(lengths[0], audio_dim))
            video[: lengths[1]] = rng.normal(size=(lengths[1], video_dim))
            features = {"text": f"{split}  line {number}", "audio": audio, "video": video}
            features |= {"audio_len": lengths[0], "video_len": lengths[1]}
            rows.append({"label": label, "features": features})
        files[split] = rows
        write(folder / f"{dataset}_{split}.pkl", rows, protocol)
    return files


@pytest.mark.parametrize(("dataset", "protocol"), [("meld", 2), ("meld", 4), ("cherma", 5)])
def test_mse_adapter(dataset, protocol, tmp_path):
    files = adapter_files(tmp_path / "in", dataset, protocol)
    manifest = import_mse_adapter(tmp_path / "in", tmp_path / "out", dataset)
    samples = by_id(tmp_path / "out")
    assert len(samples) == 9
    expected = {"meld": ["neutral", "joy", "anger"], "cherma": ["anger", "surprise", "happiness"]}[dataset]
    for split, rows in files.items():
        for number, row in enumerate(rows):
            sample, features = samples[f"{dataset}-{split}-{number:05d}"], row["features"]
            assert (sample.text, sample.label, sample.split) == (f"{split} line {number}", expected[number], split)
            np.testing.assert_array_equal(sample.features["audio"], features["audio"][: features["audio_len"]])
            np.testing.assert_array_equal(sample.features["vision"], features["video"][: features["video_len"]])
    assert manifest["languages"] == ["en" if dataset == "meld" else "zh"]
    assert [file["file"] for file in manifest["source"]["files"]] == [f"{dataset}_{s}.pkl" for s in files]
    frames = sum(int(row["features"]["video_len"]) for rows in files.values() for row in rows)
    assert manifest["source"]["features"]["vision"]["frames_kept"] == frames


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda row: row.pop("label"), "row 1: a dict with label"),
        (lambda row: row.update(label="bored"), "row 1: label 'bored' is not in the label space"),
        (lambda row: row.update(features=[1]), "row 1: a dict with label"),
        (lambda row: row["features"].pop("text"), "row 1: features has no text"),
        (lambda row: row["features"].update(audio=np.zeros(64)), r"row 1: audio is float64 \[64\]"),
        (lambda row: row["features"].update(video=[[1.0]]), "row 1: video is list"),
        (lambda row: row["features"].update(video_len=1.0), "row 1: video_len is 1.0; a whole number"),
        (lambda row: row["features"].update(text=pickle.loads), "asks for '_pickle.loads'"),
    ],
)
def test_bad_mse_adapter_files(change, reason, tmp_path):
    rows = adapter_files(tmp_path / "in", "meld")["test"]
    change(rows[1])
    write(tmp_path / "in" / "meld_test.pkl", rows)
    with pytest.raises(ShardError, match=reason):
        import_mse_adapter(tmp_path / "in", tmp_path / "out", "meld")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_mse_adapter_needs_all_three_files(tmp_path):
    adapter_files(tmp_path / "in", "meld")
    (tmp_path / "in" / "meld_valid.pkl").unlink()
    with pytest.raises(ShardError, match=r"meld_valid.pkl: there is no such file"):
        import_mse_adapter(tmp_path / "in", tmp_path / "out", "meld")
    with pytest.raises(ShardError, match="of meld or cherma"):
        import_mse_adapter(tmp_path / "in", tmp_path / "out", "mosi")
    write(tmp_path / "in" / "meld_valid.pkl", [])
    with pytest.raises(ShardError, match="not empty"):
        import_mse_adapter(tmp_path / "in", tmp_path / "out", "meld")
    assert not (tmp_path / "out").exists()
