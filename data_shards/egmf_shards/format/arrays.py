"""Arrays in a ``.npz``: mapped where they lie in the file, and written a piece at a time.

An entry that is stored, not deflated, lies in the archive as it would lie in memory. So no process has to hold it: it
is mapped, its pages are the same for every process that maps the file, and the system drops them when it needs room.

Invariants: no pickles; nothing is allocated before all sizes that are declared agree; whoever goes through a whole
array does it by :func:`pieces`, so that memory does not grow with the array.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import mmap
import os
import secrets
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from egmf_shards.accelerated import crc32
from egmf_shards.format import codec

MAX_EXPANSION = 200
"""Bytes that one compressed byte may become in an entry larger than :data:`EXPANDS_FREELY`."""
EXPANDS_FREELY = 64 << 20
HELD = 64 << 20
"""Bytes of an array that is simply held in memory; a larger one that has to be made lies in a file."""
PIECE = 1 << 18
"""Entries of an array that are looked at together."""
_BYTES_AT_ONCE = 1 << 20
SETTLED = 2_000_000_000
"""Nanoseconds. A file that was changed this lately may be changed again without another time of change."""


def pieces(count: int, after: Callable[[], None] = lambda: None) -> Iterator[slice]:
    """``range(count)`` as slices of at most :data:`PIECE`; ``after`` is called behind each of them."""
    for first in range(0, count, PIECE):
        yield slice(first, min(first + PIECE, count))
        after()


class Archive:
    """A ``.npz`` on a disk, whose stored entries are mapped, or its bytes.

    Args:
        file: its path, or all of it.

    Raises:
        Exception: what zipfile raises where it is no archive.
    """

    def __init__(self, file: Path | bytes) -> None:
        self.path = file if isinstance(file, Path) else None
        with contextlib.ExitStack() as opened:
            handle = opened.enter_context(file.open("rb") if isinstance(file, Path) else io.BytesIO(file))
            self._zip = opened.enter_context(zipfile.ZipFile(handle))
            self._map = None
            if isinstance(file, Path):  # of the handle, so that both are one file even where it is replaced meanwhile
                self._state = os.fstat(handle.fileno())
                self._settled = time.time_ns() - self._state.st_ctime_ns >= SETTLED
                self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            self._data = memoryview(file if self._map is None else self._map)  # type: ignore[arg-type]
            self._opened = opened.pop_all()
        self.names = {name.removesuffix(".npy") for name in self._zip.namelist() if name.endswith(".npy")}
        self.size = len(self._data)
        self._mapped: dict[str, tuple[int, zipfile.ZipInfo]] = {}

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the file; arrays that were handed out stay mapped."""
        self._opened.close()

    def unpacked_bytes(self, names: list[str]) -> int:
        """Bytes of those of the arrays that are deflated, so that room has to be made for them."""
        infos = (self._zip.getinfo(f"{name}.npy") for name in names)
        return sum(info.file_size for info in infos if info.compress_type != zipfile.ZIP_STORED)

    @cached_property
    def identity(self) -> str:
        """What another file, or this one once it is changed, does not have in common with it.

        Empty where that cannot be said: bytes, or a file that was changed a moment ago.
        """
        if self.path is None or not self._settled:
            return ""
        s = self._state
        place = (os.path.realpath(self.path), s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
        entries = [(i.filename, i.header_offset, i.file_size, i.compress_size, i.CRC) for i in self._zip.infolist()]
        return hashlib.sha256(repr((place, entries)).encode()).hexdigest()

    def array(self, name: str) -> np.ndarray:
        """One array of at most one dimension: mapped and read-only where it is stored, else unpacked and writable.

        A mapped one is not compared with its CRC32; :meth:`check` does it.

        Raises:
            ValueError: sizes do not agree, or the entry is larger than the file can hold. Others: what zipfile raises.
        """
        info = self._zip.getinfo(f"{name}.npy")
        stored = info.compress_type == zipfile.ZIP_STORED
        if not stored and info.compress_type != zipfile.ZIP_DEFLATED:
            raise ValueError(f"{name}: compression method {info.compress_type}; stored or deflated is needed")
        most = info.compress_size if stored else max(EXPANDS_FREELY, MAX_EXPANSION * info.compress_size)
        if info.compress_size > len(self._data) or info.file_size > most:
            raise ValueError(f"{name}: {info.file_size} bytes from {info.compress_size} in the file")
        with self._zip.open(info) as entry:  # looks at the entry's own header, too
            head = entry.read(codec.MAX_ARRAY_HEADER)
            try:
                layout = codec.array_layout(head)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            if layout.offset + layout.size != info.file_size or len(layout.shape) > 1:
                raise ValueError(f"{name}: its header does not fit its {info.file_size} bytes")
            if not stored:
                array = room(layout.size // layout.dtype.itemsize, layout.dtype)
                _fill(array, head[layout.offset :], entry, name)
                return array.reshape(layout.shape)
        begin = self._begin(info)
        if self._data[begin : begin + len(head)] != head or begin + info.file_size > len(self._data):
            raise ValueError(f"{name}: ends early")
        self._mapped[name] = begin, info
        if not layout.size:
            return np.empty(layout.shape, layout.dtype)
        count = layout.size // layout.dtype.itemsize
        return np.frombuffer(self._data, layout.dtype, count, begin + layout.offset).reshape(layout.shape)

    def _begin(self, info: zipfile.ZipInfo) -> int:
        """Where an entry's bytes begin: behind its own header, whose last two lengths are not the directory's."""
        lengths = self._data[info.header_offset + 26 : info.header_offset + 30]
        return info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")

    def check(self) -> None:
        """Compare what is mapped with its CRC32.

        Raises:
            zipfile.BadZipFile: it was damaged.
        """
        for name, (begin, info) in self._mapped.items():
            found = 0
            for first in range(begin, begin + info.file_size, _BYTES_AT_ONCE):
                found = crc32(self._data[first : min(first + _BYTES_AT_ONCE, begin + info.file_size)], found)
                self.release()
            if found != info.CRC:
                raise zipfile.BadZipFile(f"Bad CRC-32 for file '{name}.npy'")

    def release(self) -> None:
        """Let go of the pages that were looked at: they stay in the system's cache for whoever asks next."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


def _fill(array: np.ndarray, head: bytes, entry: IO[bytes], name: str) -> None:
    target, at, piece = array.view(np.uint8).data, 0, head
    while at < len(target):
        target[at : at + len(piece)] = piece
        at += len(piece)
        # Small enough that memory is used again. At the end, too: that is where zipfile compares the CRC32.
        piece = entry.read(1 << 18)
        if not piece and at < len(target):
            raise ValueError(f"{name}: ends early")


def room(count: int, dtype: np.dtype | type) -> np.ndarray:
    """An array ``[count]`` to be filled: in memory, or, where it is large, in a file that goes with the last use of it.

    The system writes such a file's pages out where it needs their memory. Where the disk has no room, memory has to do.
    """
    kind = np.dtype(dtype)
    size = count * kind.itemsize
    if size > HELD:
        folder = scratch_folder()
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # on a full disk an error now, and no bus error later
            return np.frombuffer(mmap.mmap(file.fileno(), size), kind)
    return np.empty(count, kind)


def scratch_folder() -> Path | None:
    """``egmf/index`` in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``), made where it is not there.

    None where it cannot be written: then the system's folder for temporary files has to do.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "egmf" / "index"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home at all
        return None
    return folder if os.access(folder, os.W_OK) else None


@dataclass(frozen=True)
class Pieces:
    """An array ``[count]`` that is written and never held."""

    dtype: str
    count: int
    parts: Iterator[np.ndarray]
    """Together as many entries."""


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray | Pieces]) -> None:
    """Write a ``.npz`` of stored entries, as ``numpy.savez`` does: whole or not at all, equal arrays as equal bytes.

    Under another name first: who has the old file mapped keeps it.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{secrets.token_hex(4)}.partial")
    try:
        with zipfile.ZipFile(temporary, "w") as file:
            for name, array in arrays.items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    _write(entry, array)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(entry: IO[bytes], array: np.ndarray | Pieces) -> None:
    if isinstance(array, Pieces):
        kind, shape, parts = np.dtype(array.dtype), (array.count,), array.parts
    else:
        flat = array.reshape(-1)
        kind, shape, parts = array.dtype, array.shape, (flat[part] for part in pieces(len(flat)))
    header = {"descr": kind.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(entry, header)
    for part in parts:
        entry.write(np.ascontiguousarray(part, kind).view(np.uint8).data)
