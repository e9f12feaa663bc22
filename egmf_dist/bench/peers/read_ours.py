"""This project's reader: shards mapped into memory, CRC32 of every member, global random order."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from protocol import Batch, Passes, as_is, serve
from torch.utils.data import DataLoader, Dataset, Sampler

from egmf_shards import Order, ShardSet


class Positions(Dataset[Batch]):
    """An item is the batch from a position of the run on."""

    def __init__(self, folder: str, batch: int, in_workers: bool) -> None:
        self.shards = ShardSet.open([folder], "train")
        self.order = Order(len(self.shards), 0, self.shards.index_hash)
        self.batch = batch
        self.in_workers = in_workers

    def __getitem__(self, position: int) -> Batch:
        count = min(self.batch, len(self.shards) - position % len(self.shards))
        read = self.shards.read(self.order.indices(position, count))
        return Batch(
            # A sample holds its part of the packed features, which a worker would send a second time.
            [sample.to_json() for sample in read.samples] if self.in_workers else read.samples,
            *(torch.from_numpy(array) for array in read.features.values()),  # audio, then vision
            *read.frames.values(),
        )


class Epochs(Sampler[int]):
    """The first position of every batch of an epoch; the next time, of the next epoch."""

    def __init__(self, samples: int, batch: int) -> None:
        self.samples, self.batch, self.epoch = samples, batch, -1

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter(range(self.epoch * self.samples, (self.epoch + 1) * self.samples, self.batch))


def open_reader(arguments: dict[str, Any]) -> Passes:
    """Passes over the folder ``data``, each in an order of its own."""
    workers = arguments["workers"]
    dataset = Positions(arguments["data"], arguments["batch"], workers > 0)
    epochs = Epochs(len(dataset.shards), arguments["batch"])
    if not workers:
        return lambda: map(dataset.__getitem__, epochs)
    loader = DataLoader(
        dataset, batch_size=None, sampler=epochs, num_workers=workers, persistent_workers=True, collate_fn=as_is
    )
    return lambda: iter(loader)


if __name__ == "__main__":
    serve(open_reader, packages=["egmf-dist", *(name for name in ("isal", "orjson") if find_spec(name))])
