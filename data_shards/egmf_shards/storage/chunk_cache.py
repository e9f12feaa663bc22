"""Chunks of remote shards, kept as files that all processes of a machine share.

All of it lies in a folder of its own in the one that the user names, and only what is named like a chunk there is
counted and removed: who names a folder with files of their own loses none of them.

A folder for each object (its name there is a hash of URL, size, version and chunk size, so a changed object never
mixes with old chunks), a file for each chunk. Invariants: a chunk's file is complete or not there; after every
insertion the chunk files add up to at most the bound, over all processes that share folder and bound. The sum is
in one small file under a lock, so an insertion costs no scan; a scan happens when the sum would pass the bound, makes
room for a sixteenth of it, least recently used first, and replaces the sum by what it found.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from egmf_shards.errors import ShardError

CHUNKS = "egmf-chunks"
"""The folder in the user's that holds everything of the cache."""
_OWNER = re.compile(r"[0-9a-f]{32}")
_CHUNK = re.compile(r"[0-9]{8,}")
_SUM = "bytes"
# Only written under the lock, so one name is enough, and what a killed process left is overwritten.
_INCOMING = "incoming"
_log = logging.getLogger("egmf_shards")


def default_folder() -> Path:
    """``egmf/shards`` in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "egmf" / "shards"


class ChunkCache:
    """The cache folder. Holds no handle, so it may be pickled and forked.

    Args:
        folder: its subfolder ``egmf-chunks`` holds the chunks; both are made when first needed.
        limit: the most bytes of chunks kept there; 0 keeps none.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._chunks = folder / CHUNKS
        self._warned = False

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            ShardError: it cannot be made or written to.
        """
        try:
            with self._locked():
                pass
        except OSError as error:
            raise ShardError(
                f"{self.folder}: cannot be used as cache of remote shards ({error.strerror}); name another folder"
            ) from error

    def get(self, owner: str, number: int, length: int) -> memoryview | None:
        """Chunk ``number`` of object ``owner``, mapped; None where it is not kept or has another length."""
        path = self._path(owner, number)
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != length:
                    return None
                view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError):
            return None
        with suppress(OSError):  # another process may have removed it meanwhile; the mapping stays valid
            os.utime(path)
        return view

    def put(self, owner: str, number: int, data: bytes) -> memoryview:
        """Keep a chunk; the same bytes, mapped where they could be kept, which is not so on a full disk."""
        if len(data) <= self.limit:
            try:
                self._write(self._path(owner, number), data)
            except OSError as error:
                if not self._warned:
                    self._warned = True
                    _log.warning("%s: chunks are not kept (%s); reading goes on without", self.folder, error.strerror)
            else:
                return self.get(owner, number, len(data)) or memoryview(data)
        return memoryview(data)

    def drop(self, owner: str, number: int) -> None:
        """Remove a chunk, if it is there."""
        path = self._path(owner, number)
        with suppress(OSError), self._locked() as sum_file:
            size = path.stat().st_size
            path.unlink()
            total = self._sum(sum_file)
            if total is not None:
                self._store_sum(sum_file, max(0, total - size))

    def used(self) -> int:
        """Bytes of all chunks, counted in the folder."""
        return sum(size for _, size, _ in self._scan())

    def _path(self, owner: str, number: int) -> Path:
        return self._chunks / owner / f"{number:08d}"

    def _write(self, path: Path, data: bytes) -> None:
        incoming = self._chunks / _INCOMING
        with self._locked() as sum_file:
            with suppress(FileNotFoundError):
                if path.stat().st_size == len(data):
                    return  # another process was faster
            total = self._sum(sum_file)
            if total is None or total + len(data) > self.limit:
                total = self._make_room(len(data))
            # Counted before it is there: a process killed in between leaves the sum too high, never too low.
            self._store_sum(sum_file, total + len(data))
            try:
                incoming.write_bytes(data)
                path.parent.mkdir(exist_ok=True)
                os.replace(incoming, path)
            except OSError:
                incoming.unlink(missing_ok=True)
                raise

    def _make_room(self, size: int) -> int:
        """Remove what was used longest ago until ``size`` bytes fit; the bytes that are left. Needs the lock.

        Raises:
            OSError: chunks that cannot be removed leave too little room.
        """
        chunks = sorted(self._scan())
        refused: OSError | None = None
        total = sum(one for _, one, _ in chunks)
        if total + size > self.limit:
            goal = max(0, self.limit - self.limit // 16 - size)
            for _, one, path in chunks:
                if total <= goal:
                    break
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    refused = error
                    continue
                total -= one
                with suppress(OSError):  # not empty yet
                    os.rmdir(os.path.dirname(path))
        if refused is not None and total + size > self.limit:
            raise refused
        return total

    def _scan(self) -> Iterator[tuple[int, int, str]]:
        """Time of last use, size and path of every chunk."""
        with suppress(FileNotFoundError), os.scandir(self._chunks) as owners:
            for owner in owners:
                if not _OWNER.fullmatch(owner.name) or not owner.is_dir(follow_symlinks=False):
                    continue
                with suppress(FileNotFoundError), os.scandir(owner.path) as chunks:
                    for chunk in chunks:
                        if not _CHUNK.fullmatch(chunk.name) or not chunk.is_file(follow_symlinks=False):
                            continue
                        with suppress(FileNotFoundError):
                            state = chunk.stat(follow_symlinks=False)
                            yield state.st_mtime_ns, state.st_size, chunk.path

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The handle of the file with the sum, while no other process changes the folder."""
        self._chunks.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._chunks / _SUM, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
        finally:
            # Said, not left to close(): a process forked meanwhile holds the handle, too.
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)

    @staticmethod
    def _sum(handle: int) -> int | None:
        """The sum as it was last stored; None in a new folder."""
        text = os.pread(handle, 20, 0)
        return int(text) if text.isdigit() else None

    @staticmethod
    def _store_sum(handle: int, total: int) -> None:
        os.pwrite(handle, b"%020d" % total, 0)
