"""``index.npz``: where every member of every sample lies, so that any sample is one slice of a mapped file.

Plain WebDataset shards can only be read from the front. The index adds, without touching the tars, per member its
shard, offset, size and CRC32, and per sample its key, split, task and lengths (which is what batch planning needs).
``index_build`` makes it from the tars, ``index_checks`` says what a reader may rely on.

Version 2 names the feature streams and tells samples without a target; version 1, which knew audio and vision alone, is
read as well.

Invariants: no pickles inside; samples are in the order of the sorted shard names, then of the tar; the members of
one sample are neighbours; ``content_hash`` covers every array, hence also every payload through its CRC, and does not
depend on the version: what could be said in version 1 keeps the hash that it had there, and with it its order.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.foreign_files import HEAD, foreign_kind
from egmf_shards.format import codec, rules
from egmf_shards.format.index_checks import COLUMN_TYPES, shard_faults, structure_fault
from egmf_shards.messages import one_line
from egmf_shards.storage.base import Storage
from egmf_shards.storage.local import LocalStorage
from egmf_shards.storage.opening import open_storage

INDEX_NAME = "index.npz"
VERSION = 2
_FIRST_STREAMS = ("audio", "vision")
"""Of version 1, whatever a folder held; the hash counts them so still."""
MAX_BYTES = 8 << 30
"""Of all arrays together: some 50,000,000 samples."""
MAX_EXPANSION = 200
"""Bytes that one compressed byte may become in an entry larger than :data:`EXPANDS_FREELY`."""
EXPANDS_FREELY = 64 << 20


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

    def __len__(self) -> int:
        return len(self.key)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of members: ``json``, and that of every feature stream."""
        return (codec.JSON_MEMBER, *map(codec.array_member, self.frames))

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) over names, types, shapes and contents of all columns.

        All but ``dialogue``, which follows from the samples' JSON. As version 1 wrote them: with audio and vision, of 0
        frames where the folder has none; other streams, and where there is one a sample without a target, come behind
        them.
        """
        none = np.zeros(len(self), np.int32)
        others = [stream for stream in self.frames if stream not in _FIRST_STREAMS]
        streams = (*_FIRST_STREAMS, *others)
        numbers = np.array([0, *(1 + streams.index(stream) for stream in self.frames)], np.uint8)
        columns = {name: getattr(self, name) for name in COLUMN_TYPES if name != "target"}
        columns["member_kind"] = numbers[self.member_kind]
        names, place = list(columns), list(columns).index("text_chars") + 1
        order = [*names[:place], *map(frames_column, _FIRST_STREAMS), *names[place:], *map(frames_column, others)]
        columns |= {frames_column(stream): self.frames.get(stream, none) for stream in streams}
        if not self.target.all():
            columns["target"] = self.target
            order.append("target")
        digest = hashlib.sha256(b"egmf index 1")
        for name in order:
            array = np.ascontiguousarray(columns[name])
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.view(np.uint8).data)
        return digest.hexdigest()


def frames_column(stream: str) -> str:
    """What the column with a feature stream's frames is called: ``audio_frames``."""
    return f"{stream}_frames"


def save_index(folder: Path, index: Index) -> None:
    """Write ``index.npz``; the same index gives the same bytes."""
    columns = {name: getattr(index, name) for name in COLUMN_TYPES}
    columns["streams"] = np.array(list(index.frames), dtype="<U")
    columns |= {frames_column(stream): frames for stream, frames in index.frames.items()}
    if index.dialogue is not None:
        columns["dialogue"] = index.dialogue
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
            if version not in (1, VERSION):
                raise ShardError(
                    f"{where}: index version is {version}; this version reads 1 and {VERSION}: write the folder anew"
                )
            wanted = [name for name in COLUMN_TYPES if version != 1 or name != "target"]
            streams = list(_FIRST_STREAMS) if version == 1 else _streams(file, found)
            lacking = [name for name in (*wanted, *map(frames_column, streams)) if f"{name}.npy" not in found]
            if lacking:
                raise ValueError(f"it lacks {', '.join(lacking)}")
            optional = ["dialogue"] if version != 1 and "dialogue.npy" in found else []
            names = [*wanted, *map(frames_column, streams), *optional]
            if sum(file.getinfo(f"{name}.npy").file_size for name in names) > MAX_BYTES:
                raise ValueError(f"its arrays declare more than {MAX_BYTES >> 30} GiB")
            columns = {name: _entry(file, name) for name in names}
        frames = {stream: columns.pop(frames_column(stream)) for stream in streams}
        columns.setdefault("target", np.ones(columns["key"].shape, np.uint8))
        index = Index(**columns, frames=frames)
        fault = structure_fault(index)
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


def _streams(file: zipfile.ZipFile, found: set[str]) -> list[str]:
    """The feature streams that an index names.

    Raises:
        ValueError: they are no different names of streams in their order.
    """
    names = _entry(file, "streams") if "streams.npy" in found else np.zeros(0, np.uint8)
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
