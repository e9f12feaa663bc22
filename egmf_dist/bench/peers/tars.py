"""The samples of a folder of tars through Python's own tarfile, for the readers that want another format."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def read_samples(folder: Path) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """JSON, audio and vision (float32 ``[frames, dim]``) of each sample, in the order of the tars."""
    for path in sorted(folder.glob("*.tar")):
        members: dict[str, bytes] = {}
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                members[member.name.partition(".")[2]] = file.read()
                if len(members) == 3:
                    audio, vision = (_array(members[f"{m}.npy"]) for m in ("audio", "vision"))
                    yield json.loads(members["json"]), audio, vision
                    members = {}


def _array(data: bytes) -> np.ndarray:
    array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    return array
