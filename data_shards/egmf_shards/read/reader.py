"""Random access to the samples of one split in one or several shard folders.

A sample is a slice of a memory-mapped tar, checked by CRC32: no order of reading is faster than another, no shard has
to be split over ranks, and a flipped byte is an error that names the sample instead of a strange number in training.

Invariants: samples of several folders are concatenated in the given order; ``index_hash`` changes whenever any byte
of any sample, the split or the order of the folders changes; opening reads manifests and maps indexes, of which nothing
is held that grows with the samples; shards are mapped when first needed (so a set may be pickled or forked cheaply).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.format.index import Index, load_index
from egmf_shards.format.index_checks import shard_faults, tasks_fault
from egmf_shards.format.manifest import dims_of, read_manifest, tasks_of
from egmf_shards.format.sample import SPLITS, Sample
from egmf_shards.format.task import Task
from egmf_shards.read.columns import DIALOGUE, KEY, TARGET, TASK, Column
from egmf_shards.read.packed import Packed, Table
from egmf_shards.storage.base import Storage, StorageOptions
from egmf_shards.storage.opening import open_storage


class _Folder:
    """One folder's part of a :class:`ShardSet`, before they are put together."""

    def __init__(self, storage: Storage, split: str, tolerate: bool) -> None:
        self.storage = storage
        self.manifest: dict[str, Any] = read_manifest(storage)
        self.tasks = tasks_of(self.manifest, storage)
        self.index: Index = load_index(storage, check_shards=False)
        # Of this split alone: what training tolerates in its own shards is nothing to scoring, and the other way round.
        self.faults = list(shard_faults(storage, self.index, SPLITS.index(split)))
        if self.faults and not tolerate:
            raise ShardError(self.faults[0])
        if self.index.content_hash != self.manifest["index"]:
            raise ShardError(
                f"{storage.location}: index and manifest do not belong together (the content hashes differ): "
                "write the folder anew"
            )
        fault = tasks_fault(self.index, self.tasks)
        if fault:
            raise ShardError(f"{storage.location}: {fault}")
        if not self.index.facts.counts[SPLITS.index(split)]:
            raise ShardError(
                f"{storage.location}: its split {split!r} is empty; it holds {', '.join(self.manifest['splits'])}"
            )


class ShardSet(Sequence[Sample]):
    """The samples of one split, by number. Make it with :meth:`open`."""

    tasks: dict[str, Task]
    """Every task of every folder, by name."""
    streams: dict[str, tuple[int, ...]]
    """The folders' feature streams by name, sorted, and the widths that each has; none where no sample has it."""
    languages: tuple[str, ...]
    folders: list[str]
    """Paths or URLs, in the given order."""
    counts: list[int]
    """Samples of each folder."""
    manifests: list[dict[str, Any]]
    """The manifests, in the order of the folders."""
    index_hash: str
    """SHA-256 (hex) of the split's name and the folders' content hashes."""
    faults: list[str]
    """One line for each shard that is missing or has a wrong size; empty unless bad samples are tolerated."""

    def __init__(self, folders: list[_Folder], split: str) -> None:
        self.split = split
        self.folders = [folder.storage.location for folder in folders]
        self.manifests = [folder.manifest for folder in folders]
        self.languages = tuple(sorted({language for m in self.manifests for language in m["languages"]}))
        self.tasks = _merge_tasks(folders)
        dims = [dims_of(m) for m in self.manifests]
        names = sorted({name for own in dims for name in own})
        self.streams = {name: tuple(sorted({own.get(name, 0) for own in dims} - {0})) for name in names}
        self.faults = [fault for folder in folders for fault in folder.faults]
        hashes = [folder.index.content_hash for folder in folders]
        self.index_hash = hashlib.sha256("\n".join([split, *hashes]).encode()).hexdigest()
        self.table = Table(
            [(folder.storage, folder.index) for folder in folders],
            split,
            self.tasks,
            self.languages,
            dims,
            [str(m["dataset"]) for m in self.manifests],
        )
        self.counts = self.table.counts

    @classmethod
    def open(
        cls,
        folders: Sequence[str | os.PathLike[str]],
        split: str,
        *,
        storage: StorageOptions | None = None,
        tolerate: bool = False,
    ) -> ShardSet:
        """Open ``split`` of the given folders.

        Args:
            folders: paths, or URLs that fsspec knows.
            split: ``train``, ``valid``, ``test`` or ``unlabelled``.
            storage: how remote folders are read.
            tolerate: a shard that is missing or has a wrong size becomes one of :attr:`faults` instead of an error.

        Raises:
            ShardError: no folder; a folder given twice (or as a copy), missing, unfinished, damaged or without that
                split; a task with two definitions.
        """
        if isinstance(folders, str | os.PathLike):
            raise ShardError(f"shards are {str(folders)!r}; a list of folders is needed")
        if not folders:
            raise ShardError("no folder of shards is given; at least one is needed")
        if split not in SPLITS:
            raise ShardError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
        parts: list[_Folder] = []
        for folder in folders:
            part = _Folder(open_storage(folder, storage), split, tolerate)
            for other in parts:
                if part.index.content_hash == other.index.content_hash:
                    raise ShardError(
                        f"{part.storage.location}: the same shards as {other.storage.location}; give each folder once"
                    )
            parts.append(part)
        return cls(parts, split)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> Sample:  # type: ignore[override]
        """Sample number ``i``, decoded and checked.

        Raises:
            ShardError: its bytes have changed (the message names shard, sample and member).
            IndexError: there is no such number.
        """
        return self.table.read([i]).samples[0]

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def read(self, indices: Sequence[int] | np.ndarray, tolerate: bool = False) -> Packed:
        """Several samples at once, checked, their features packed.

        Args:
            indices: sample numbers, in any order.
            tolerate: a sample that cannot be read whole becomes a placeholder without modalities, and one of
                ``Packed.bad``; otherwise the first one is an error.

        Raises:
            ShardError: a sample's bytes have changed, its members do not fit together or to index and manifest, or a
                feature is not finite; names shard, sample and member.
            IndexError: there is no such number.
        """
        return self.table.read(indices, tolerate)

    def key(self, i: int) -> str:
        """The id of sample ``i``, without reading the shard."""
        return str(self.table.column(KEY)[np.array([i])][0])

    def find(self, ids: Collection[str]) -> list[int]:
        """The numbers of the samples with these ids, ascending."""
        numbers, first = [], 0
        for keys in self.table.column(KEY).pieces():
            numbers += [first + i for i, key in enumerate(keys.tolist()) if key in ids]
            first += len(keys)
        return numbers

    @property
    def task_numbers(self) -> np.ndarray:
        """int32 ``[len(self)]``: which of :attr:`tasks`, in their order, each sample is of; held by whoever asks."""
        return np.asarray(self.table.column(TASK))

    @property
    def without_target(self) -> np.ndarray:
        """int64: the numbers of the samples that have no target."""
        found, first = [np.zeros(0, np.int64)], 0
        for target in self.table.column(TARGET).pieces():
            found.append(first + np.flatnonzero(target == 0))
            first += len(target)
        return np.concatenate(found)

    @property
    def dialogues(self) -> Column:
        """int64 ``[len(self)]``: samples of one dialogue have the same number; -1 for those of none.

        Raises:
            ShardError: the index of a folder does not say it.
        """
        for folder, part in zip(self.folders, self.table.columns.parts, strict=True):
            if part.index.dialogue is None:
                raise ShardError(
                    f"{folder}: its index does not say which dialogue a sample is of; `egmf shards index` adds it"
                )
        return self.table.column(DIALOGUE)

    @property
    def columns(self) -> tuple[str, ...]:
        """The index's columns of lengths: ``text_chars``, and ``audio_frames`` and the like for every stream."""
        return self.table.lengths

    def column(self, name: str) -> Column:
        """int32 ``[len(self)]``: one of :attr:`columns`."""
        if name not in self.columns:
            raise ShardError(f"the index has no column {name!r}; it has {', '.join(self.columns)}")
        return self.table.column(name)


def _merge_tasks(folders: list[_Folder]) -> dict[str, Task]:
    merged: dict[str, tuple[Task, str]] = {}
    for folder in folders:
        for name, task in folder.tasks.items():
            known, where = merged.setdefault(name, (task, folder.storage.location))
            if known != task:
                raise ShardError(
                    f"task {name!r} is defined differently in {where} and {folder.storage.location}; rename one of them"
                )
    return {name: task for name, (task, _) in merged.items()}
