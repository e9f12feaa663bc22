"""Keys from any ids: different ids give different keys, plain ids the keys they always had, and the ids are kept."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egmf_shards import Sample, ShardError, ShardSet, import_cherma, import_jsonl, import_label_csv, import_mmsa
from egmf_shards.check.verify import verify
from egmf_shards.format.rules import KEY
from egmf_shards.format.task import Task
from egmf_shards.importers.cherma import LABELS
from egmf_shards.importers.keys import clip_name, escaped, name, unescaped
from egmf_shards.importers.streams import MODALITIES

PAIRS = [
    (("访谈", "1"), ("会议", "1")),
    (("a.b", "1"), ("a_b", "1")),
    (("a-1", "2"), ("a", "1-2")),
    (("a b", "1"), ("a  b", "1")),
    (("é", "1"), ("_ue9_", "1")),
    (("x", "é"), ("x", "_ue9_")),
    (("_u5f", "é"), ("_", "5fé")),
    (("🙂", "1"), ("🙃", "1")),
    (("A", "1"), ("a", "1")),
]


def random_text(rng: random.Random, letters: str) -> str:
    return "".join(rng.choice(letters) for _ in range(rng.randrange(9)))


@pytest.mark.parametrize("hyphens", [False, True])
def test_an_escape_can_be_taken_back_so_no_two_are_alike(hyphens):
    rng = random.Random(0)
    for _ in range(20_000):
        text = random_text(rng, "_u5feé.-aA访")
        key = escaped(text, hyphens)
        assert unescaped(key) == text
        assert KEY.fullmatch(key) or not text
        assert not (hyphens and "-" in key)


def test_different_clips_have_different_keys_with_labels_of_one_modality_too():
    rng, seen = random.Random(1), {}
    for _ in range(20_000):
        video = random_text(rng, "_u5f.-a访") or "v"
        clip = "".join(rng.choice(["_", "u5f_", "-", "text", "a", ".", "_u2d_"]) for _ in range(rng.randrange(1, 4)))
        key = clip_name("d", video, clip).key
        for found in (key, *(f"{key}-{modality}" for modality in MODALITIES)):
            said = (video, clip, found.removeprefix(key))
            assert seen.setdefault(found, said) == said


@pytest.mark.parametrize(
    "parts",
    [("video_0001", "0004"), ("-NFrJFQijFE", "0"), ("zv0Jl4TIQDc", "13"), ("a-1", "2"), ("x_ue", "1"), ("x_u3y", "1")],
)
def test_plain_ids_give_the_keys_they_always_gave(parts):
    assert clip_name("d", *parts) == ("d-" + "-".join(parts), "")
    assert name("x", "u_1-é") == ("u_1-_ue9_", "x")


def label_csv(folder: Path, ids: list[tuple[str, str]]) -> Path:
    rows = [f'"{video}","{clip}",x{n},0.2,train' for n, (video, clip) in enumerate(ids)]
    (folder / "l.csv").write_text("video_id,clip_id,text,label,mode\n" + "\n".join(rows) + "\n", encoding="utf-8")
    import_label_csv(folder / "l.csv", folder / "label-csv", "d", "zh")
    return folder / "label-csv"


def mmsa(folder: Path, ids: list[tuple[str, str]]) -> Path:
    def split(ids: list[tuple[str, str]], first: int = 0) -> dict[str, Any]:
        texts = [f"x{n + first}" for n in range(len(ids))]
        return {"id": [f"{v}$_${c}" for v, c in ids], "raw_text": texts, "regression_labels": [0.2] * len(ids)}

    data = {"train": split(ids), "valid": split([("v", "1")]), "test": split([("t", "1")])}
    (folder / "p.pkl").write_bytes(pickle.dumps(data))
    import_mmsa(folder / "p.pkl", folder / "mmsa", "simsv2")
    return folder / "mmsa"


def jsonl(folder: Path, ids: list[tuple[str, str]]) -> Path:
    lines = [{"id": f"{v}/{c}", "split": "train", "text": f"x{n}", "value": 0.2} for n, (v, c) in enumerate(ids)]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    task = Task(name="t", kind="regression", questions={"zh": "?"}, low=-1, high=1, step=0.2)
    import_jsonl(folder / "d.jsonl", folder / "jsonl", "d", task)
    return folder / "jsonl"


def csd(folder: Path, ids: list[tuple[str, str]]) -> Path:
    h5py = pytest.importorskip("h5py")
    from egmf_shards import import_csd

    videos = list(dict.fromkeys(video for video, _ in ids))
    with h5py.File(folder / "Labels.csd", "w") as labels, h5py.File(folder / "Words.csd", "w") as words:
        for video in videos:
            labels[f"x/data/{video}/features"] = np.full((1, 1), 0.2)
            words[f"x/data/{video}/features"] = np.array([[f"x{videos.index(video)}".encode()]])
            for file in (labels, words):
                file[f"x/data/{video}/intervals"] = np.array([[0.0, 1.0]])
    (folder / "folds.json").write_text(json.dumps({"train": videos}), encoding="utf-8")
    import_csd(folder, folder / "csd", "mosi", folder / "folds.json")
    return folder / "csd"


def read(folder: Path) -> list[Sample]:
    report = verify(folder)
    assert report.ok, list(map(str, report.problems))
    return sorted(ShardSet.open([folder], "train"), key=lambda sample: sample.text)


@pytest.mark.parametrize("importer", [label_csv, mmsa, jsonl, csd])
@pytest.mark.parametrize("pair", PAIRS)
def test_every_importer_keeps_ids_apart_and_says_them(importer, pair, tmp_path):
    if importer is csd:  # its clips have numbers of their own
        pair = tuple((video + clip, "0") for video, clip in pair)
    samples = read(importer(tmp_path, list(pair)))
    assert len({sample.id for sample in samples}) == 2
    form = {label_csv: "{}$_${}", mmsa: "{}$_${}", jsonl: "{}/{}", csd: "{}[{}]"}[importer]
    for sample, ids in zip(samples, pair, strict=True):
        said = form.format(*ids)
        assert sample.source_id in ("", said)
        if not sample.source_id:  # the key holds the ids letter for letter
            assert sample.id.endswith("-".join(ids))


def test_clips_of_cherma_by_their_names(tmp_path):
    names = ["访谈", "会议", "a.b", "a_b", "x-audio", "x"]
    for split in ("train", "valid", "test"):
        entries = [
            {
                "audio_file": f"{n}.wav",
                "video_file": f"{n}.mp4",
                "video_label": "平静",
                "audio_label": next(iter(LABELS)),
            }
            | {"txt_label": "平静", "visual_label": "平静"}
            for n in names
        ]
        (tmp_path / f"{split}.json").write_text(json.dumps(entries), encoding="utf-8")
        for n, clip in enumerate(names):
            for folder, file in (("audio", clip), ("visual", f"{clip}.mp4")):
                (tmp_path / folder / split).mkdir(parents=True, exist_ok=True)
                np.save(tmp_path / folder / split / f"{file}.npy", np.full((2, 3), n + 1.0))
    import_cherma(tmp_path, tmp_path / "out", modality_labels=True)
    samples = [s for s in ShardSet.open([tmp_path / "out"], "train") if s.task == "cherma-emotion"]
    assert [s.source_id for s in samples] == ["访谈", "会议", "a.b", "", "x-audio", ""]
    assert [int(s.features["audio"][0, 0]) for s in samples] == [1, 2, 3, 4, 5, 6]
    assert {s.id for s in samples} >= {"cherma-train-a_b", "cherma-train-x-_u61_udio", "cherma-train-x"}


def test_the_same_id_twice_names_both_places(tmp_path):
    path = tmp_path / "l.csv"
    path.write_text(
        "video_id,clip_id,text,label,mode\n会,1,x,0,train\nb,1,y,0,train\n会,1,z,0,test\n", encoding="utf-8"
    )
    with pytest.raises(
        ShardError, match=r"l.csv, line 4: sample 'd-_u4f1a_-1': the id occurs twice, first in .*line 2"
    ):
        import_label_csv(path, tmp_path / "out", "d", "zh")


def test_an_id_of_any_length_is_no_file_and_no_crash(tmp_path):
    (tmp_path / "audio").mkdir()
    lines = [{"id": n, "split": "train", "text": "x", "value": 0.2} for n in ("a", "x" * 400, "b\0c", "../../a", "/a")]
    np.save(tmp_path / "audio" / "a.npy", np.ones((2, 3)))
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    task = Task(name="t", kind="regression", questions={"zh": "?"}, low=-1, high=1, step=0.2)
    import_jsonl(tmp_path / "d.jsonl", tmp_path / "out", "d", task, tmp_path / "audio")
    samples = list(ShardSet.open([tmp_path / "out"], "train"))
    assert ["audio" in s.features for s in samples] == [True, False, False, False, False]
    assert [s.source_id for s in samples] == ["", "", "b\0c", "../../a", "/a"]
