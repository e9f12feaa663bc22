"""WebDataset tars as somebody else might have written them, and their tasks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import webdataset

MOOD = {
    "name": "mood",
    "kind": "classification",
    "questions": {"en": "Mood?"},
    "labels": ["good", "bad"],
    "answers": {"en": ["good", "bad"]},
}
SCORE = {
    "name": "score",
    "kind": "regression",
    "questions": {"en": "Score?"},
    "convention": "mosei",
    "low": -1,
    "high": 1,
    "step": 0.5,
}
TASKS = [MOOD, SCORE]
DIMS = {"audio": 74, "vision": 35}


def record(i: int) -> dict:
    """Sample ``i`` as another program has it: MOSEI's widths, ragged lengths, every third without audio."""
    rng = np.random.default_rng(i)
    arrays = {
        f"{m}.npy": rng.normal(size=(1 + (7 * i) % 50, dim)).astype(np.float32)
        for m, dim in DIMS.items()
        if m == "vision" or i % 3
    }
    split = ("train", "train", "valid", "test")[i % 4]
    fields = {
        "id": f"clip_{i}",
        "text": f"utterance {i} 字",
        "language": "en",
        "task": "score" if i % 2 else "mood",
        "dataset": "foreign",
        "split": split,
        "modalities": ["text", *(name.removesuffix(".npy") for name in arrays)],
        "context": [["Ann", "before"]],
    }
    target = {"value": i % 5 / 2 - 1} if i % 2 else {"label": "good"}
    return {"__key__": f"clip_{i}", "json": fields | target, **arrays}


def foreign(folder: Path, records: list[dict], tasks: object = TASKS) -> Path:
    """Two tars by plain webdataset, splits mixed, arrays encoded by webdataset itself (so not in our header's form)."""
    folder.mkdir()
    for number in range(2):
        with webdataset.TarWriter(str(folder / f"part-{number}.tar")) as sink:
            for one in records[number::2]:
                sink.write(one)
    if tasks is not None:
        (folder / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    return folder


def tasks_file(folder: Path) -> Path:
    (folder / "tasks.json").write_text(json.dumps(TASKS), encoding="utf-8")
    return folder / "tasks.json"
