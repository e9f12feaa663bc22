"""A folder's path or URL to what reads it."""

from __future__ import annotations

import os
from pathlib import Path

from egmf_shards.storage.base import Storage, StorageOptions
from egmf_shards.storage.local import LocalStorage


def open_storage(folder: str | os.PathLike[str] | Storage, options: StorageOptions | None = None) -> Storage:
    """The storage of ``folder``: a path, or a URL that fsspec knows (``s3://``, ``http://``, ``gs://``, ...)."""
    if isinstance(folder, Storage):
        return folder
    if isinstance(folder, str) and "://" in folder:
        from egmf_shards.storage.remote import RemoteStorage  # fsspec is only imported where it is needed

        return RemoteStorage(folder, options or StorageOptions())
    return LocalStorage(Path(folder))
