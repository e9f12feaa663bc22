"""One way to read a YAML file, whose every fault is one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from egmf_dist.errors import EgmfError
from egmf_shards.foreign_files import foreign_file
from egmf_shards.messages import json_reason, unbroken


def parse_yaml(path: str | os.PathLike[str], what: str) -> Any:
    """What a YAML file holds.

    Args:
        path: the file.
        what: what it is, as an error's first word, such as ``config``.

    Raises:
        OSError: it cannot be read; whoever asked says what would be right.
        EgmfError: it is not YAML in UTF-8.
    """
    foreign = foreign_file(Path(path))
    if foreign:
        raise EgmfError(f"{what} {path}: {foreign}")
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise EgmfError(f"{what} {path}: not a UTF-8 text file ({error.reason} at byte {error.start})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or unbroken(str(error))
        raise EgmfError(f"{what} {path}{place}: not YAML ({reason})") from error
    except (ValueError, RecursionError) as error:  # YAML's own conversions: a date that is none, 5,000 digits
        raise EgmfError(f"{what} {path}: not YAML ({json_reason(error)})") from error
