"""Feature arrays, by the same rules in every importer: axes of 1, zeros, and files that are something else."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egmf_shards import (
    Sample,
    ShardError,
    ShardSet,
    import_cherma,
    import_jsonl,
    import_label_csv,
    import_meld,
    import_mmsa,
    import_mse_adapter,
)
from egmf_shards.format.manifest import dims_of
from egmf_shards.format.task import Task
from egmf_shards.importers.repairs import without_axes_of_1

SPLITS = ("train", "valid", "test")


def table(folder: Path, clips: int = 3) -> Path:
    rows = [f"v,{n},x,0.2,{SPLITS[n % 3]}" for n in range(clips)]
    (folder / "l.csv").write_text("video_id,clip_id,text,label,mode\n" + "\n".join(rows) + "\n", encoding="utf-8")
    (folder / "audio").mkdir(exist_ok=True)
    return folder / "l.csv"


def samples_of(out: Path) -> list[Sample]:
    return [sample for split in SPLITS for sample in ShardSet.open([out], split)]


def of_label_csv(folder: Path, arrays: list[np.ndarray]) -> dict[str, Any]:
    source = table(folder)
    for n, array in enumerate(arrays):
        np.save(folder / "audio" / f"v_{n}.npy", array)
    return import_label_csv(source, folder / "out", "d", "zh", audio=folder / "audio")


def of_jsonl(folder: Path, arrays: list[np.ndarray]) -> dict[str, Any]:
    (folder / "audio").mkdir()
    lines = [{"id": f"c{n}", "split": split, "text": "x", "value": 0.2} for n, split in enumerate(SPLITS)]
    for n, array in enumerate(arrays):
        np.save(folder / "audio" / f"c{n}.npy", array)
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    task = Task(name="t", kind="regression", questions={"zh": "?"}, low=-1, high=1, step=0.2)
    return import_jsonl(folder / "d.jsonl", folder / "out", "d", task, folder / "audio")


def of_meld(folder: Path, arrays: list[np.ndarray]) -> dict[str, Any]:
    header = "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID"
    for split, array in zip(("train", "dev", "test"), arrays, strict=True):
        (folder / f"{split}_sent_emo.csv").write_text(f"{header}\nx,A,joy,0,0\n", encoding="utf-8")
        (folder / "audio" / split).mkdir(parents=True)
        np.save(folder / "audio" / split / "dia0_utt0.npy", array)
    return import_meld(folder, folder / "out", audio=folder / "audio")


def of_cherma(folder: Path, arrays: list[np.ndarray]) -> dict[str, Any]:
    for split, array in zip(SPLITS, arrays, strict=True):
        entry = {"audio_file": "c.wav", "video_file": "c.mp4", "video_label": "平静"}
        (folder / f"{split}.json").write_text(json.dumps([entry]), encoding="utf-8")
        for name, file, x in (("audio", "c", array), ("visual", "c.mp4", np.ones((1, 2)))):
            (folder / name / split).mkdir(parents=True)
            np.save(folder / name / split / f"{file}.npy", x)
    return import_cherma(folder, folder / "out")


def of_mmsa(folder: Path, arrays: list[np.ndarray]) -> dict[str, Any]:
    data = {
        split: {"id": [f"{split}$_$1"], "raw_text": ["x"], "regression_labels": [0.2], "audio": array[None]}
        | {"audio_lengths": [max(array.shape[:-1])]}
        for split, array in zip(SPLITS, arrays, strict=True)
    }
    (folder / "p.pkl").write_bytes(pickle.dumps(data))
    return import_mmsa(folder / "p.pkl", folder / "out", "simsv2")


def of_mse_adapter(folder: Path, arrays: list[np.ndarray]) -> dict[str, Any]:
    for split, array in zip(SPLITS, arrays, strict=True):
        features = {"text": "x", "audio": array, "video": np.ones((1, 2)), "video_len": 1}
        row = {"label": "joy", "features": features | {"audio_len": max(array.shape[:-1])}}
        (folder / f"meld_{split}.pkl").write_bytes(pickle.dumps([row]))
    return import_mse_adapter(folder, folder / "out", "meld")


def of_csd(folder: Path, arrays: list[np.ndarray]) -> dict[str, Any]:
    h5py = pytest.importorskip("h5py")
    from egmf_shards import import_csd

    with h5py.File(folder / "Labels.csd", "w") as labels, h5py.File(folder / "COVAREP.csd", "w") as audio:
        for split, array in zip(SPLITS, arrays, strict=True):
            frames = max(array.shape[:-1])
            labels[f"x/data/{split}/features"], audio[f"x/data/{split}/features"] = np.full((1, 1), 0.2), array
            labels[f"x/data/{split}/intervals"] = np.array([[0.0, float(frames)]])
            audio[f"x/data/{split}/intervals"] = np.stack([np.arange(frames), np.arange(frames) + 1.0], axis=1)
    (folder / "folds.json").write_text(json.dumps({split: [split] for split in SPLITS}), encoding="utf-8")
    return import_csd(folder, folder / "out", "mosi", folder / "folds.json")


Importer = Callable[[Path, list[np.ndarray]], dict[str, Any]]
IMPORTERS = [of_label_csv, of_jsonl, of_meld, of_cherma, of_mmsa, of_mse_adapter, of_csd]


def clip(n: int, frames: int = 4) -> np.ndarray:
    return np.random.default_rng(n).uniform(0.5, 2, (frames, 3)).astype(np.float32)


@pytest.mark.parametrize("importer", IMPORTERS)
def test_zeros_are_an_absent_modality_and_counted(importer, tmp_path):
    """Nothing but zeros, or what becomes zeros: a clip without one finite number."""
    manifest = importer(tmp_path, [np.zeros((4, 3), np.float32), np.full((4, 3), np.nan, np.float32), clip(2)])
    samples = samples_of(tmp_path / "out")
    assert ["audio" in sample.modalities for sample in samples] == [False, False, True]
    np.testing.assert_array_equal(samples[2].features["audio"], clip(2))
    report = manifest["source"]["features"]["audio"]
    assert (report["clips_of_zeros"], report["frames_kept"]) == (2, 4)
    assert (report["clips_with_non_finite_set_to_0"], report["numbers_not_finite_set_to_0"]) == (1, 12)


@pytest.mark.parametrize("importer", IMPORTERS)
def test_no_clip_at_all_is_said(importer, tmp_path, capsys):
    assert dims_of(importer(tmp_path, [np.zeros((4, 3))] * 3))["audio"] == 0
    assert "audio: not one clip has it" in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("shape", [(1, 4, 3), (4, 1, 3), (1, 1, 4, 3), (4, 1, 1, 3)])
@pytest.mark.parametrize("importer", IMPORTERS)
def test_axes_of_1_are_taken_off_and_counted(importer, shape, tmp_path):
    manifest = importer(tmp_path, [clip(n).reshape(shape) for n in range(3)])
    samples = samples_of(tmp_path / "out")
    for n, sample in enumerate(samples):
        np.testing.assert_array_equal(sample.features["audio"], clip(n))
    counts = manifest["source"]["features"]["audio"]
    name = "sequences" if importer is of_csd else "clips"
    assert counts[f"{name}_with_axes_of_1_taken_off"] == 3
    assert dims_of(manifest)["audio"] == 3


@pytest.mark.parametrize(
    ("shape", "left"),
    [
        ((1, 7, 3), (7, 3)), ((7, 1, 3), (7, 3)), ((7, 3, 1), (7, 3)), ((1, 1, 3), (1, 3)), ((1, 7, 1), (7, 1)),
        ((1, 3), (1, 3)), ((3, 1), (3, 1)), ((3,), (3,)), ((2, 7, 3), (2, 7, 3)), ((1, 2, 7, 3), (2, 7, 3)),
    ],
)  # fmt: skip
def test_as_few_axes_as_possible_from_the_left(shape, left):
    assert without_axes_of_1(np.zeros(shape)).shape == left


def zip_of_torch(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"")


def saved(array: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path, array, allow_pickle=True)


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "two of more than 1": (saved(np.ones((2, 7, 3), np.float32)), r"float32 \[2, 7, 3\]; \[frames, dim\] or \[dim\]"),
    "a number alone": (saved(np.float32(1)), r"float32 \[\]; \[frames, dim\] or \[dim\]"),
    "no frame": (saved(np.ones((0, 3), np.float32)), r"float32 \[0, 3\]; \[frames, dim\] or \[dim\]"),
    "complex": (saved(np.ones((7, 3), np.complex64)), r"complex64 \[7, 3\]; real numbers are needed"),
    "bool": (saved(np.ones((7, 3), bool)), r"bool \[7, 3\]; real numbers are needed"),
    "text": (saved(np.full((7, 3), "x")), r"<U1 \[7, 3\]; real numbers are needed"),
    "objects": (saved(np.array([np.ones(3), np.ones(2)], object)), "an array of objects; numbers"),
    "a pickle": (lambda p: p.write_bytes(pickle.dumps(np.ones((7, 3)))), "a pickle; numpy.save"),
    "a table": (lambda p: p.write_text("1,2,3\n"), "no .npy file; numpy.save"),
    "nothing": (lambda p: p.write_bytes(b""), "no .npy file; numpy.save"),
    "half a file": (lambda p: (np.save(p, np.ones((7, 3))), p.write_bytes(p.read_bytes()[:-8])), "declares 168 bytes"),
    "torch.save": (zip_of_torch, "written by torch.save"),
    "a pointer": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "a Git LFS pointer"),
    "a web page": (lambda p: p.write_text("\n<!DOCTYPE html><title>Virus scan warning</title>"), "a web page"),
    "a folder's archive": (lambda p: np.savez(p.open("wb"), a=np.ones(3)), "a zip archive; unpack it first"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_modality_of_which_not_one_clip_can_be_read_is_refused(name, tmp_path):
    write, reason = UNREADABLE[name]
    source = table(tmp_path)
    for n in range(3):
        write(tmp_path / "audio" / f"v_{n}.npy")
    before = sorted(p.name for p in tmp_path.iterdir())
    wanted = rf"audio: the audio features of not one clip can be read; the first of 3 is .*v_0.npy: .*{reason}"
    with pytest.raises(ShardError, match=wanted) as caught:
        import_label_csv(source, tmp_path / "out", "d", "zh", audio=tmp_path / "audio")
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_clip_among_others_is_named_with_the_reason(name, tmp_path, capsys):
    write, reason = UNREADABLE[name]
    source = table(tmp_path)
    np.save(tmp_path / "audio" / "v_0.npy", clip(0))
    write(tmp_path / "audio" / "v_2.npy")
    manifest = import_label_csv(source, tmp_path / "out", "d", "zh", audio=tmp_path / "audio")
    counts = manifest["source"]["features"]["audio"]
    assert (counts["clips_found"], counts["clips_unreadable"], counts["clips_without_file"]) == (2, 1, 1)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "unreadable, so absent" in line]
    assert line == f"audio: unreadable, so absent: {manifest['source']['unreadable']['audio'][0]}"
    assert line.startswith("audio: unreadable, so absent: v_2.npy: ")
    assert re.search(reason, line)


def test_ten_unreadable_clips_are_named_and_all_counted(tmp_path, capsys):
    source = table(tmp_path, 15)
    for n in range(15):
        np.save(tmp_path / "audio" / f"v_{n}.npy", clip(n) if n == 3 else np.ones((2, 2, 2)))
    manifest = import_label_csv(source, tmp_path / "out", "d", "zh", audio=tmp_path / "audio")
    assert manifest["source"]["features"]["audio"]["clips_unreadable"] == 14
    assert capsys.readouterr().err.count("unreadable, so absent") == 10


def test_a_pickles_array_of_another_type_or_shape_says_which(tmp_path):
    for array, reason in (
        (np.ones((1, 2, 7, 3)), r"train: audio is float64 \[1, 2, 7, 3\]"),
        (np.ones((1, 4, 3), bool), r"train: audio is bool \[1, 4, 3\]"),
        ([[[1.0]]], "train: audio is list"),
    ):
        split = {"id": ["v$_$1"], "raw_text": ["x"], "regression_labels": [0.2], "audio": array}
        (tmp_path / "p.pkl").write_bytes(pickle.dumps(dict.fromkeys(SPLITS, split)))
        with pytest.raises(ShardError, match=reason):
            import_mmsa(tmp_path / "p.pkl", tmp_path / "out", "simsv2")
