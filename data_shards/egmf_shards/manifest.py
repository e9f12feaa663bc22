"""``manifest.json``: what a shard folder holds, in words a person and a training run can both read.

Keys: ``schema``, ``dataset``, ``tasks``, ``dims`` (feature width per modality, 0 = none), ``languages``, ``splits``
(samples, utterances, label counts or value statistics per task, missing modalities), ``statistics`` (per modality and
dimension, of the training split; optional), ``shards`` (name, bytes, samples, SHA-256), ``index`` (content hash of the
index that belongs to it), ``source`` (where it came from), and for generated data ``ceilings``. All of them are
specified in ``docs/shard-format.md``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from egmf_shards.errors import ShardError
from egmf_shards.storage import Storage, open_storage
from egmf_shards.task import Task

MANIFEST_NAME = "manifest.json"
SCHEMA = 1
_KEYS = ("schema", "dataset", "tasks", "dims", "languages", "splits", "shards", "index", "source")


# A list of numbers as json.dumps indents it. A string cannot match: it holds no raw line break.
_NUMBERS = re.compile(r"\[\n\s+([-+.0-9eE]+(?:,\n\s+[-+.0-9eE]+)*)\n\s+\]")


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``manifest`` into ``folder``; the same manifest gives the same bytes."""
    text = json.dumps(manifest, ensure_ascii=False, allow_nan=False, indent=2)
    text = _NUMBERS.sub(_one_line, text)  # hundreds of dimensions stay on one line each
    (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def _one_line(match: re.Match[str]) -> str:
    return "[" + re.sub(r"\s+", " ", match[1]) + "]"


def read_manifest(folder: Path | Storage) -> dict[str, Any]:
    """The manifest of a folder of shards.

    Raises:
        ShardError: there is no such folder or no manifest in it, it is not JSON, of another schema, or lacks a key.
    """
    storage = open_storage(folder)
    path = storage.where(MANIFEST_NAME)
    if not storage.is_folder():
        raise ShardError(
            f"{storage.location}: there is no such folder of shards; "
            "make one with `egmf shards synth` or `egmf shards import`"
        )
    try:
        manifest = json.loads(storage.read_file(MANIFEST_NAME))
    except FileNotFoundError as error:
        raise ShardError(
            f"{storage.location}: holds no {MANIFEST_NAME}, so it is not a finished folder of shards"
        ) from error
    except ShardError:
        raise
    except (ValueError, OSError) as error:
        raise ShardError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else None
        raise ShardError(f"{path}: schema is {found!r}; this version reads {SCHEMA}")
    lacking = [key for key in _KEYS if key not in manifest]
    if lacking:
        raise ShardError(f"{path}: lacks {', '.join(lacking)}; write the folder anew")
    return manifest


def tasks_of(manifest: dict[str, Any], folder: Path | Storage) -> dict[str, Task]:
    """The manifest's tasks by name; ``folder`` is where it lies, for messages."""
    where = open_storage(folder).where(MANIFEST_NAME)
    tasks = [Task.from_json(data, where) for data in manifest["tasks"]]
    return {task.name: task for task in tasks}
