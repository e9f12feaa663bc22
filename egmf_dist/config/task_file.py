"""A task from a YAML file, so that one's own label space, languages and question need no code."""

from __future__ import annotations

import os

from egmf_dist.config.yaml_file import parse_yaml
from egmf_dist.errors import EgmfError
from egmf_dist.recipe_files import EXAMPLE_TASK, shipped
from egmf_shards.format.task import Task


def read_task(path: str | os.PathLike[str]) -> Task:
    """The task a file defines; its keys are the fields of :class:`egmf_shards.format.task.Task`.

    Raises:
        EgmfError: the file is missing, not UTF-8, not YAML or not a mapping.
        ShardError: a key is missing or unknown, or a value breaks a task's rules.
    """
    try:
        data = parse_yaml(path, "task")
    except OSError as error:
        raise EgmfError(f"task {path}: cannot be read ({error.strerror}); see {shipped(EXAMPLE_TASK)}") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise EgmfError(f"task {path}: must hold the fields of one task, as {shipped(EXAMPLE_TASK)}")
    return Task.from_json(data, f"task {path}")
