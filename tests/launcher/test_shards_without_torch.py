"""Every `egmf shards` verb on a small input of its kind, in a process that imports neither torch nor what needs it."""

from __future__ import annotations

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from egmf_launcher.cli import VERBS

TESTS = Path(__file__).resolve().parents[1]
TASK = TESTS.parent / "configs" / "tasks" / "example.yaml"
SPLITS = ("train", "valid", "test")
# One verb after another: a module that one of them imported would be seen with all that follow, so it stops there.
CHILD = """
import json, sys
from egmf_launcher.cli import main
for line in json.loads(sys.argv[1]):
    code = main(line.split())
    heavy = sorted({"torch", "transformers", "deepspeed", "ray"} & set(sys.modules))
    if code or heavy:
        sys.exit(f"egmf {line}: exit code {code}, imported {heavy}")
"""
LINES = {
    "shards synth": "--out made --samples 40",
    "shards info": "made --plot made.png",
    "shards verify": "made",
    "shards import meld": "--source meld --out out-meld --audio npy",
    "shards import label-csv": "--source label.csv --dataset simsv2 --out out-label-csv",
    "shards import mmsa": "--source mmsa.pkl --dataset mosi --out out-mmsa",
    "shards import mse-adapter": "--source adapter --dataset meld --out out-mse-adapter",
    "shards import cherma": "--source cherma --out out-cherma",
    "shards import jsonl": f"--source data.jsonl --task {TASK} --dataset mine --out out-jsonl",
    "shards index": "out-jsonl --tasks tasks.json --force",
    "shards import csd": "--source csd --dataset mosei --split-file csd/split.json --out out-csd",
}
"""In this order: `info` and `verify` look at what `synth` made, `index` at what `import jsonl` made."""


def test_every_verb_is_here() -> None:
    assert LINES.keys() == {verb for verb in VERBS if verb.startswith("shards")}


def test_no_verb_imports_torch(tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="h5py is not installed; it is the extra 'csd'")
    for make in (meld, tables, mmsa, mse_adapter, cherma, csd):
        make(tmp_path)
    lines = [f"{verb} {rest}" for verb, rest in LINES.items()]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(lines)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def meld(folder: Path) -> None:
    (folder / "meld").mkdir()
    (folder / "npy" / "train").mkdir(parents=True)
    np.save(folder / "npy" / "train" / "dia0_utt0.npy", np.ones((3, 4), np.float32))
    for split in ("train", "dev", "test"):
        text = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n1,Hello,Ross,joy,positive,0,0\n"
        (folder / "meld" / f"{split}_sent_emo.csv").write_text(text)


def tables(folder: Path) -> None:
    rows = "".join(f"video_{i},1,words,0.2,{split}\n" for i, split in enumerate(SPLITS))
    (folder / "label.csv").write_text(f"video_id,clip_id,text,label,mode\n{rows}")
    line = {"id": "a", "split": "train", "text": "hello", "label": "calm", "language": "en"}
    (folder / "data.jsonl").write_text(json.dumps(line) + "\n")
    task = yaml.safe_load(TASK.read_text(encoding="utf-8"))
    (folder / "tasks.json").write_text(json.dumps([task]), encoding="utf-8")


def mmsa(folder: Path) -> None:
    path = TESTS / "data_shards" / "mmsa_files.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    files = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(files)
    files.write(folder / "mmsa.pkl", files.mmsa_data("mosi"))


def mse_adapter(folder: Path) -> None:
    (folder / "adapter").mkdir()
    audio, video = np.ones((157, 64), np.float32), np.ones((32, 64), np.float32)
    features = {"text": "hello", "audio": audio, "video": video, "audio_len": 157, "video_len": 32}
    for split in SPLITS:
        data = pickle.dumps([{"label": "joy", "features": features}], protocol=4)
        (folder / "adapter" / f"meld_{split}.pkl").write_bytes(data)


def cherma(folder: Path) -> None:
    for split in SPLITS:
        for modality, file, dim in (("audio", "clip", 1024), ("visual", "clip.mp4", 2048)):
            (folder / "cherma" / modality / split).mkdir(parents=True)
            np.save(folder / "cherma" / modality / split / f"{file}.npy", np.ones((2, dim), np.float32))
        entry = {"audio_file": "clip.wav", "video_file": "clip.mp4", "txt_label": "平静"}
        entry |= {f"{modality}_label": "平静" for modality in ("audio", "visual", "video")}
        (folder / "cherma" / f"{split}.json").write_text(json.dumps([entry]), encoding="utf-8")


def csd(folder: Path) -> None:
    import h5py

    (folder / "csd").mkdir()
    for file, name, rows in (
        ("CMU_MOSEI_Labels.csd", "All Labels", np.array([[1.0] + [0.0] * 6], np.float32)),
        ("CMU_MOSEI_TimestampedWords.csd", "words", np.array([[b"hello"]], dtype="S32")),
    ):
        with h5py.File(folder / "csd" / file, "w") as out:
            data = out.create_group(name).create_group("data")
            for split in SPLITS:
                data.create_dataset(f"video-{split}/features", data=rows)
                data.create_dataset(f"video-{split}/intervals", data=np.array([[0.0, 2.0]]))
    (folder / "csd" / "split.json").write_text(json.dumps({split: [f"video-{split}"] for split in SPLITS}))
