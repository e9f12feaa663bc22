"""Files that are seen whole or not at all, also after the power failed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from egmf_dist.errors import EgmfError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNFINISHED, _ASIDE, _GONE = ".tmp", ".aside", ".gone"
# What this module's writers leave where they are killed: a folder of a step, or a file of a writer's own name.
_SET_ASIDE = (_ASIDE, ".old")  # the second is the first versions' name
_LEFT = re.compile(r"\.step-\d+\.(tmp|aside|old|gone)|\..+\.[0-9a-f]{8}\.tmp")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let the system's error say which file it is about: of a full disk it knows the descriptor alone."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 so that a reader sees the old file or the new one, never half of it, and the disk holds it.

    Raises:
        OSError: it cannot be written; names a file.
    """
    # The name is this writer's own: two evaluations of one split at once must not write into one file.
    temporary = own_name(path)
    try:
        with naming(path), open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, data: Any) -> None:
    """Write JSON as :func:`write_text` does. NaN and infinities are refused: they are no JSON.

    Raises:
        ValueError: ``data`` holds a number that is not finite.
    """
    write_text(path, _as_json(data))


def _as_json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def renew_json(path: Path, data: Any) -> None:
    """:func:`write_json`, unless the file holds that already: a start on a full disk needs no room for it."""
    with contextlib.suppress(OSError, ValueError):
        if path.read_text(encoding="utf-8") == _as_json(data):
            return
    write_json(path, data)


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line, as :func:`write_text` does."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


class WaitingLines:
    """The end of a file of lines. What the disk does not take waits, and comes before what is appended next: nothing
    ends for want of a line.

    Args:
        path: the file; made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._late = path, b""

    def append(self, lines: str) -> None:
        """Write lines, each with its end; the first refusal in a row is a warning on stderr."""
        before, self._late = bool(self._late), self._late + lines.encode()
        try:
            with open(self.path, "ab", buffering=0) as file:  # without a buffer: it is known what was taken
                while self._late:
                    self._late = self._late[file.write(self._late) :]
        except OSError as error:
            if not before:
                said = f"{self.path} cannot be written ({error.strerror}); its lines wait until it can"
                print(f"warning: {said}", file=sys.stderr, flush=True)


def sync_folder(folder: Path) -> None:
    """Have the disk hold the names in a folder: a new file whose name is lost is lost."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot, and keep names in order by themselves
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Have the disk hold what is in a file that is written and closed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Have the disk hold every file below a folder, then the names."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync_file(Path(place, name))
        sync_folder(Path(place))


def replace_folder(temporary: Path, final: Path) -> None:
    """Rename a finished folder into place; one of the same name is moved aside first and removed last."""
    aside = final.with_name(f".{final.name}{_ASIDE}")
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        os.rename(final, aside)
    os.rename(temporary, final)
    sync_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that its name is gone at once: what a kill leaves of it is not taken for whole."""
    aside = folder.with_name(f".{folder.name}{_GONE}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def own_name(final: Path) -> Path:
    """Where one of several writers makes what will be ``final``: no other has this name."""
    return final.with_name(f".{final.name}.{secrets.token_hex(4)}{_UNFINISHED}")


def unfinished(final: Path) -> Path:
    """Where a folder is made before :func:`replace_folder` gives it its name."""
    return final.with_name(f".{final.name}{_UNFINISHED}")


def set_aside(folder: Path) -> dict[Path, Path]:
    """Whole folders that a killed writer had moved aside, by the names that they get back."""
    found = {}
    for path in folder.glob(".*"):
        final = path.with_name(path.name[1:]).with_suffix("")
        if _LEFT.fullmatch(path.name) and path.name.endswith(_SET_ASIDE) and path.is_dir() and not final.exists():
            found[final] = path
    return found


def discard_unfinished(folder: Path) -> None:
    """Clear up after writers of this module that were killed; none may be at work on what lies in ``folder``.

    A whole folder that was moved aside, and whose successor did not get its name any more, gets its own back.
    """
    for final, aside in set_aside(folder).items():
        os.rename(aside, final)
    for path in folder.glob(".*"):
        if not _LEFT.fullmatch(path.name) or (path.suffix == ".old" and not path.is_dir()):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(temporary: Path, what: str, clears: bool = True, then: str = "go on with --resume auto") -> Iterator[None]:
    """Leave nothing of a folder behind where the body fails, and say in one line where the disk did not take it.

    Args:
        temporary: the folder.
        what: it will be.
        clears: this process removes it; where ranks share a folder one of them does, and what is left of it then goes
            at the next start.
        then: what to do when there is room again.

    Raises:
        EgmfError: the system, safetensors or torch's writer could not write.
    """
    try:
        yield
    except BaseException as error:
        if clears:
            shutil.rmtree(temporary, ignore_errors=True)
        if _is_the_disks(error):
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            place = next(folder for folder in temporary.absolute().parents if folder.is_dir())
            free = shutil.disk_usage(place).free / 2**20
            raise EgmfError(
                f"{what} cannot be written ({reason}; {free:,.0f} MiB are free in {place}); make room, then {then}"
            ) from error
        raise


def _is_the_disks(error: BaseException) -> bool:
    """Whether the disk has no room. A RuntimeError is a dead peer's, but for those of torch's writer, which hide the
    system's reason; a missing file is another rank's doing."""
    if isinstance(error, SafetensorError):
        return any(f"os error {number})" in str(error) for number in _NO_ROOM)
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in ("PytorchStreamWriter", "inline_container", "unexpected pos"))
    return isinstance(error, OSError) and error.errno in _NO_ROOM
