"""Random access to the samples of one split in one or several shard folders.

A sample is a slice of a memory-mapped tar, checked by CRC32: no order of reading is faster than another, no shard has
to be split over ranks, and a flipped byte is an error that names the sample instead of a strange number in training.

Invariants: samples of several folders are concatenated in the given order; ``index_hash`` changes whenever any byte
of any sample, the split or the order of the folders changes; opening reads manifests and indexes only, shards are
mapped when first needed (so a set may be pickled or forked cheaply).
"""

from __future__ import annotations

import hashlib
import mmap
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egmf_shards import codec
from egmf_shards.errors import ShardError
from egmf_shards.index import Index, load_index
from egmf_shards.manifest import read_manifest, tasks_of
from egmf_shards.sample import FEATURE_MODALITIES, SPLITS, Sample
from egmf_shards.task import Task


class _Folder:
    """One folder's part of a :class:`ShardSet`."""

    def __init__(self, path: Path, split: str) -> None:
        self.path = path
        self.manifest: dict[str, Any] = read_manifest(path)
        self.tasks = tasks_of(self.manifest, path)
        self.index: Index = load_index(path)
        if self.index.content_hash != self.manifest["index"]:
            raise ShardError(
                f"{path}: index and manifest do not belong together (the content hashes differ): write the folder anew"
            )
        self.rows = np.flatnonzero(self.index.split == SPLITS.index(split))
        if not len(self.rows):
            raise ShardError(f"{path}: its split {split!r} is empty; it holds {', '.join(self.manifest['splits'])}")
        self._maps: dict[int, mmap.mmap] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}

    def key(self, row: int) -> str:
        return str(self.index.key[row])

    def read(self, row: int) -> Sample:
        index, key = self.index, self.key(row)
        members: dict[str, memoryview] = {}
        for m in range(int(index.first_member[row]), int(index.first_member[row + 1])):
            kind, shard = codec.MEMBERS[index.member_kind[m]], int(index.member_shard[m])
            start = int(index.member_offset[m])
            data = memoryview(self._map(shard))[start : start + int(index.member_size[m])]
            if zlib.crc32(data) != index.member_crc[m]:
                raise ShardError(
                    f"{self.path / str(index.shard_names[shard])}: sample {key!r}, member {kind}: "
                    f"the bytes have changed since they were written (CRC32 mismatch); restore the shard"
                )
            members[kind] = data
        return codec.decode(members, f"{self.path / str(index.shard_names[shard])}, sample {key!r}")

    def _map(self, shard: int) -> mmap.mmap:
        if shard not in self._maps:
            path = self.path / str(self.index.shard_names[shard])
            try:
                with path.open("rb") as file:
                    self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise ShardError(f"{path}: cannot be mapped ({error})") from error
        return self._maps[shard]


class ShardSet(Sequence[Sample]):
    """The samples of one split, by number. Make it with :meth:`open`."""

    tasks: dict[str, Task]
    """Every task of every folder, by name."""
    dims: dict[str, int]
    """Feature width of ``audio`` and ``vision``; 0 where no folder has the modality."""
    languages: tuple[str, ...]
    manifests: list[dict[str, Any]]
    """The manifests, in the order of the folders."""
    index_hash: str
    """SHA-256 (hex) of the split's name and the folders' content hashes."""

    def __init__(self, folders: list[_Folder], split: str) -> None:
        self.split = split
        self.folders = [folder.path for folder in folders]
        self.manifests = [folder.manifest for folder in folders]
        self.languages = tuple(sorted({language for m in self.manifests for language in m["languages"]}))
        self.tasks = _merge_tasks(folders)
        self.dims = _merge_dims(folders)
        hashes = [folder.index.content_hash for folder in folders]
        self.index_hash = hashlib.sha256("\n".join([split, *hashes]).encode()).hexdigest()
        self._parts = folders
        self._starts = np.cumsum([0, *(len(folder.rows) for folder in folders)])

    @classmethod
    def open(cls, folders: Sequence[str | os.PathLike[str]], split: str) -> ShardSet:
        """Open ``split`` of the given folders.

        Raises:
            ShardError: no folder, a folder given twice (or as a copy), missing, unfinished, damaged or without that
                split;
                a task with two definitions; feature widths that differ.
        """
        if isinstance(folders, str | os.PathLike):
            raise ShardError(f"shards are {str(folders)!r}; a list of folders is needed")
        if not folders:
            raise ShardError("no folder of shards is given; at least one is needed")
        if split not in SPLITS:
            raise ShardError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
        parts: list[_Folder] = []
        for folder in folders:
            part = _Folder(Path(folder), split)
            for other in parts:
                if part.index.content_hash == other.index.content_hash:
                    raise ShardError(f"{part.path}: the same shards as {other.path}; give each folder once")
            parts.append(part)
        return cls(parts, split)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, i: int) -> Sample:  # type: ignore[override]
        """Sample number ``i``, decoded and checked.

        Raises:
            ShardError: its bytes have changed (the message names shard, sample and member).
            IndexError: there is no such number.
        """
        part, row = self._locate(i)
        return part.read(row)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def key(self, i: int) -> str:
        """The id of sample ``i``, without reading the shard."""
        part, row = self._locate(i)
        return part.key(row)

    def column(self, name: str) -> np.ndarray:
        """int32 ``[len(self)]``: the index's ``text_chars``, ``audio_frames`` or ``vision_frames``."""
        if name not in ("text_chars", "audio_frames", "vision_frames"):
            raise ShardError(f"the index has no column {name!r}; it has text_chars, audio_frames, vision_frames")
        return np.concatenate([getattr(part.index, name)[part.rows] for part in self._parts])

    def _locate(self, i: int) -> tuple[_Folder, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        number = int(np.searchsorted(self._starts, i, side="right")) - 1
        part = self._parts[number]
        return part, int(part.rows[i - self._starts[number]])


def _merge_tasks(folders: list[_Folder]) -> dict[str, Task]:
    merged: dict[str, tuple[Task, Path]] = {}
    for folder in folders:
        for name, task in folder.tasks.items():
            known, where = merged.setdefault(name, (task, folder.path))
            if known != task:
                raise ShardError(
                    f"task {name!r} is defined differently in {where} and {folder.path}; rename one of them"
                )
    return {name: task for name, (task, _) in merged.items()}


def _merge_dims(folders: list[_Folder]) -> dict[str, int]:
    dims = dict.fromkeys(FEATURE_MODALITIES, 0)
    owner: dict[str, Path] = {}
    for folder in folders:
        for modality in FEATURE_MODALITIES:
            dim = int(folder.manifest["dims"].get(modality, 0))
            if dim and dims[modality] and dim != dims[modality]:
                raise ShardError(
                    f"{modality} has width {dims[modality]} in {owner[modality]} but {dim} in {folder.path}; "
                    f"folders of one run must agree (or lack the modality)"
                )
            if dim and not dims[modality]:
                dims[modality], owner[modality] = dim, folder.path
    return dims
