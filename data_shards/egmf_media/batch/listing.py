"""Which clips there are: a folder of them, or a file with one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from egmf_media.decode.container import SUFFIXES
from egmf_media.errors import MediaError


class ClipFile(NamedTuple):
    """One of them."""

    id: str
    """Names its features: ``ID.npy``."""
    path: Path


def list_clips(source: Path, folder: Path | None = None) -> list[ClipFile]:
    """The clips of a folder by name, or of a file in its order.

    Args:
        source: a folder, searched with all below it for files with the ending of a clip (the id is the place without
            the ending); or a file of JSON lines with ``clip`` (beside the file, or in ``folder``) and ``id``, of which
            one may be left out. Other fields are not read, so a file for ``egmf shards import jsonl`` serves.
        folder: where the clips of a file lie; None: beside it.

    Raises:
        MediaError: there is none, two have one id, or a line is wrong.
    """
    if source.is_dir():
        found = list(_in_folder(source))
        if not found:
            raise MediaError(f"{source}: holds no clip (no file that ends in .mp4, .mkv, .webm, .wav, ...)")
    elif source.is_file():
        found = list(_in_file(source, folder or source.parent))
        if not found:
            raise MediaError(f"{source}: has no line; one JSON object a line is needed")
    else:
        raise MediaError(f"{source}: there is no such folder or file")
    known: dict[str, Path] = {}
    for clip in found:
        if clip.id in known:
            raise MediaError(f"{clip.path} and {known[clip.id]} have one id, {clip.id!r}; ids name the features")
        known[clip.id] = clip.path
    return found


def _in_folder(folder: Path) -> Iterator[ClipFile]:
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.suffix.lower() in SUFFIXES and path.is_file() and not any(p.startswith(".") for p in place.parts):
            yield ClipFile(place.with_suffix("").as_posix(), path)


def _in_file(source: Path, folder: Path) -> Iterator[ClipFile]:
    for number, line in enumerate(_lines(source), start=1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MediaError(f"{where}: not JSON; one object a line is needed") from error
        if not isinstance(data, dict):
            raise MediaError(f"{where}: holds a {type(data).__name__}; one JSON object a line is needed")
        yield clip_of(data, folder, where)


def _lines(source: Path) -> Iterable[str]:
    try:
        # Not splitlines: it ends a line also at signs that a text in JSON may hold (U+2028, U+0085).
        return source.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise MediaError(f"{source}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise MediaError(f"{source}: not UTF-8 (byte {error.start}); save it as UTF-8") from error


def clip_of(data: dict[str, Any], folder: Path, where: str) -> ClipFile:
    """The clip that a line names: by ``clip``, or by ``id`` the one file of that name in the folder.

    Raises:
        MediaError: it names none, or an id that cannot name a file.
    """
    clip, own = data.get("clip"), data.get("id")
    if own is None and isinstance(clip, str):
        own = PurePosixPath(clip).stem
    if not isinstance(own, str) or not (clip is None or isinstance(clip, str)):
        raise MediaError(f"{where}: id and clip are texts; one of them at least is needed")
    check_id(own, where)
    if clip is not None:
        return ClipFile(own, folder / clip)
    files = [own_file for suffix in sorted(SUFFIXES) if (own_file := folder / f"{own}{suffix}").is_file()]
    if len(files) > 1:
        raise MediaError(f"{where}: {files[0].name} and {files[1].name} are both of id {own!r}; say which by clip")
    return ClipFile(own, files[0] if files else folder / own)


def check_id(own: str, where: str) -> None:
    """Refuse an id that could not name a file below a folder.

    Raises:
        MediaError: it could not.
    """
    parts = PurePosixPath(own).parts
    if not parts or ".." in parts or own.startswith("/") or "\0" in own or max(len(p.encode()) for p in parts) > 200:
        raise MediaError(f"{where}: id {own[:60]!r} cannot name a file; it is a relative path without '..'")
