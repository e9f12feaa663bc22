"""An optional folder of per-clip ``.npy`` features beside a data set's table.

Rules, each counted in the manifest: a clip without a file lacks the modality; a file that is unreadable (not
``.npy``, a pickle, not real numbers, not ``[frames, dim]`` or ``[dim]``, axes of 1 aside, or empty) counts as lacking,
and the first ten are named with the reason; what else becomes of the numbers is said in ``repairs.py``. One vector
``[dim]`` is one frame. A folder in which not one clip is found, or not one can be read, is an error: it is the wrong
folder, or holds something else. A ``stream.json`` in the folder, ``{"rate": 4.0, "made_by": "..."}``, says how many
frames a second there are and what made them; both may be left out. ``egmf features extract`` also writes a
``specification``, by which they can be made again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.foreign_files import HEAD, foreign_kind
from egmf_shards.format import codec
from egmf_shards.format.manifest import FeatureStream, parse_json, stream_fault
from egmf_shards.importers.repairs import Repairs, shape_without_axes_of_1
from egmf_shards.messages import one_line

STREAM_NAME = "stream.json"
NAMED = 10
"""Unreadable files that are named."""


class FeatureFolder:
    """One feature stream's files; ``path`` None means that the data set has none.

    Raises:
        ShardError: there is no such folder, the stream's name is none, or its ``stream.json`` is malformed.
    """

    def __init__(self, path: str | os.PathLike[str] | None, modality: str) -> None:
        self.path = None if path is None else Path(path)
        self.modality = modality
        if self.path is not None and not self.path.is_dir():
            raise ShardError(f"{self.path}: there is no such folder of {modality} features")
        self.found = 0
        self.absent = 0
        self.unreadable = 0
        self.named: list[str] = []
        """``file: reason`` of the first :data:`NAMED` that are unreadable; files by their place in the folder."""
        self.frames = 0
        self.repairs = Repairs()
        self._example = ""
        self.stream = self._described()
        """What the manifest is to say about the stream; its width comes with the first array."""

    def _described(self) -> FeatureStream:
        fault = stream_fault(self.modality, {"dim": 0})
        if fault:
            raise ShardError(fault)
        file = None if self.path is None else self.path / STREAM_NAME
        if file is None or not file.is_file():
            return FeatureStream()
        try:
            said = parse_json(file.read_bytes())
        except (ValueError, OSError) as error:
            raise ShardError(f"{file}: not a readable JSON file ({one_line(error)})") from error
        if not isinstance(said, dict) or not set(said) <= {"rate", "made_by", "specification"}:
            raise ShardError(f"{file}: an object with rate, made_by and specification is needed, and nothing else")
        fault = stream_fault(self.modality, {"dim": 0} | said)
        if fault:
            raise ShardError(f"{file}: {fault}")
        return FeatureStream.from_json({"dim": 0} | said)

    def load(self, names: Sequence[str]) -> np.ndarray | None:
        """float32 ``[frames, dim]`` of the first of ``names`` (paths inside the folder) that exists; None: absent."""
        if self.path is None:
            return None
        self._example = self._example or " or ".join(names)
        file = next((self.path / name for name in names if _inside(name) and _is_file(self.path / name)), None)
        if file is None:
            self.absent += 1
            return None
        self.found += 1
        read = read_array(file)  # of any number type
        if isinstance(read, str):
            self.unreadable += 1
            if self.unreadable <= NAMED:
                self.named.append(f"{file.relative_to(self.path)}: {read}")
            return None
        array = self.repairs.whole(read)
        self.frames += 0 if array is None else len(array)
        return array

    def report(self) -> dict[str, int]:
        """What the manifest's ``source`` says about this folder.

        Raises:
            ShardError: not one clip was found in it, or not one could be read.
        """
        if not self.found:
            raise ShardError(
                f"{self.path}: holds {self.modality} features of not one clip; the first looked for was {self._example}"
            )
        if self.found == self.unreadable:
            raise ShardError(
                f"{self.path}: the {self.modality} features of not one clip can be read; the first of {self.found} is "
                f"{self.named[0]}"
            )
        return {
            "clips_found": self.found,
            "clips_without_file": self.absent,
            "clips_unreadable": self.unreadable,
            "frames_kept": self.frames,
            **self.repairs.__dict__,
        }


def _inside(name: str) -> bool:
    """A name is made from cells of a table: it may not lead out of the folder."""
    return ".." not in PurePosixPath(name).parts and not PurePosixPath(name).is_absolute()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # an id may be longer than a file's name, or hold a NUL
        return False


def read_array(file: Path) -> np.ndarray | str:
    """The array of a ``.npy`` file, numbers of any type for :meth:`egmf_shards.importers.repairs.Repairs.whole`, or in
    one line why it is none that is wanted; whatever the file holds, nothing is raised."""
    try:
        with file.open("rb") as opened:
            head = opened.read(max(codec.MAX_ARRAY_HEADER, HEAD))
            if not head.startswith(b"\x93NUMPY"):
                other = "a pickle" if head[:1] == b"\x80" else "no .npy file"
                return foreign_kind(head) or f"{other}; numpy.save(file, array) of numbers [frames, dim] is needed"
            if b"'|O'" in head[:HEAD]:
                return "an array of objects; numbers [frames, dim], all of one type, are needed"
            layout = codec.array_layout(head)
            fault = layout_fault(layout.dtype, layout.shape)
            if fault:
                return fault
            opened.seek(0)
            return codec.parse_array(opened.read())
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, MemoryError) as error:
        return str(error) or type(error).__name__


def layout_fault(dtype: np.dtype, shape: Sequence[int]) -> str:
    """What is wrong with the type or the shape of a clip's array, in one line; empty for nothing."""
    if dtype.kind not in "fiu":
        return f"{dtype} {list(shape)}; real numbers are needed"[:200]
    if len(shape_without_axes_of_1(shape)) not in (1, 2) or 0 in shape:
        return f"{dtype} {list(shape)}; [frames, dim] or [dim] is needed"[:200]
    return ""


def streams_of(folders: Iterable[FeatureFolder]) -> dict[str, FeatureStream]:
    """The feature streams by name, as a writer wants them."""
    return {folder.modality: folder.stream for folder in folders}


def feature_source(*folders: FeatureFolder) -> dict[str, dict[str, Mapping[str, int] | list[str]]]:
    """What the manifest's ``source`` says about the folders that were given: ``features``, and where files could not be
    read ``unreadable``, each by modality."""
    given = [folder for folder in folders if folder.path is not None]
    features: dict[str, Mapping[str, int] | list[str]] = {folder.modality: folder.report() for folder in given}
    unreadable: dict[str, Mapping[str, int] | list[str]] = {
        folder.modality: folder.named for folder in given if folder.named
    }
    return {"features": features} | ({"unreadable": unreadable} if unreadable else {})
