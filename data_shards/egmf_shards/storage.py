"""Where a folder of shards lies: on a disk (mapped), or behind a URL (ranged reads, :mod:`egmf_shards.remote`).

A reader asks for slices of shards by name and never knows which. Invariant: a slice has the length that was asked for,
or a :class:`ShardError` names the file.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import resource
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from egmf_shards.errors import ShardError, UnreachableError

HTTP = ("http", "https")
EXAMPLE = "a folder's URL is needed, such as https://host/folder or s3://bucket/folder"


@dataclass(frozen=True)
class StorageOptions:
    """How remote folders are read; a folder on a disk needs none of it."""

    cache_dir: str | None = None
    """Where chunks of remote shards are kept; None for ``egmf/shards`` in the user's cache folder."""
    cache_bytes: int = 10 * 2**30
    """The most bytes of chunks kept there, over all processes of this machine that share the folder."""
    chunk_bytes: int = 4 * 2**20
    """Size of one ranged read."""
    retries: int = 6
    """How often a failed read is tried again; the waits double from ``first_wait`` on."""
    first_wait: float = 0.5
    """Seconds before the first retry."""


class Storage(ABC):
    """One folder of shards. May be pickled and forked: handles are opened when first needed, in each process."""

    location: str
    """The folder's path or URL, as messages name it."""

    def where(self, name: str) -> str:
        """A file of the folder, as messages name it."""
        return f"{self.location.rstrip('/')}/{name}"

    @abstractmethod
    def is_folder(self) -> bool:
        """Whether there is such a folder (a remote one: whether it holds a manifest or an index)."""

    @abstractmethod
    def read_file(self, name: str) -> bytes:
        """A whole small file.

        Raises:
            FileNotFoundError: there is none of that name.
            OSError: it cannot be read.
        """

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: there is none of that name.
            OSError: it cannot be asked for.
        """

    @abstractmethod
    def sizes(self, names: Sequence[str]) -> dict[str, int | None]:
        """Bytes of each file; one that is missing is left out, None where asking would cost a request a file."""

    @abstractmethod
    def view(self, name: str, offset: int, size: int) -> memoryview:
        """``size`` bytes of a shard from ``offset`` on, as long as they are held on to.

        Raises:
            ShardError: the shard is missing, empty or too short.
            UnreachableError: the store or this machine does not let it be read.
        """

    def forget(self, name: str, offset: int, size: int) -> bool:
        """Drop what is cached of a slice whose checksum did not match; whether reading it again may help."""
        return False


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
                raise UnreachableError(f"{self.where(name)}: cannot be looked at ({error.strerror})") from error
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


def open_storage(folder: str | os.PathLike[str] | Storage, options: StorageOptions | None = None) -> Storage:
    """The storage of ``folder``: a path, or a URL that fsspec knows (``s3://``, ``http://``, ``gs://``, ...)."""
    if isinstance(folder, Storage):
        return folder
    if isinstance(folder, str) and "://" in folder:
        from egmf_shards.remote import RemoteStorage  # fsspec is only imported where it is needed

        return RemoteStorage(folder, options or StorageOptions())
    return LocalStorage(Path(folder))


def protocol_of(url: str) -> str:
    """The protocol of a folder's URL.

    Raises:
        ShardError: it can be the URL of no folder.
    """
    shown = without_password(url)
    protocol, _, rest = url.partition("://")
    fault = ""
    if not url.isprintable():
        shown, fault = repr(shown), "holds a character that cannot be printed"
    elif not protocol or not rest.strip("/"):
        fault = "names no folder"
    elif protocol in HTTP:
        try:
            parts = urlsplit(url)
            # Asking for the port is what checks it.
            fault = "names no server" if not parts.hostname or parts.port == 0 else ""
        except ValueError as error:
            fault = f"not a URL ({error})"
        if not fault and "?" in url:
            fault = "a URL with a query cannot name a folder; leave out what follows the ?"
    elif "::" in url:
        # Each link of a chain reports the next one's failures in its own way, and has a cache without a bound.
        fault = "chained URLs (with ::) are not read"
    if fault:
        raise ShardError(f"{shown}: {fault}; {EXAMPLE}")
    return protocol


def without_password(text: str) -> str:
    """URLs without name and password: in a message, or where one cannot be parsed, too."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text)
