"""WebDataset, in the order of the shards: a shuffle buffer would only cost it time."""

from __future__ import annotations

import os
from typing import Any

# Read when it is imported: its decoder then runs no pickle of a tar, and its opener no shell.
os.environ["WDS_SECURE"] = "1"

import webdataset
from protocol import Batch, Passes, as_is, pack, serve


def collate(samples: list[dict[str, Any]]) -> Batch:
    """The samples of one batch, packed."""
    return pack([s["json"] for s in samples], [s["audio.npy"] for s in samples], [s["vision.npy"] for s in samples])


def open_reader(arguments: dict[str, Any]) -> Passes:
    """Passes over the tars ``files``, each decoded by the library's own decoder."""
    dataset = webdataset.WebDataset(arguments["files"], shardshuffle=False).decode()
    batches = dataset.batched(arguments["batch"], collation_fn=collate, partial=True)
    workers = arguments["workers"]
    if not workers:
        return lambda: iter(batches)
    loader = webdataset.WebLoader(
        batches, batch_size=None, num_workers=workers, persistent_workers=True, collate_fn=as_is
    )
    return lambda: iter(loader)


if __name__ == "__main__":
    serve(open_reader, packages=["webdataset"])
