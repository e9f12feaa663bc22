"""What a folder of shards is asked for, wherever it lies: on a disk (``local``) or behind a URL (``remote``).

A reader asks for slices of shards by name and never knows which. Invariant: a slice has the length that was asked for,
or a :class:`ShardError` names the file.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from egmf_shards.errors import ShardError

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

    def read_through(self, name: str) -> Iterator[bytes]:
        """A whole file, a piece after the other, for one that memory should not hold.

        Raises:
            FileNotFoundError, OSError: as :meth:`read_file`.
        """
        yield self.read_file(name)

    def version(self, name: str) -> str:
        """What no other state of a file has, asked by whatever process; empty where nothing tells states apart.

        Raises:
            FileNotFoundError, OSError: as :meth:`size`.
        """
        return ""

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
