"""A task from a YAML file, so that one's own label space, languages and question need no code."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from egmf_dist.errors import EgmfError
from egmf_shards import Task
from egmf_shards.foreign_files import foreign_file
from egmf_shards.messages import json_reason


def read_task(path: str | os.PathLike[str]) -> Task:
    """The task a file defines; its keys are the fields of :class:`egmf_shards.Task`.

    Raises:
        EgmfError: the file is missing, not UTF-8, not YAML or not a mapping.
        ShardError: a key is missing or unknown, or a value breaks a task's rules.
    """
    foreign = foreign_file(Path(path))
    if foreign:
        raise EgmfError(f"task {path}: {foreign}")
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise EgmfError(f"task {path}: cannot be read ({error.strerror}); see configs/tasks/example.yaml") from error
    except UnicodeDecodeError as error:
        raise EgmfError(f"task {path}: not UTF-8 (byte {error.start})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise EgmfError(f"task {path}{place}: not YAML ({getattr(error, 'problem', error)})") from error
    except (ValueError, RecursionError) as error:  # YAML's own conversions: a date that is none, 5,000 digits
        raise EgmfError(f"task {path}: not YAML ({json_reason(error)})") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise EgmfError(f"task {path}: must hold the fields of one task, as configs/tasks/example.yaml")
    return Task.from_json(data, f"task {path}")
