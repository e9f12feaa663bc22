"""What the manifest's ``source`` says about the files that an importer read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from egmf_shards.checksums import CHUNK, sha256
from egmf_shards.errors import ShardError
from egmf_shards.foreign_files import foreign_file
from egmf_shards.progress import progress

IMPORTER_VERSION = 2
"""Raised when an importer makes other samples of the same file than before."""


def provenance(importer: str, files: Iterable[str | os.PathLike[str]]) -> dict[str, Any]:
    """``importer``, ``importer_version`` and ``files`` (:func:`describe_source` of each, in that order)."""
    return {
        "importer": importer,
        "importer_version": IMPORTER_VERSION,
        "files": [describe_source(file) for file in files],
    }


def describe_source(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What provenance says about a source file: its ``file`` name, ``bytes`` and ``sha256`` (read in pieces).

    Raises:
        ShardError: it cannot be read, or is something else than a data set's file (:func:`foreign_kind`).
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ShardError(f"{path}: there is no such file")
        foreign = foreign_file(path)
        if foreign:
            raise ShardError(f"{path}: {foreign}")
        size = path.stat().st_size
        digest = sha256(path, partial(progress, description=f"checksum of {path.name}", total=size // CHUNK + 1))
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from error
    return {"file": path.name, "bytes": size, "sha256": digest}
