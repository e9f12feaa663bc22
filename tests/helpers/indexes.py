"""Indexes that a test changes: what is read of a file is mapped, and read-only. And what follows from one: an order."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from egmf_shards import ShardSet, Stream, StreamOptions
from egmf_shards.format.index import Index, load_index


def held_index(folder: Path) -> Index:
    """The index of a folder as arrays of its own, whatever its shards are; its hash follows when it is asked for."""
    index = load_index(folder, check_shards=False)
    columns = {field.name: getattr(index, field.name) for field in dataclasses.fields(index) if field.init}
    held = {name: column.copy() for name, column in columns.items() if isinstance(column, np.ndarray)}
    return dataclasses.replace(index, **held, frames={name: column.copy() for name, column in index.frames.items()})


def epochs_of(stream: Stream, count: int, epochs: int) -> list[int]:
    """The sample numbers of some epochs of so many samples, global batch by global batch."""
    positions = range(0, -(-count * epochs // stream.global_batch) * stream.global_batch, stream.global_batch)
    return [slot.index for p in positions for slot in stream.global_slots(p)][: count * epochs]


def new_stream(shards: ShardSet, rank: int = 0, world: int = 1, **options: object) -> Stream:
    """A rank's stream with global batches of 7."""
    sizes = {"global_batch": 7, "micro_batch": 2, "rank": rank, "world": world}
    return Stream(shards, seed=3, options=StreamOptions(**options), **sizes)
