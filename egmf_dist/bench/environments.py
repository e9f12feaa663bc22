"""One virtual environment for each library, made of pinned requirements and kept for the next time.

Invariants: an environment is used only once it is finished; other pins or another Python make another environment, and
the old one of that library is removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from egmf_dist.errors import EgmfError

PINS = Path(__file__).with_name("peers")
_READY = "finished"
# Our own packages must not be seen from an environment that is another library's.
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


def default_folder() -> Path:
    """``egmf/bench`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "egmf" / "bench"


def python_of(name: str, folder: Path) -> Path:
    """The interpreter of library ``name``'s environment in ``folder``, which is built where it is not there yet.

    Raises:
        EgmfError: it cannot be built; the message ends with what pip said.
    """
    pins = PINS / f"{name}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock"):
            return _built(name, pins, folder)
    except OSError as error:
        raise EgmfError(
            f"{folder}: {error.strerror or error}; environments need a folder that can be written"
        ) from error


def is_built(name: str, folder: Path) -> bool:
    """Whether :func:`python_of` would return at once."""
    return (_place(name, PINS / f"{name}.txt", folder) / _READY).is_file()


def clean_environment() -> dict[str, str]:
    """The variables of this process without those that lead an interpreter to our packages."""
    return {key: value for key, value in os.environ.items() if key not in _OURS} | {"PYTHONNOUSERSITE": "1"}


def _place(name: str, pins: Path, folder: Path) -> Path:
    asked = f"{sys.version}\n".encode() + pins.read_bytes()
    return folder / f"{name}-{hashlib.sha256(asked).hexdigest()[:12]}"


def _built(name: str, pins: Path, folder: Path) -> Path:
    place = _place(name, pins, folder)
    python = place / "bin" / "python"
    if (place / _READY).is_file():
        return python
    for old in folder.iterdir():
        if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{12}}", old.name):
            shutil.rmtree(old)
    try:
        _call([sys.executable, "-m", "venv", str(place)], name)
        _call([str(python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "-r", str(pins)], name)
        (place / _READY).touch()
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return python


def _call(command: list[str], name: str) -> None:
    done = subprocess.run(
        command, env=clean_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["nothing"]
        raise EgmfError(f"the environment of {name} cannot be built; pip said: {errors[0]}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One builder at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
