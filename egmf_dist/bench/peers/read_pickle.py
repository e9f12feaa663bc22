"""A padded pickle as MMSA's: one dict of dense arrays in memory, torch's Dataset, DataLoader and default collate.

The layout holds id, text, features, lengths and target of a sample; no speaker and no context.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol import Batch, Passes, serve
from tars import read_samples
from torch.utils.data import DataLoader, Dataset

NAME = "padded.pkl"


def prepare(arguments: dict[str, Any]) -> None:
    """Pad the samples of the tars in ``source`` to the longest and pickle them into ``data``."""
    ids, texts, targets = [], [], []
    features: dict[str, list[np.ndarray]] = {"audio": [], "vision": []}
    for facts, audio, vision in read_samples(Path(arguments["source"])):
        ids.append(facts["id"])
        texts.append(facts["text"])
        targets.append(facts["value"])
        features["audio"].append(audio)
        features["vision"].append(vision)
    split: dict[str, Any] = {"id": ids, "raw_text": texts, "regression_labels": np.array(targets)}
    for modality, arrays in features.items():
        split[f"{modality}_lengths"] = [len(a) for a in arrays]
        dense = np.zeros((len(arrays), max(map(len, arrays)), arrays[0].shape[1]), np.float32)
        for row, array in zip(dense, arrays, strict=True):
            row[: len(array)] = array
        split[modality] = dense
    with open(Path(arguments["data"]) / NAME, "wb") as file:
        pickle.dump({"train": split}, file, protocol=4)


class Clips(Dataset[dict[str, Any]]):
    """One item a sample, as MMSA's loader makes it."""

    def __init__(self, split: dict[str, Any]) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split["id"])

    def __getitem__(self, i: int) -> dict[str, Any]:
        split = self.split
        return {
            "id": split["id"][i],
            "raw_text": split["raw_text"][i],
            "audio": torch.from_numpy(split["audio"][i]),
            "vision": torch.from_numpy(split["vision"][i]),
            "audio_lengths": split["audio_lengths"][i],
            "vision_lengths": split["vision_lengths"][i],
            "labels": split["regression_labels"][i],
        }


def open_reader(arguments: dict[str, Any]) -> Passes:
    """Passes over the pickle in the folder ``data``, in its order."""
    with open(Path(arguments["data"]) / NAME, "rb") as file:
        split = pickle.load(file)["train"]
    workers = arguments["workers"]
    loader = DataLoader(
        Clips(split), batch_size=arguments["batch"], num_workers=workers, persistent_workers=workers > 0
    )

    def one_pass() -> Iterator[Batch]:
        for batch in loader:
            columns = zip(batch["id"], batch["raw_text"], batch["labels"].tolist(), strict=True)
            yield Batch(
                [{"id": name, "text": text, "value": value} for name, text, value in columns],
                batch["audio"],
                batch["vision"],
                batch["audio_lengths"],
                batch["vision_lengths"],
            )

    return one_pass


if __name__ == "__main__":
    serve(open_reader, prepare, load_is_cold=True)
