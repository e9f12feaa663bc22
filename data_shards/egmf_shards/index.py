"""``index.npz``: where every member of every sample lies, so that any sample is one slice of a mapped file.

Plain WebDataset shards can only be read from the front. The index adds, without touching the tars, per member its
shard, offset, size and CRC32, and per sample its key, split, task and lengths (which is what batch planning needs).
It is built by walking the tars as written (tarfile knows about PAX headers), so it describes what is on disk and not
what was meant.

Invariants: no pickles inside; samples stand in the order of the sorted shard names, then of the tar; the members of
one sample are neighbours; ``content_hash`` covers every array, hence also every payload through its CRC.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from egmf_shards import codec
from egmf_shards.accelerated import crc32
from egmf_shards.errors import ShardError
from egmf_shards.progress import progress
from egmf_shards.sample import SPLITS
from egmf_shards.storage import Storage, open_storage

INDEX_NAME = "index.npz"
VERSION = 1
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.tar")


@dataclass(frozen=True, eq=False)
class Index:
    """Columns of one folder: F shards, S samples, M members."""

    shard_names: np.ndarray
    """str ``[F]``; file names inside the folder."""
    shard_sizes: np.ndarray
    """int64 ``[F]``; bytes."""
    task_names: np.ndarray
    """str ``[T]``; what ``task`` points into."""
    key: np.ndarray
    """str ``[S]``; the sample ids."""
    split: np.ndarray
    """uint8 ``[S]``; place in :data:`egmf_shards.sample.SPLITS`."""
    task: np.ndarray
    """int32 ``[S]``; place in ``task_names``."""
    text_chars: np.ndarray
    """int32 ``[S]``; characters of the utterance, 0 where absent."""
    audio_frames: np.ndarray
    """int32 ``[S]``; 0 where absent."""
    vision_frames: np.ndarray
    """int32 ``[S]``; 0 where absent."""
    first_member: np.ndarray
    """int64 ``[S + 1]``; sample s owns members ``first_member[s]`` to ``first_member[s + 1]`` (exclusive)."""
    member_kind: np.ndarray
    """uint8 ``[M]``; place in :data:`egmf_shards.codec.MEMBERS`."""
    member_shard: np.ndarray
    """int32 ``[M]``; place in ``shard_names``."""
    member_offset: np.ndarray
    """int64 ``[M]``; where the payload begins in the shard, bytes."""
    member_size: np.ndarray
    """int64 ``[M]``; bytes."""
    member_crc: np.ndarray
    """uint32 ``[M]``; CRC32 of the payload."""

    def __len__(self) -> int:
        return len(self.key)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) over version, names, types, shapes and contents of all columns."""
        digest = hashlib.sha256(f"egmf index {VERSION}".encode())
        for field in fields(self):
            array = np.ascontiguousarray(getattr(self, field.name))
            digest.update(f"{field.name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


_TYPES = {
    "shard_names": "<U", "shard_sizes": "<i8", "task_names": "<U", "key": "<U", "split": "|u1", "task": "<i4",
    "text_chars": "<i4", "audio_frames": "<i4", "vision_frames": "<i4", "first_member": "<i8", "member_kind": "|u1",
    "member_shard": "<i4", "member_offset": "<i8", "member_size": "<i8", "member_crc": "<u4",
}  # fmt: skip


def build_index(folder: Path, shards: Sequence[str]) -> Index:
    """Index the named tars of ``folder`` by reading each of them once.

    Raises:
        ShardError: a shard is unreadable, a member has an unknown kind, a sample's members are interleaved with
            another's,
            its JSON is missing or names another id, split or modalities, or an id occurs twice.
    """
    columns: dict[str, list] = {name: [] for name in _TYPES}
    task_numbers: dict[str, int] = {}
    seen: set[str] = set()
    names = sorted(shards)
    for number, name in enumerate(progress(names, "indexing shards")):
        columns["shard_names"].append(name)
        columns["shard_sizes"].append((folder / name).stat().st_size)
        for key, members in _walk(folder / name):
            where = f"{folder / name}, sample {key!r}"
            if key in seen:
                raise ShardError(f"{where}: the id occurs twice (or its members are interleaved with another sample's)")
            seen.add(key)
            if codec.JSON_MEMBER not in members:
                raise ShardError(f"{where}: has no .json member")
            sample = codec.decode({kind: data for kind, (_, data) in members.items()}, where)
            if sample.id != key or sample.split not in SPLITS:
                raise ShardError(
                    f"{where}: its JSON says id {sample.id!r}, split {sample.split!r}; "
                    f"it must say {key!r} and one of {', '.join(SPLITS)}"
                )
            columns["key"].append(key)
            columns["split"].append(SPLITS.index(sample.split))
            columns["task"].append(task_numbers.setdefault(sample.task, len(task_numbers)))
            columns["text_chars"].append(len(sample.text))
            columns["audio_frames"].append(0 if sample.audio is None else len(sample.audio))
            columns["vision_frames"].append(0 if sample.vision is None else len(sample.vision))
            columns["first_member"].append(len(columns["member_kind"]))
            for kind, (offset, data) in members.items():
                columns["member_kind"].append(codec.MEMBERS.index(kind))
                columns["member_shard"].append(number)
                columns["member_offset"].append(offset)
                columns["member_size"].append(len(data))
                columns["member_crc"].append(crc32(data))
    columns["first_member"].append(len(columns["member_kind"]))
    columns["task_names"] = list(task_numbers)
    return Index(**{name: np.array(columns[name], dtype=kind) for name, kind in _TYPES.items()})


def _walk(shard: Path) -> Iterator[tuple[str, dict[str, tuple[int, bytes]]]]:
    """Yield ``(key, {member kind: (payload offset, payload)})`` for each run of members with one key."""
    key: str | None = None
    members: dict[str, tuple[int, bytes]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                stem, _, kind = info.name.partition(".")
                if not info.isfile() or kind not in codec.MEMBERS:
                    raise ShardError(f"{shard}: member {info.name!r} is none of <id>.{', <id>.'.join(codec.MEMBERS)}")
                if stem != key:
                    if key is not None:
                        yield key, members
                    key, members = stem, {}
                if kind in members:
                    raise ShardError(f"{shard}: member {info.name!r} occurs twice")
                handle = tar.extractfile(info)
                assert handle is not None
                members[kind] = (info.offset_data, handle.read())
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ShardError(f"{shard}: not a complete, uncompressed tar file ({error})") from error
    if key is not None:
        yield key, members


def save_index(folder: Path, index: Index) -> None:
    """Write ``index.npz``; the same index gives the same bytes."""
    columns = {field.name: getattr(index, field.name) for field in fields(index)}
    np.savez(folder / INDEX_NAME, allow_pickle=False, version=np.int64(VERSION), **columns)


def load_index(folder: Path | Storage, check_shards: bool = True) -> Index:
    """Read ``index.npz``, check it against the shards' names and sizes (their contents are checked sample by sample).

    ``check_shards`` False leaves the shards alone: for a reader that reports what is wrong with each of them.

    Raises:
        ShardError: missing, unreadable, of another version, its columns do not hold together, or a shard is missing
            or has another size.
    """
    storage = open_storage(folder)
    where = storage.where(INDEX_NAME)
    try:
        with np.load(io.BytesIO(storage.read_file(INDEX_NAME)), allow_pickle=False) as data:
            version = int(data["version"]) if "version" in data else None
            if version != VERSION:
                raise ShardError(
                    f"{where}: index version is {version}; this version reads {VERSION}: write the folder anew"
                )
            index = Index(**{name: data[name] for name in _TYPES})
    except FileNotFoundError as error:
        raise ShardError(
            f"{storage.location}: holds no {INDEX_NAME}, so it is not a finished folder of shards"
        ) from error
    except ShardError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ShardError(f"{where}: not a readable index ({error})") from error
    fault = _structure_fault(index)
    if fault:
        raise ShardError(f"{where}: {fault}: write the folder anew")
    if check_shards:
        for fault in shard_faults(storage, index):
            raise ShardError(fault)
    return index


def shard_faults(storage: Storage, index: Index) -> Iterator[str]:
    """One line for each shard that is missing or has another size than ``index`` counts on."""
    names, sizes = index.shard_names.tolist(), index.shard_sizes.tolist()
    found = storage.sizes(names)
    for name, size in zip(names, sizes, strict=True):
        if name not in found:
            yield f"{storage.where(name)}: the shard is missing; the index counts on {size} bytes"
        elif found[name] not in (size, None):
            yield f"{storage.where(name)}: {found[name]} bytes, but the index counts on {size}: truncated or replaced"


def _structure_fault(index: Index) -> str | None:
    """What a reader must be able to rely on before it takes a slice; None where all of it holds."""
    shards, samples, members = len(index.shard_names), len(index.key), len(index.member_kind)
    for name, kind in _TYPES.items():
        column = getattr(index, name)
        if column.ndim != 1 or not column.dtype.str.startswith(kind):
            return f"the array {name} is {column.dtype.str} in {column.ndim} dimensions"
    lengths = {
        shards: ("shard_sizes",),
        samples: ("split", "task", "text_chars", "audio_frames", "vision_frames"),
        members: ("member_shard", "member_offset", "member_size", "member_crc"),
    }
    for length, names in lengths.items():
        for name in names:
            if len(getattr(index, name)) != length:
                return f"the array {name} has {len(getattr(index, name))} entries, and the others {length}"
    for name in index.shard_names.tolist():
        if not SHARD_NAME.fullmatch(name):
            return f"{name!r} is not the name of a shard in this folder"
    first = index.first_member
    if len(first) != samples + 1 or first[0] != 0 or first[-1] != members or np.any(np.diff(first) < 1):
        return "first_member does not divide the members among the samples"
    within = {
        "split": len(SPLITS),
        "task": len(index.task_names),
        "member_kind": len(codec.MEMBERS),
        "member_shard": shards,
    }
    for name, limit in within.items():
        column = getattr(index, name)
        if len(column) and not 0 <= int(column.min()) <= int(column.max()) < limit:
            return f"the array {name} points outside of the {limit} that there are"
    for name in ("text_chars", "audio_frames", "vision_frames", "member_offset", "member_size"):
        column = getattr(index, name)
        if len(column) and column.min() < 0:
            return f"the array {name} holds a negative number"
    if members:
        if np.any(index.member_offset + index.member_size > index.shard_sizes[index.member_shard]):
            return "a member ends behind its shard's end"
        if np.any(index.member_shard != np.repeat(index.member_shard[first[:-1]], np.diff(first))):
            return "a sample's members lie in two shards"
    return None
