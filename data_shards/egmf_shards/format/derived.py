"""What follows from a file and takes long to find out: made once, kept in the user's cache folder, mapped by all.

A file of the cache is named by a hash of what it was made from, so an outdated one is never looked at. Invariants: a
file there is whole or not there; one whose checksums do not hold is made anew; where nothing can be kept, each process
makes its own and goes on. Nothing is kept in a data set's own folder, and nothing there is believed: whoever hands a
data set on could have put it there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from egmf_shards.format.arrays import Archive, scratch_folder, write_arrays

UNUSED_DAYS = 30
"""What nobody has opened for so long is removed when something new is kept."""
_log = logging.getLogger("egmf_shards")

Made = dict[str, np.ndarray]


def derived(identity: str, what: str, names: Collection[str], make: Callable[[], Made]) -> Made:
    """The arrays that ``make`` makes, from the cache where they are there.

    Processes that want the same at once wait for the first of them.

    Args:
        identity: of what they follow from; empty: nothing is kept.
        what: they are, with the version of the rule by which they follow.
        names: of the arrays.
        make: makes them, one-dimensional. What it raises is raised.
    """
    folder = scratch_folder() if identity else None
    if folder is None:
        return make()
    path = _place(folder, identity, what)
    found = _read(path, names)
    if found is None:
        with _alone(path):
            found = _read(path, names)
            if found is None:
                found = make()
                _keep(path, found)
                # Mapped in place of what was made, so that it is held once for all processes.
                found = _read(path, names) or found
    return found


def fetched(identity: str, what: str, size: int, parts: Callable[[], Iterable[bytes]]) -> Path | None:
    """A file of the cache that holds ``parts``, fetched by the first process that wants it; None where none is kept.

    Args:
        identity, what: as :func:`derived`'s.
        size: bytes of all parts.
        parts: fetches them. What it raises is raised.
    """
    folder = scratch_folder() if identity else None
    if folder is None:
        return None
    path = _place(folder, identity, what)
    with _alone(path):
        if not path.exists() or path.stat().st_size != size:
            temporary = folder / f".{secrets.token_hex(4)}.partial"
            try:
                for part in parts():
                    if not _append(temporary, part):
                        return None
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            _tidy(folder)
    with contextlib.suppress(OSError):
        os.utime(path)
    return path


def _append(path: Path, data: bytes) -> bool:
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        _log.warning("%s: cannot be kept (%s); it is read into memory", path, error.strerror)
        return False
    return True


def _place(folder: Path, identity: str, what: str) -> Path:
    return folder / f"{hashlib.sha256(f'{what} {identity}'.encode()).hexdigest()[:32]}.npz"


def _read(path: Path, names: Collection[str]) -> Made | None:
    """What is kept; None where it is not, or not whole."""
    try:
        with Archive(path) as file:
            found = {name: file.array(name) for name in names}
            file.check()
            file.release()
        with contextlib.suppress(OSError):
            os.utime(path)
        return found
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile raises whatever a damaged file makes of it
        _log.warning("%s: not as it was written (%s); it is made anew", path, type(error).__name__)
        return None


def _keep(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    try:
        write_arrays(path, arrays)
    except OSError as error:
        _log.warning("%s: cannot be kept (%s); each process makes its own", path, error.strerror)
        return
    _tidy(path.parent)


def _tidy(folder: Path) -> None:
    oldest = time.time() - UNUSED_DAYS * 86400
    for other in folder.iterdir():
        with contextlib.suppress(OSError):
            if other.suffix in (".npz", ".lock", ".partial") and other.stat().st_mtime < oldest:
                other.unlink()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While no other process makes this file; where the file system has no locks, several do, and the last one wins."""
    handle = None
    try:
        with contextlib.suppress(OSError):
            handle = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle is not None:
            # Said, not left to close(): a process forked meanwhile holds the handle, too.
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)
