"""The version that every JSON and YAML file of a run carries under the key ``format``.

A file without the key is version 1. Version 2 added the key, the folder that relative paths start in (``config.yaml``)
and the launch that moved a pointer (``latest.json``), and a backbone in a folder is named by its hash alone. Version 3
has checkpoints by parameter name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egmf_dist.errors import EgmfError, MachineError, is_machines
from egmf_shards.messages import unbroken

FORMAT = 3
KEY, SEAL = "format", "sha256_of_this"
TRAINED_FILE = "trained.safetensors"
"""What holds an adapter's weights, in a run and in an export."""


class DamagedError(EgmfError):
    """A file of a run cannot be read; another one may serve instead."""


def unreadable(where: Path, error: BaseException) -> DamagedError | MachineError:
    """What to raise where a run's file or folder cannot be read: it is damaged, unless its machine failed."""
    said = f"{where} cannot be read ({unbroken(str(error))})"
    return MachineError(said) if is_machines(error) else DamagedError(said)


def stamped(data: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` with this version in front."""
    return {KEY: FORMAT, **data}


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` with this version in front and a hash of all behind: a flipped bit of a number is a number, too."""
    whole = stamped(data)
    return whole | {SEAL: _hash(whole)}


def _hash(data: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(data))  # as a reader finds it: keys are strings, tuples lists
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def check_format(found: object, path: Path | str) -> None:
    """Refuse a version that a later egmf-dist wrote.

    Args:
        found: what stands under ``format``; None where nothing does.
        path: the file, for the message.

    Raises:
        EgmfError: ``found`` is no version, or a later one than this program knows.
    """
    if found is None:
        return
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise EgmfError(f"{path}: its format is {found!r}; it must be a number from 1 to {FORMAT}")
    if found > FORMAT:
        raise EgmfError(f"{path}: written in format {found}, and this egmf-dist reads up to {FORMAT}; use a newer one")


def read_stamped(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run, its version checked.

    Raises:
        DamagedError: the file is missing, cut short or no JSON object.
        EgmfError: a later version wrote it.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} is damaged ({unbroken(str(error))})") from error
    if not isinstance(data, dict):
        raise DamagedError(f"{path} is damaged (no JSON object)")
    check_format(data.get(KEY), path)
    seal = data.pop(SEAL, None)  # files of before have none
    if seal is not None and seal != _hash(data):
        raise DamagedError(f"{path} is damaged (its content is not the one that was written)")
    return data
