"""A folder of shards on a disk: files are mapped, and a process keeps a bounded number of maps."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from egmf_shards.errors import ShardError, UnreachableError
from egmf_shards.storage.base import Storage

# Of descriptors or memory; maps hold both.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# Folders with maps, and a lock for who maps or unmaps. Whoever reads what is mapped needs no lock.
_folders: weakref.WeakSet[LocalStorage] = weakref.WeakSet()
_mapping = threading.Lock()


def _after_fork() -> None:
    """Another thread of the parent may have held the lock, and it is not here to let go."""
    global _mapping
    _mapping = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _most_maps() -> int:
    """How many shards a process keeps mapped: each map holds a file descriptor, of which others need some, too."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(4096, descriptors // 4))


class LocalStorage(Storage):
    """A folder on a disk or a network file system: shards are mapped when first needed.

    All folders of a process share one bound on maps. Past it, the folder with the most lets its oldest go.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.location = str(path)
        self._views: dict[str, memoryview] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_views": {}}

    def is_folder(self) -> bool:
        return self.path.is_dir()

    def read_file(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def read_through(self, name: str) -> Iterator[bytes]:
        with (self.path / name).open("rb") as file:
            while piece := file.read(1 << 20):
                yield piece

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def sizes(self, names: Sequence[str]) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for name in names:
            try:
                found[name] = self.size(name)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise UnreachableError(f"{self.where(name)}: cannot be examined ({error.strerror})") from error
        return found

    def view(self, name: str, offset: int, size: int) -> memoryview:
        whole = self._views.get(name)
        if whole is None:
            whole = self._map(name)
        part = whole[offset : offset + size]
        if len(part) != size:
            raise ShardError(f"{self.where(name)}: truncated: ends at byte {len(whole)}, {offset + size} are needed")
        return part

    def _map(self, name: str) -> memoryview:
        path = self.path / name
        try:
            with _mapping:
                _make_room()
                _folders.add(self)
                try:
                    whole = _map_file(path)
                except OSError as error:
                    if error.errno not in _EXHAUSTED:
                        raise
                    for folder in _folders:
                        folder._views.clear()
                    whole = _map_file(path)
                self._views[name] = whole
                return whole
        except FileNotFoundError as error:
            # A folder of shards has both. Where a file system was unmounted, an empty folder is left, or none.
            if not any(os.path.exists(self.path / known) for known in ("manifest.json", "index.npz")):
                raise UnreachableError(
                    f"{self.where(name)}: the whole folder is gone; is its file system still mounted?"
                ) from error
            raise ShardError(f"{self.where(name)}: the shard is missing") from error
        except ValueError as error:  # an empty file cannot be mapped
            raise ShardError(f"{self.where(name)}: the shard is empty") from error
        except OSError as error:
            raise UnreachableError(f"{self.where(name)}: cannot be mapped ({error.strerror})") from error


def _make_room() -> None:
    """Let maps go until this process may hold one more. Needs the lock."""
    most = _most_maps()
    while sum(len(folder._views) for folder in _folders) >= most:
        views = max((folder._views for folder in _folders), key=len)
        del views[next(iter(views))]


def _map_file(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
