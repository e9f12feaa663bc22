"""What was extracted before: by what made it and the hash of the file, so that a clip may be moved or renamed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np

from egmf_media.extract import OK, Outcome
from egmf_media.messages import own_name, write_bytes
from egmf_media.specification import Specification


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Cache:
    """A folder ``SPECIFICATION/FILE.{json,npy}``. The array is written first and the JSON file, which names its hash,
    last: what a kill leaves is not taken for whole, nor is what somebody wrote over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _place(self, made: Specification, digest: str) -> Path:
        return self.folder / made.sha256[:32] / digest

    def get(self, made: Specification, digest: str) -> Outcome | None:
        """What came of that file then, without its array (:meth:`place` puts that where it is wanted)."""
        place = self._place(made, digest)
        try:
            said = json.loads(place.with_suffix(".json").read_bytes())
            if said["status"] == OK and file_hash(place.with_suffix(".npy")) != said["sha256"]:
                return None
            return Outcome(said["status"], said["reason"], said["counts"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, made: Specification, digest: str, outcome: Outcome) -> None:
        """Keep an outcome that another try would not change."""
        place = self._place(made, digest)
        said = {"status": outcome.status, "reason": outcome.reason, "counts": dict(outcome.counts)}
        if outcome.array is not None:
            data = npy(outcome.array)
            write_bytes(place.with_suffix(".npy"), data)
            said["sha256"] = hashlib.sha256(data).hexdigest()
        write_bytes(place.with_suffix(".json"), json.dumps(said, ensure_ascii=False).encode())

    def place(self, made: Specification, digest: str, target: Path) -> None:
        """Have the array of an outcome lie at ``target``, too: the same file where the disk can, else a copy."""
        source = self._place(made, digest).with_suffix(".npy")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = own_name(target)
        try:
            try:
                os.link(source, temporary)
            except OSError:
                shutil.copyfile(source, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def npy(array: np.ndarray) -> bytes:
    """The bytes of a ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, np.float32), allow_pickle=False)
    return buffer.getvalue()
