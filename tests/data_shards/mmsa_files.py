"""MMSA's pickles, made in their exact layout at their real widths."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

LAYOUTS = {  # padded lengths of text, audio, vision; widths of audio, vision
    "mosi": (50, 500, 375, 5, 20),
    "mosei": (50, 500, 375, 74, 35),
    "sims": (39, 400, 55, 33, 709),
    "simsv2": (50, 925, 232, 25, 177),
}
COUNTS = {"train": 4, "valid": 2, "test": 3}


def mmsa_split(dataset: str, split: str, count: int, aligned: bool = False) -> dict[str, Any]:
    """One split as MMSA writes it; real frames hold no zero, and lengths are ragged."""
    text_cap, audio_cap, vision_cap, audio_dim, vision_dim = LAYOUTS[dataset]
    if aligned:
        audio_cap = vision_cap = text_cap
    rng = np.random.default_rng(len(split) * 100 + len(dataset))
    lengths = {m: rng.integers(1, cap + 1, count) for m, cap in (("audio", audio_cap), ("vision", vision_cap))}
    arrays = {}
    for modality, cap, dim in (("audio", audio_cap, audio_dim), ("vision", vision_cap, vision_dim)):
        padded = np.zeros((count, cap, dim), np.float32)
        for row, length in enumerate(lengths[modality]):
            padded[row, :length] = rng.uniform(0.5, 2, (length, dim))
        arrays[modality] = padded
    high = 3 if dataset.startswith("mos") else 1
    labels = np.linspace(-high, high, count)
    data = {
        "raw_text": [f"{split} words {row} 字" for row in range(count)],
        "id": [f"{split}_vid-{row // 2}$_${row}" for row in range(count)],
        "text": rng.normal(size=(count, text_cap, 768)).astype(np.float32),
        "text_bert": np.zeros((count, 3, text_cap), np.float32),
        **arrays,
        "annotations": ["Positive" if label > 0 else "Negative" for label in labels],
        "regression_labels": labels,
        "classification_labels": np.sign(labels) + 1,
    }
    if not aligned:
        data |= {f"{m}_lengths": x.tolist() for m, x in lengths.items()}
    return data


def mmsa_data(dataset: str, aligned: bool = False) -> dict[str, Any]:
    return {split: mmsa_split(dataset, split, n, aligned) for split, n in COUNTS.items()}


def write(path: Path, data: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(data, protocol))
    return path
