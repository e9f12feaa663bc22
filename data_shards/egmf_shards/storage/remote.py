"""Folders of shards behind a URL: ranged reads through fsspec, retried, kept in a bounded cache on this machine.

A shard is read in chunks of a fixed size, each one request for exactly its bytes. Invariants: a slice has the length
that was asked for, or a :class:`ShardError` names object, bytes and the last error; whatever may pass (a cut
connection, a body of another length, a 5xx, no answer in time) is tried again, whatever will not (404, 403) is an
error at once; a store that cannot be reached stops the run, it makes no sample a bad one. Objects are taken to be
immutable; the checksums of what was read are the reader's business (``forget``).
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import sync
from fsspec.config import conf

from egmf_shards.errors import ShardError, UnreachableError
from egmf_shards.storage.answers import check_answer, raise_refusal, reason_of
from egmf_shards.storage.base import EXAMPLE, HTTP, Storage, StorageOptions, protocol_of, without_password
from egmf_shards.storage.chunk_cache import ChunkCache, default_folder

_log = logging.getLogger("egmf_shards")
_T = TypeVar("_T")

LONGEST_WAIT = 30.0
"""Seconds; the waits between tries double up to this."""
CHUNKS_AT_HAND = 64
"""Chunks that a process keeps mapped."""
SLOWEST = 2**16
"""Bytes a second; a server that sends less is taken for hanging."""
LONGEST_READ = 300.0
"""Seconds that one read may take, all tries and waits together; NCCL's collectives give up after 600."""
LARGEST_MANIFEST = 64 * 2**20
"""Bytes of a ``manifest.json`` that are read at most."""
LARGEST_INDEX = 4 * 2**30
"""Bytes of an ``index.npz`` that are read into memory at most."""
LARGEST_COPY = 16 * 2**30
"""Bytes of a file that are read through at most: an index of some 120,000,000 samples."""
READ_THROUGH = 64 * 2**20
"""Bytes of one read of a file that is read through."""
_LARGEST = {"manifest.json": LARGEST_MANIFEST, "index.npz": LARGEST_INDEX}
# What tells one version of an object from another, by the names that the file systems give it.
_VERSIONS = ("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "updated", "mtime", "created")


@dataclass(frozen=True)
class _Object:
    """A shard as the store describes it."""

    size: int
    owner: str
    """Its folder in the cache."""
    versioned: bool
    """Whether the store tells its versions apart, by an ETag or a time of change."""


class _Process:
    """What one process holds of a storage. A forked child makes its own and keeps its parent's untouched: fsspec's
    thread does not survive the fork, and closing the parent's sockets in the child would disturb the parent."""

    def __init__(self, file_system: Any, root: str) -> None:
        self.file_system = file_system
        self.root = root
        self.lock = threading.Lock()
        self.chunks: OrderedDict[tuple[str, int], memoryview] = OrderedDict()
        self.second_reads: dict[tuple[str, int, int], int] = {}


class RemoteStorage(Storage):
    """A folder of shards at a URL of any protocol that fsspec knows.

    Args:
        url: the folder.
        options: chunk size, cache and retries.

    Raises:
        ShardError: the URL cannot be one of a folder, its protocol is unknown or lacks its package, an option is out
            of its range, or the cache folder cannot be made.
        UnreachableError: a protocol that connects at once reaches nobody.
    """

    connect_timeout = 10.0
    """Seconds until a connection must be open."""
    read_timeout = 30.0
    """Seconds without a byte after which a server is taken for hanging."""

    def __init__(self, url: str, options: StorageOptions) -> None:
        for name, least in (("chunk_bytes", 1), ("cache_bytes", 0), ("retries", 0), ("first_wait", 0)):
            if getattr(options, name) < least:
                raise ShardError(f"{name} is {getattr(options, name)}; it must be at least {least}")
        self._protocol = protocol_of(url)
        self.url = url.rstrip("/")
        self.options = options
        self.location = without_password(self.url)
        self._objects: dict[str, _Object] = {}
        self._processes: dict[int, _Process] = {}
        self._cache = ChunkCache(
            Path(options.cache_dir).expanduser() if options.cache_dir else default_folder(), options.cache_bytes
        )
        self._cache.prepare()
        self._process()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_processes": {}}

    def is_folder(self) -> bool:
        try:
            self.size("manifest.json")
        except FileNotFoundError:
            try:
                self.size("index.npz")
            except FileNotFoundError:
                return False
        except PermissionError as error:
            raise self._refused("manifest.json", error) from error
        return True

    def read_file(self, name: str) -> bytes:
        size = self._allowed(name, _LARGEST.get(name, LARGEST_INDEX))
        return self._bytes(name, f"its {size} bytes", 0, size)

    def read_through(self, name: str) -> Iterator[bytes]:
        size = self._allowed(name, LARGEST_COPY)
        for begin in range(0, size, READ_THROUGH):
            end = min(begin + READ_THROUGH, size)
            yield self._bytes(name, f"bytes {begin} to {end - 1}", begin, end)

    def version(self, name: str) -> str:
        whole = self._object(name)
        return whole.owner if whole.versioned else ""

    def _allowed(self, name: str, most: int) -> int:
        size = self.size(name)
        if size > most:
            raise ShardError(f"{self.where(name)}: {size} bytes; at most {most} are read")
        return size

    def size(self, name: str) -> int:
        return self._object(name).size

    def sizes(self, names: Sequence[str]) -> dict[str, int | None]:
        # An HTTP server has no listing to rely on; a shard's size is asked for when it is first read.
        if self._protocol in HTTP:
            return dict.fromkeys(names)
        try:
            listing = self._try(
                "", "the listing", lambda process, left: _call(process, "ls", process.root, timeout=left, detail=True)
            )
        except FileNotFoundError:
            return {}
        except PermissionError:  # reading may be allowed where listing is not
            return dict.fromkeys(names)
        found = {str(info["name"]).rpartition("/")[2]: info for info in listing}
        for name in names:
            if name in found and found[name].get("size") is not None:
                self._remember(name, found[name])
        return {name: found[name].get("size") for name in names if name in found}

    def view(self, name: str, offset: int, size: int) -> memoryview:
        try:
            whole = self._object(name)
        except OSError as error:
            raise self._refused(name, error) from error
        if offset + size > whole.size:
            raise ShardError(f"{self.where(name)}: truncated: ends at byte {whole.size}, {offset + size} are needed")
        process = self._process()
        if process.second_reads and (name, offset, size) in process.second_reads:
            process.second_reads[name, offset, size] += 1
        if not size:
            return memoryview(b"")
        step = self.options.chunk_bytes
        first, last = offset // step, (offset + size - 1) // step
        begin = offset - first * step
        if first == last:
            return self._chunk(process, name, whole, first)[begin : begin + size]
        joined = bytearray()
        for number in range(first, last + 1):
            chunk = self._chunk(process, name, whole, number)
            joined += chunk[begin : begin + size - len(joined)]
            begin = 0
        return memoryview(joined).toreadonly()

    def forget(self, name: str, offset: int, size: int) -> bool:
        """Drop the chunks of a slice whose checksum did not match.

        Returns:
            Whether reading again may help: False right after a read that was already the second try, True otherwise.
        """
        process, whole = self._process(), self._objects.get(name)
        reads = process.second_reads.pop((name, offset, size), None)
        if whole is not None:
            for number in range(offset // self.options.chunk_bytes, (offset + size) // self.options.chunk_bytes + 1):
                with process.lock:
                    process.chunks.pop((name, number), None)
                self._cache.drop(whole.owner, number)
        # Two reads since then mean that the second try was good, and this is a new fault.
        if reads is not None and reads < 2:
            return False
        process.second_reads[name, offset, size] = 0
        return True

    def _process(self) -> _Process:
        pid = os.getpid()
        if pid not in self._processes:
            self._processes.setdefault(pid, _Process(*self._connect()))
        return self._processes[pid]

    def _connect(self) -> tuple[Any, str]:
        """A file system that nobody else uses, and the folder's path in it."""
        settings: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        try:
            if self._protocol in HTTP:
                settings["client_kwargs"] = self._http_client()
                # Not through url_to_fs, which takes the :: of an IPv6 address for a chain.
                file_system, root = fsspec.filesystem(self._protocol, **settings), self.url
            elif self._protocol in ("s3", "s3a"):
                settings["config_kwargs"] = {
                    "retries": {"total_max_attempts": 1, "mode": "standard"},
                    "connect_timeout": self.connect_timeout,
                    "read_timeout": self.read_timeout,
                }
            if self._protocol not in HTTP:
                file_system, root = fsspec.core.url_to_fs(self.url, **settings)
        except ImportError as error:
            raise ShardError(
                f"{self.location}: cannot be read ({reason_of(error)}); "
                "`pip install 'egmf-dist[remote]'` brings what http, https and s3 need"
            ) from error
        except OSError as error:
            raise UnreachableError(f"{self.location}: cannot be reached ({reason_of(error)})") from error
        except Exception as error:  # each file system has its own for a URL that it does not understand
            raise ShardError(f"{self.location}: cannot be read ({reason_of(error)}); {EXAMPLE}") from error
        if hasattr(file_system, "retries"):
            file_system.retries = 1  # tries are counted, waited for and logged in one place: here
        return file_system, root.rstrip("/")

    def _http_client(self) -> dict[str, Any]:
        """Settings of aiohttp's session; the user's own (``FSSPEC_HTTP_CLIENT_KWARGS``) stay."""
        from fsspec.implementations.http import aiohttp  # as fsspec has it; an ImportError where it is not installed

        async def check(response: Any) -> None:
            try:
                check_answer(response)
            except Exception:
                response.close()
                raise

        own = {k: v for name in ("http", "https") for k, v in conf.get(name, {}).get("client_kwargs", {}).items()}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.connect_timeout, sock_read=self.read_timeout)
        headers = {"Accept-Encoding": "identity"} | dict(own.get("headers", {}))
        return own | {"timeout": timeout, "raise_for_status": check, "headers": headers}

    def _object(self, name: str) -> _Object:
        if name not in self._objects:

            def ask(process: _Process, left: float) -> dict[str, Any]:
                limit = min(left, 2 * (self.connect_timeout + self.read_timeout))  # HEAD, and GET where that fails
                return dict(_call(process, "info", f"{process.root}/{name}", timeout=limit))

            self._remember(name, self._try(name, "its size", ask))
        return self._objects[name]

    def _remember(self, name: str, info: dict[str, Any]) -> None:
        if info.get("size") is None:
            raise ShardError(f"{self.where(name)}: the server does not say how many bytes it has; ranges need that")
        version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
        identity = "\n".join((self.url, name, str(info["size"]), version, str(self.options.chunk_bytes)))
        owner = hashlib.sha256(identity.encode()).hexdigest()[:32]
        self._objects[name] = _Object(int(info["size"]), owner, bool(version))

    def _chunk(self, process: _Process, name: str, whole: _Object, number: int) -> memoryview:
        with process.lock:
            chunk = process.chunks.get((name, number))
            if chunk is not None:
                process.chunks.move_to_end((name, number))
                return chunk
        begin = number * self.options.chunk_bytes
        end = min(begin + self.options.chunk_bytes, whole.size)
        chunk = self._cache.get(whole.owner, number, end - begin)
        if chunk is None:
            try:
                data = self._bytes(name, f"bytes {begin} to {end - 1}", begin, end)
            except OSError as error:
                raise self._refused(name, error) from error
            chunk = self._cache.put(whole.owner, number, data)
        with process.lock:
            process.chunks[name, number] = chunk
            while len(process.chunks) > CHUNKS_AT_HAND:
                process.chunks.popitem(last=False)
        return chunk

    def _bytes(self, name: str, what: str, begin: int, end: int) -> bytes:
        """One ranged read; checked for its length."""
        length = end - begin

        def ask(process: _Process, left: float) -> bytes:
            limit = min(left, self.connect_timeout + self.read_timeout + length / SLOWEST)
            data: bytes = _call(process, "cat_file", f"{process.root}/{name}", timeout=limit, start=begin, end=end)
            if len(data) != length:
                raise OSError(f"{len(data)} bytes came instead of {length}")
            return data

        return self._try(name, what, ask) if length else b""

    def _try(self, name: str, what: str, call: Callable[[_Process, float], _T]) -> _T:
        """``call``, with the seconds that are left for it, again and again with growing waits while it may help.

        Raises:
            FileNotFoundError, PermissionError: the store says so.
            UnreachableError: the last try failed, or there is no time for another.
        """
        where = f"{self.where(name) if name else self.location}, {what}"
        wait, left = min(self.options.first_wait, LONGEST_WAIT), self.options.retries
        begun = time.monotonic()
        while True:
            try:
                return call(self._process(), LONGEST_READ - (time.monotonic() - begun))
            except Exception as error:  # each transport has its own
                cause = self._cause(error)
                raise_refusal(cause)
                spent = time.monotonic() - begun
                if not left or spent + wait >= LONGEST_READ:
                    raise UnreachableError(
                        f"{where}: cannot be read, tried {self.options.retries + 1 - left} times in {spent:.0f} s; "
                        f"the last time: {reason_of(cause)}"
                    ) from error
                _log.warning("%s: %s; trying again in %.1f s, %d tries left", where, reason_of(cause), wait, left)
            time.sleep(wait)
            wait, left = min(2 * wait, LONGEST_WAIT), left - 1

    def _refused(self, name: str, error: OSError) -> ShardError:
        if isinstance(error, FileNotFoundError):
            return ShardError(f"{self.where(name)}: the shard is missing")
        return UnreachableError(f"{self.where(name)}: access is denied ({reason_of(error)}); check the credentials")

    def _cause(self, error: Exception) -> BaseException:
        """fsspec reports every failure of an HTTP HEAD as a missing file, and other file systems some failures of the
        network; the cause tells which it was."""
        cause: BaseException = error
        while isinstance(cause, FileNotFoundError) and cause.__cause__ is not None:
            cause = cause.__cause__
        # TimeoutError is an OSError, aiohttp's errors are not all.
        network = isinstance(cause, OSError) or type(cause).__module__.partition(".")[0] == "aiohttp"
        return cause if network or self._protocol in HTTP else error


def _call(process: _Process, method: str, *args: Any, timeout: float, **kwargs: Any) -> Any:
    """A method of the file system, for at most ``timeout`` seconds where it can be interrupted."""
    if process.file_system.async_impl:
        waiting = getattr(process.file_system, f"_{method}")
        # fsspec takes 0 for no limit.
        return sync(process.file_system.loop, waiting, *args, timeout=max(timeout, 0.001), **kwargs)
    return getattr(process.file_system, method)(*args, **kwargs)
