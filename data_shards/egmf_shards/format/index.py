"""``index.npz``: where every member of every sample lies, so that any sample is one slice of a mapped file.

Plain WebDataset shards can only be read from the front. The index adds, without touching the tars, per member its
shard, offset, size and CRC32, and per sample its key, split, task and lengths (which is what batch planning needs).
It is built by walking the tars as written (tarfile knows about PAX headers), so it describes what is on disk and not
what was meant.

Invariants: no pickles inside; samples are in the order of the sorted shard names, then of the tar; the members of
one sample are neighbours; ``content_hash`` covers every array, hence also every payload through its CRC.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from egmf_shards.accelerated import crc32
from egmf_shards.errors import ShardError
from egmf_shards.foreign_files import HEAD, foreign_file, foreign_kind
from egmf_shards.format import codec, rules
from egmf_shards.format.sample import FEATURE_MODALITIES, SPLITS
from egmf_shards.format.tar_walk import MAX_MEMBER, SPARSE
from egmf_shards.messages import one_line
from egmf_shards.progress import progress
from egmf_shards.storage.base import Storage
from egmf_shards.storage.local import LocalStorage
from egmf_shards.storage.opening import open_storage

INDEX_NAME = "index.npz"
VERSION = 1
MAX_BYTES = 8 << 30
"""Of all arrays together: some 50,000,000 samples."""
MAX_EXPANSION = 200
"""Bytes that one compressed byte may become in an entry larger than :data:`EXPANDS_FREELY`."""
EXPANDS_FREELY = 64 << 20
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
    """uint8 ``[S]``; place in :data:`egmf_shards.format.sample.SPLITS`."""
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
    """uint8 ``[M]``; place in :data:`egmf_shards.format.codec.MEMBERS`."""
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
            digest.update(array.view(np.uint8).data)
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
            if rules.key_fault(key):
                raise ShardError(f"{where}: {rules.key_fault(key)}")
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
        with shard.open("rb") as file, tarfile.open(shard, "r:") as tar:
            size = file.seek(0, 2)
            for info in tar:
                stem, _, kind = info.name.partition(".")
                if info.issparse() or any(name.startswith(SPARSE) for name in info.pax_headers):
                    raise ShardError(f"{shard}: member {info.name!r} is a sparse file; only plain files are allowed")
                if not info.isfile() or kind not in codec.MEMBERS:
                    raise ShardError(f"{shard}: member {info.name!r} is none of <id>.{', <id>.'.join(codec.MEMBERS)}")
                if stem != key:
                    if key is not None:
                        yield key, members
                    key, members = stem, {}
                if kind in members:
                    raise ShardError(f"{shard}: member {info.name!r} occurs twice")
                members[kind] = (info.offset_data, _payload(file, info, size))
    except ShardError:
        raise
    # tarfile trusts the numbers of extended headers: it may run out of memory or stack, or fail to parse them.
    except (tarfile.TarError, OSError, EOFError, ValueError, ArithmeticError, MemoryError, RecursionError) as error:
        reason = foreign_file(shard) or one_line(error)
        raise ShardError(f"{shard}: not a complete, uncompressed tar file ({reason})") from error
    if key is not None:
        yield key, members


def _payload(file: IO[bytes], info: tarfile.TarInfo, end: int) -> bytes:
    """The member's bytes as they lie in the tar; ``end`` is the tar's size."""
    if info.size > MAX_MEMBER or info.offset_data + info.size > end:
        raise tarfile.ReadError(f"member {info.name!r} claims {info.size} bytes")
    file.seek(info.offset_data)
    return file.read(info.size)


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
        # A file on a disk is read in place: the index of a million samples is 100 MB and more.
        local = storage.path / INDEX_NAME if isinstance(storage, LocalStorage) else None
        with zipfile.ZipFile(local or io.BytesIO(storage.read_file(INDEX_NAME))) as file:
            found = set(file.namelist())
            version = _version(file) if "version.npy" in found else None
            if version != VERSION:
                raise ShardError(
                    f"{where}: index version is {version}; this version reads {VERSION}: write the folder anew"
                )
            lacking = [name for name in _TYPES if f"{name}.npy" not in found]
            if lacking:
                raise ValueError(f"it lacks {', '.join(lacking)}")
            if sum(file.getinfo(f"{name}.npy").file_size for name in _TYPES) > MAX_BYTES:
                raise ValueError(f"its arrays declare more than {MAX_BYTES >> 30} GiB")
            index = Index(**{name: _entry(file, name) for name in _TYPES})
        fault = _structure_fault(index)
    except FileNotFoundError as error:
        raise ShardError(
            f"{storage.location}: holds no {INDEX_NAME}, so it is not a finished folder of shards"
        ) from error
    except ShardError:
        raise
    # zipfile and zlib raise whatever a damaged file makes of them: NotImplementedError, RuntimeError, struct.error, ...
    except Exception as error:
        raise ShardError(f"{where}: not a readable index ({_reason(storage, error)})") from error
    if fault:
        raise ShardError(f"{where}: {fault}: write the folder anew")
    if check_shards:
        for fault in shard_faults(storage, index):
            raise ShardError(fault)
    return index


def _reason(storage: Storage, error: Exception) -> str:
    """What the file is instead, as far as its first bytes say it; else what reading it ran into."""
    with suppress(OSError, ShardError):
        head = storage.read_file(INDEX_NAME)[:HEAD]
        return (not head.startswith(b"PK") and foreign_kind(head)) or one_line(error)
    return one_line(error)


def _version(file: zipfile.ZipFile) -> int | None:
    array = _entry(file, "version")
    return int(array) if array.shape == () and array.dtype.kind in "iu" else None


def _entry(file: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of the ``.npz``, writable; nothing is allocated before all sizes that are declared agree.

    Raises:
        ValueError: they do not, or the entry is larger than the file can hold. Others: what zipfile raises.
    """
    info = file.getinfo(f"{name}.npy")
    stored = info.compress_type == zipfile.ZIP_STORED
    if not stored and info.compress_type != zipfile.ZIP_DEFLATED:
        raise ValueError(f"{name}: compression method {info.compress_type}; stored or deflated is needed")
    most = info.compress_size if stored else max(EXPANDS_FREELY, MAX_EXPANSION * info.compress_size)
    if info.compress_size > _size(file) or info.file_size > most:
        raise ValueError(f"{name}: {info.file_size} bytes from {info.compress_size} in the file")
    with file.open(info) as entry:
        try:
            piece = entry.read(codec.MAX_ARRAY_HEADER)
            layout = codec.array_layout(piece)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if layout.offset + layout.size != info.file_size or len(layout.shape) > 1:
            raise ValueError(f"{name}: its header does not fit its {info.file_size} bytes")
        array = np.empty(layout.shape, layout.dtype)
        target, at = array.reshape(-1).view(np.uint8).data, 0
        piece = piece[layout.offset :]
        while at < layout.size:
            target[at : at + len(piece)] = piece
            at += len(piece)
            # Small enough that memory is used again. At the end, too: that is where zipfile compares the CRC32.
            piece = entry.read(1 << 18)
            if not piece and at < layout.size:
                raise ValueError(f"{name}: ends early")
    return array


def _size(file: zipfile.ZipFile) -> int:
    assert file.fp is not None
    at = file.fp.tell()
    end = file.fp.seek(0, io.SEEK_END)
    file.fp.seek(at)
    return end


def shard_faults(storage: Storage, index: Index, split: int | None = None) -> Iterator[str]:
    """One line for each shard that is missing or has another size than ``index`` counts on.

    Args:
        storage: the folder.
        index: its index.
        split: only the shards that samples of this split (a number of :data:`egmf_shards.format.sample.SPLITS`) lie in.
    """
    chosen = np.arange(len(index.shard_names))
    if split is not None:
        chosen = np.unique(index.member_shard[np.repeat(index.split == split, np.diff(index.first_member))])
    names, sizes = index.shard_names[chosen].tolist(), index.shard_sizes[chosen].tolist()
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
    lengths = (  # no dictionary by length: two of the three may be equal
        (shards, ("shard_sizes",)),
        (samples, ("split", "task", "text_chars", "audio_frames", "vision_frames")),
        (members, ("member_shard", "member_offset", "member_size", "member_crc")),
    )
    for length, names in lengths:
        for name in names:
            if len(getattr(index, name)) != length:
                return f"the array {name} has {len(getattr(index, name))} entries, and the others {length}"
    for name in ("shard_names", "task_names", "key"):
        codes = getattr(index, name).view("<u4")
        if len(codes) and (codes.max() > 0x10FFFF or np.any((codes >= 0xD800) & (codes < 0xE000))):
            return f"the array {name} holds something other than characters"
    wrong = rules.first_bad_key(index.key)
    if wrong is not None:
        return f"key {str(index.key[wrong])!r}: {rules.key_fault(str(index.key[wrong]))}"
    if len(set(index.shard_names.tolist())) != shards:
        return "a shard's name occurs twice"
    for name in index.shard_names.tolist():
        if not SHARD_NAME.fullmatch(name):
            return f"{name!r} is not the name of a shard in this folder"
    first = index.first_member
    # Compared, not subtracted: a difference of wild numbers may overflow.
    if len(first) != samples + 1 or first[0] != 0 or first[-1] != members or np.any(first[1:] <= first[:-1]):
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
    for name in ("shard_sizes", "text_chars", "audio_frames", "vision_frames", "member_offset", "member_size"):
        column = getattr(index, name)
        if len(column) and column.min() < 0:
            return f"the array {name} holds a negative number"
    if members:
        if np.any(index.member_size > index.shard_sizes[index.member_shard] - index.member_offset):
            return "a member ends behind its shard's end"
        if np.any(index.member_shard != np.repeat(index.member_shard[first[:-1]], np.diff(first))):
            return "a sample's members lie in two shards"
    return _members_fault(index)


def _members_fault(index: Index) -> str | None:
    """Each sample has one JSON member, and an array of a modality exactly where it has frames."""
    first, count = index.first_member, len(codec.MEMBERS)
    if not len(index):
        return None
    # One number a sample, four bits a kind: no count overflows, because more members than kinds are refused first.
    weights = np.array([1 << 4 * kind for kind in range(count)], np.uint16)
    needed = np.ones(len(index), np.uint16)
    for modality in FEATURE_MODALITIES:
        needed += weights[codec.MEMBERS.index(f"{modality}.npy")] * (getattr(index, f"{modality}_frames") > 0)
    found = np.add.reduceat(weights[index.member_kind], first[:-1], dtype=np.uint16)
    wrong = np.flatnonzero((found != needed) | (np.diff(first) > count))
    if not len(wrong):
        return None
    row = int(wrong[0])
    kinds = [codec.MEMBERS[kind] for kind in index.member_kind[first[row] : first[row + 1]].tolist()[: count + 1]]
    return (
        f"sample {str(index.key[row])!r} has the members {', '.join(kinds)}, {index.audio_frames[row]} audio_frames "
        f"and {index.vision_frames[row]} vision_frames; one json, and arrays where there are frames alone, are needed"
    )
