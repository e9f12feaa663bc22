"""An optional folder of per-clip ``.npy`` features beside a data set's table.

Rules, each counted and told in the manifest: a clip without a file lacks the modality; a file that is unreadable (not
``.npy``, a pickle, not numbers, not ``[frames, dim]`` or ``[dim]``, empty, not one finite number) counts as lacking;
what is not finite or beyond fp16 is treated as ``repairs.py`` says. One vector ``[dim]`` is one frame. A folder in
which not one clip is found is an error: it is the wrong folder, or names its files otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from egmf_shards import codec
from egmf_shards.errors import ShardError
from egmf_shards.importers.repairs import Repairs


class FeatureFolder:
    """One modality's features; ``path`` None means that the data set has none."""

    def __init__(self, path: str | os.PathLike[str] | None, modality: str) -> None:
        self.path = None if path is None else Path(path)
        self.modality = modality
        if self.path is not None and not self.path.is_dir():
            raise ShardError(f"{self.path}: there is no such folder of {modality} features")
        self.found = 0
        self.absent = 0
        self.unreadable = 0
        self.frames = 0
        self.repairs = Repairs()
        self._example = ""

    def load(self, names: Sequence[str]) -> np.ndarray | None:
        """float32 ``[frames, dim]`` of the first of ``names`` (paths inside the folder) that exists; None: absent."""
        if self.path is None:
            return None
        self._example = self._example or " or ".join(names)
        # A name is made from cells of a table: it may not lead out of the folder.
        inside = [n for n in names if ".." not in PurePosixPath(n).parts and not PurePosixPath(n).is_absolute()]
        file = next((self.path / name for name in inside if (self.path / name).is_file()), None)
        if file is None:
            self.absent += 1
            return None
        self.found += 1
        array = _read(file)  # of any number type
        if array is None:
            self.unreadable += 1
            return None
        array = self.repairs.finite(array)
        self.repairs.count_beyond_fp16(array)
        self.frames += len(array)
        return array

    def report(self) -> dict[str, object] | None:
        """What the manifest's ``source`` says about this folder.

        Raises:
            ShardError: not one clip was found in it.
        """
        if self.path is None:
            return None
        if not self.found:
            raise ShardError(
                f"{self.path}: holds {self.modality} features of not one clip; the first looked for was {self._example}"
            )
        return {
            "clips_found": self.found,
            "clips_without_file": self.absent,
            "clips_unreadable": self.unreadable,
            "frames_kept": self.frames,
            **self.repairs.__dict__,
        }


def _read(file: Path) -> np.ndarray | None:
    try:
        with file.open("rb") as opened:
            layout = codec.array_layout(opened.read(codec.MAX_ARRAY_HEADER))
            if layout.dtype.kind not in "fiu" or len(layout.shape) not in (1, 2) or not layout.size:
                return None
            opened.seek(0)
            array = codec.parse_array(opened.read())
    except (OSError, ValueError, MemoryError):
        return None
    return np.atleast_2d(array) if np.isfinite(array).any() else None


def feature_source(audio: FeatureFolder, vision: FeatureFolder) -> dict[str, dict[str, object]]:
    """The reports of the folders that were given, by modality."""
    reports = {folder.modality: folder.report() for folder in (audio, vision)}
    return {modality: report for modality, report in reports.items() if report is not None}
