"""SHA-256 of a whole file: the writer's of its shards, and the importers' of their sources."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

CHUNK = 1 << 20
"""Bytes that are read at once."""


def _as_it_is(chunks: Iterable[bytes]) -> Iterable[bytes]:
    return chunks


def sha256(path: Path, watched: Callable[[Iterable[bytes]], Iterable[bytes]] = _as_it_is) -> str:
    """SHA-256 (hex) of a file; ``watched`` may count its chunks of :data:`CHUNK` bytes, as a progress bar does.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in watched(iter(partial(file.read, CHUNK), b"")):
            digest.update(chunk)
    return digest.hexdigest()
