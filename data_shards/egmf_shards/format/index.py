"""``index.npz``: where every member of every sample lies, so that any sample is one slice of a mapped file.

Plain WebDataset shards can only be read from the front. The index adds, without touching the tars, per member its
shard, offset, size and CRC32, and per sample its key, split, task and lengths (which is what batch planning needs).
``index_build`` makes it from the tars, ``index_checks`` says what a reader may rely on.

An index of a million samples is 130 MB, of a hundred million 13 GB. So it is mapped, not held, and what opening asks of
all of it is found out once (``index_facts``).

Version 2 names the feature streams and tells samples without a target; version 1, which knew audio and vision alone, is
read as well.

Invariants: no pickles inside; samples are in the order of the sorted shard names, then of the tar; the members of
one sample are neighbours; ``content_hash`` covers every array, hence also every payload through its CRC, and does not
depend on the version: what could be said in version 1 keeps the hash that it had there, and with it its order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.foreign_files import HEAD, foreign_kind
from egmf_shards.format import codec, rules
from egmf_shards.format.arrays import Archive, Pieces, pieces, write_arrays
from egmf_shards.format.derived import Made, derived, fetched
from egmf_shards.format.index_checks import COLUMN_TYPES, shard_faults, structure_fault
from egmf_shards.format.index_facts import FACTS, NAMES, Facts
from egmf_shards.messages import one_line
from egmf_shards.storage.base import Storage
from egmf_shards.storage.local import LocalStorage
from egmf_shards.storage.opening import open_storage

INDEX_NAME = "index.npz"
VERSION = 2
_FIRST_STREAMS = ("audio", "vision")
"""Of version 1, whatever a folder held; the hash counts them so still."""
MAX_UNPACKED = 8 << 30
"""Bytes of all arrays together that are deflated. What is stored is mapped, and needs no bound but the file's size."""
KEPT_FROM = 64 << 20
"""Bytes of an index, half a million samples; what follows from a smaller one is found out sooner than looked up."""


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
    target: np.ndarray
    """uint8 ``[S]``; 1, or 0 where a sample has none."""
    first_member: np.ndarray
    """int64 ``[S + 1]``; sample s owns members ``first_member[s]`` to ``first_member[s + 1]`` (exclusive)."""
    member_kind: np.ndarray
    """uint8 ``[M]``; place in :attr:`kinds`."""
    member_shard: np.ndarray
    """int32 ``[M]``; place in ``shard_names``."""
    member_offset: np.ndarray
    """int64 ``[M]``; where the payload begins in the shard, bytes."""
    member_size: np.ndarray
    """int64 ``[M]``; bytes."""
    member_crc: np.ndarray
    """uint32 ``[M]``; CRC32 of the payload."""
    frames: dict[str, np.ndarray]
    """By feature stream, sorted by name, int32 ``[S]``; 0 where absent."""
    dialogue: np.ndarray | None = None
    """int32 ``[S]``; samples of one split and dialogue have the same number, -1: of none. None: an index of before."""
    opened: Archive | None = field(default=None, init=False, repr=False)
    """The file that the columns are mapped from; None for an index that was made, or changed by ``replace``."""
    storage: Storage | None = field(default=None, init=False, repr=False)
    """The folder of that file."""

    def __len__(self) -> int:
        return len(self.key)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of members: ``json``, and that of every feature stream."""
        return (codec.JSON_MEMBER, *map(codec.array_member, self.frames))

    def pieces(self, count: int) -> Iterator[slice]:
        """``range(count)`` in pieces; what was looked at of a mapped index is let go of behind each."""
        return pieces(count) if self.opened is None else pieces(count, self.opened.release)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """What is mapped is opened again, not sent along."""
        if self.storage is None:
            return super().__reduce_ex__(protocol)
        return _open_again, (self.storage, self.content_hash)

    @cached_property
    def facts(self) -> Facts:
        """What follows from all of it."""
        return Facts.of(self)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) over names, types, shapes and contents of all columns.

        All but ``dialogue``, which follows from the samples' JSON. As version 1 wrote them: with audio and vision, of 0
        frames where the folder has none; other streams, and where there is one a sample without a target, come behind
        them.
        """
        none = np.broadcast_to(np.int32(0), len(self))
        others = [stream for stream in self.frames if stream not in _FIRST_STREAMS]
        streams = (*_FIRST_STREAMS, *others)
        numbers = np.array([0, *(1 + streams.index(stream) for stream in self.frames)], np.uint8)
        columns = {name: getattr(self, name) for name in COLUMN_TYPES if name != "target"}
        names, place = list(columns), list(columns).index("text_chars") + 1
        order = [*names[:place], *map(frames_column, _FIRST_STREAMS), *names[place:], *map(frames_column, others)]
        columns |= {frames_column(stream): self.frames.get(stream, none) for stream in streams}
        if not all(self.target[part].all() for part in self.pieces(len(self))):
            columns["target"] = self.target
            order.append("target")
        digest = hashlib.sha256(b"egmf index 1")
        for name in order:
            array = columns[name]
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            for part in self.pieces(len(array)):
                piece = numbers[array[part]] if name == "member_kind" else np.ascontiguousarray(array[part])
                digest.update(piece.view(np.uint8).data)
        return digest.hexdigest()


def frames_column(stream: str) -> str:
    """What the column with a feature stream's frames is called: ``audio_frames``."""
    return f"{stream}_frames"


def save_index(folder: Path, index: Index) -> None:
    """Write ``index.npz``; the same index gives the same bytes.

    Raises:
        OSError: it cannot be written.
    """
    columns: dict[str, np.ndarray | Pieces] = {name: getattr(index, name) for name in COLUMN_TYPES}
    columns |= {frames_column(stream): frames for stream, frames in index.frames.items()}
    if index.dialogue is not None:
        columns["dialogue"] = index.dialogue
    save_columns(folder, list(index.frames), columns)


def save_columns(folder: Path, streams: list[str], columns: Mapping[str, np.ndarray | Pieces]) -> None:
    """Write ``index.npz`` from its columns by name, those of more samples than memory holds piece by piece.

    Raises:
        OSError: it cannot be written.
    """
    about = {"version": np.array(VERSION, np.int64), "streams": np.array(streams, dtype="<U")}
    write_arrays(folder / INDEX_NAME, about | dict(columns))


def load_index(folder: Path | Storage, check_shards: bool = True) -> Index:
    """Map ``index.npz``, check it against the shards' names and sizes (their contents are checked sample by sample).

    Columns are read-only where they are mapped. A large index that was found sound once is not gone through again until
    it changes; what it says of a sample is compared with the sample's bytes whenever that is read.

    ``check_shards`` False leaves the shards alone: for a reader that reports what is wrong with each of them.

    Raises:
        ShardError: missing, unreadable, of another version, its columns do not hold together, or a shard is missing
            or has another size.
    """
    storage = open_storage(folder)
    where = storage.where(INDEX_NAME)
    local = storage.path / INDEX_NAME if isinstance(storage, LocalStorage) else None
    copy = None
    try:
        if local is None:
            copy = _copy_of(storage)
        with Archive(local or copy or storage.read_file(INDEX_NAME)) as file:
            index = _index(file, where)
            if file.path is not None:
                object.__setattr__(index, "opened", file)
                object.__setattr__(index, "storage", storage)
            identity = file.identity if file.size >= KEPT_FROM else ""
            found = derived(identity, FACTS, NAMES, lambda: _checked(index, file, where).to_arrays())
    except FileNotFoundError as error:
        raise ShardError(
            f"{storage.location}: holds no {INDEX_NAME}, so it is not a finished folder of shards"
        ) from error
    # zipfile and zlib raise whatever a damaged file makes of them: NotImplementedError, RuntimeError, struct.error, ...
    except Exception as error:
        if copy is not None:  # the next one fetches another
            copy.unlink(missing_ok=True)
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"{where}: not a readable index ({_reason(storage, error)})") from error
    # As if they had been asked for: both are computed once.
    facts = Facts.from_arrays(found)
    vars(index).update(facts=facts, content_hash=facts.content_hash)
    if check_shards:
        for fault in shard_faults(storage, index):
            raise ShardError(fault)
    return index


def _open_again(storage: Storage, content_hash: str) -> Index:
    """In another process.

    Raises:
        ShardError: it is no longer there as it was.
    """
    index = load_index(storage, check_shards=False)
    if index.content_hash != content_hash:
        raise ShardError(f"{storage.where(INDEX_NAME)}: another index was put in its place while it was in use")
    return index


def _index(file: Archive, where: str) -> Index:
    """The columns of an open file, of which only names, types and sizes were looked at."""
    version = _version(file) if "version" in file.names else None
    if version not in (1, VERSION):
        raise ShardError(
            f"{where}: index version is {version}; this version reads 1 and {VERSION}: write the folder anew"
        )
    wanted = [name for name in COLUMN_TYPES if version != 1 or name != "target"]
    streams = list(_FIRST_STREAMS) if version == 1 else _streams(file)
    lacking = [name for name in (*wanted, *map(frames_column, streams)) if name not in file.names]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    optional = ["dialogue"] if version != 1 and "dialogue" in file.names else []
    names = [*wanted, *map(frames_column, streams), *optional]
    columns = _columns(file, names)
    frames = {stream: columns.pop(frames_column(stream)) for stream in streams}
    if version == 1:
        columns["target"] = np.broadcast_to(np.uint8(1), columns["key"].shape)
    return Index(**columns, frames=frames)


def _columns(file: Archive, names: list[str]) -> Made:
    unpacked = file.unpacked_bytes(names)
    if unpacked > MAX_UNPACKED:
        raise ValueError(f"its arrays declare more than {MAX_UNPACKED >> 30} GiB")
    identity = file.identity if unpacked > KEPT_FROM else ""
    return derived(identity, "index unpacked 1", names, lambda: {name: file.array(name) for name in names})


def _checked(index: Index, file: Archive, where: str) -> Facts:
    """What follows from an index that holds together.

    Raises:
        ShardError: it does not.
        zipfile.BadZipFile: its bytes are not those that were written.
    """
    file.check()
    fault = structure_fault(index)
    if fault:
        raise ShardError(f"{where}: {fault}: write the folder anew")
    return index.facts


def _copy_of(storage: Storage) -> Path | None:
    """The large index of a folder that is not on a disk, in the cache; None for one that is read into memory."""
    size = storage.size(INDEX_NAME)
    if size < KEPT_FROM:
        return None
    return fetched(storage.version(INDEX_NAME), "index", size, lambda: storage.read_through(INDEX_NAME))


def _reason(storage: Storage, error: Exception) -> str:
    """What the file is instead, as far as its first bytes say it; else what reading it ran into."""
    with suppress(OSError, ShardError):
        head = next(storage.read_through(INDEX_NAME), b"")[:HEAD]
        return (not head.startswith(b"PK") and foreign_kind(head)) or one_line(error)
    return one_line(error)


def _streams(file: Archive) -> list[str]:
    """The feature streams that an index names.

    Raises:
        ValueError: they are no different names of streams in their order.
    """
    names = file.array("streams") if "streams" in file.names else np.zeros(0, np.uint8)
    if names.dtype.kind != "U" or names.ndim != 1:
        raise ValueError("it has no list of streams")
    if len(names) > rules.MAX_STREAMS:
        raise ValueError(f"it has {len(names)} streams; at most {rules.MAX_STREAMS} are read")
    if np.any(names.view(np.uint32) > 127):  # what is no character cannot even be shown
        raise ValueError("a stream's name holds something other than a-z, 0-9 and '_'")
    streams: list[str] = names.tolist()
    fault = next(filter(None, map(rules.stream_fault, streams)), "")
    if fault or streams != sorted(set(streams)):
        raise ValueError(fault or "its streams are not different names in their order")
    return streams


def _version(file: Archive) -> int | None:
    array = file.array("version")
    return int(array) if array.shape == () and array.dtype.kind in "iu" else None
