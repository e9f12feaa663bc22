"""``egmf shards index``: index and manifest for WebDataset tars that another program wrote; the tars stay as they are.

The folder holds the tars and ``tasks.json``: one task or a list of tasks, with the fields of the manifest's ``tasks``.
Members and their JSON are as ``docs/shard-format.md`` says. Everything that ``egmf shards verify`` checks is checked
first, so an indexed folder is a sound one. A folder whose index and manifest are of version 1 gets those of version 2,
and of its tars only the samples' JSON is read: no hash changes, so runs go on as they were.
"""

from __future__ import annotations

import mmap
import os
import secrets
import shutil
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from egmf_shards.check.scan import Recorded, Report, Scan
from egmf_shards.errors import ShardError
from egmf_shards.format import codec
from egmf_shards.format.index import INDEX_NAME, Index, load_index, save_index
from egmf_shards.format.index_build import build_index, dialogues_of
from egmf_shards.format.manifest import (
    MANIFEST_NAME,
    MAX_DEPTH,
    SCHEMA,
    FeatureStream,
    current,
    levels,
    parse_json,
    read_manifest,
    stream_fault,
    tasks_of,
    write_manifest,
)
from egmf_shards.format.rules import MAX_STREAMS
from egmf_shards.format.tar_walk import walk_tar
from egmf_shards.format.task import Task
from egmf_shards.importers.report import print_summary
from egmf_shards.messages import one_line
from egmf_shards.progress import progress
from egmf_shards.write.writer import ShardWriter

TASKS_NAME = "tasks.json"


def index_foreign(
    folder: str | os.PathLike[str], tasks: str | os.PathLike[str] | None = None, force: bool = False
) -> dict[str, Any]:
    """Write ``index.npz`` and ``manifest.json`` into a folder of tars and return the manifest.

    Args:
        folder: holds ``*.tar``; every sample of every tar belongs to one data set.
        tasks: the JSON file of task definitions; left out, ``tasks.json`` in the folder, or with ``force`` and without
            such a file the tasks of the old manifest.
        force: make both anew where they are there already. The old ones stay until everything was read and found
            sound. The new manifest's ``source`` holds the old one's under ``before``; ``ceilings`` are dropped, because
            nothing says that they hold for what the tars hold now.

    Raises:
        ShardError: there is no such folder or no tar in it, an index or a manifest is there already and ``force`` is
            not given, the tasks are missing or malformed, or a tar or a sample breaks a rule (the first problem, and
            how many more there are). Nothing is written then.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ShardError(f"{path}: there is no such folder of tars")
    if not force and tasks is None and _of_before(path):
        return _upgrade(path)
    for name in (INDEX_NAME, MANIFEST_NAME):
        if os.path.lexists(path / name) and not force:
            raise ShardError(f"{path / name}: exists already; `--force` indexes the folder anew")
    shards = sorted(p.name for p in path.iterdir() if p.name.endswith(".tar"))
    if not shards:
        raise ShardError(f"{path}: holds no .tar file")
    before = _old_manifest(path) if force else {}
    source = path / TASKS_NAME if tasks is None else Path(tasks)
    if tasks is None and not os.path.lexists(source) and before.get("tasks"):
        definitions = list(tasks_of(before, path).values())
    else:
        definitions = _read_tasks(source)
    # Each time adds a level, and a manifest of too many is not read.
    kept = "source" in before and levels(before["source"]) < MAX_DEPTH // 2
    about = {"importer": "index"} | ({"before": before["source"]} if kept else {})
    ledger = ShardWriter(path, _dataset(path, shards), definitions, provenance=about)
    report = Report(path)
    scan = Scan(report, ledger, None)
    for name in progress(shards, "reading shards"):
        scan.shard(name, Recorded())
    if report.problems:
        more = report.counts.total() - 1
        raise ShardError(f"{path}: {report.problems[0]}" + (f" (and {more} more problems)" if more else ""))
    index = build_index(path, shards)
    if not len(index):
        raise ShardError(f"{path}: its tars hold no sample")
    # Which streams a data set has, and what made them, is written nowhere else; widths are those that were found.
    known = current(before).get("streams")
    for name, stream in known.items() if isinstance(known, dict) else ():
        # One that no sample has is kept as long as there is room for it.
        room = name in ledger.streams or len(ledger.streams) < MAX_STREAMS
        if room and not stream_fault(name, stream):
            found = ledger.streams.get(name, FeatureStream())
            ledger.streams[name] = FeatureStream.from_json(stream | {"dim": found.dim})
    manifest = ledger.manifest_for(index, scan.hashes)
    _place(path, index, manifest)
    print_summary(manifest)
    return manifest


def _of_before(folder: Path) -> bool:
    """Whether index and manifest are of version 1, or of version 2 without the index's column ``dialogue``."""
    schema = _old_manifest(folder).get("schema")
    if schema != SCHEMA:
        return schema == 1
    with suppress(ShardError):
        return load_index(folder, check_shards=False).dialogue is None
    return False


def _upgrade(folder: Path) -> dict[str, Any]:
    """Index and manifest of version 1, or of an early version 2, in the words of version 2."""
    try:
        manifest, index = read_manifest(folder), load_index(folder, check_shards=False)
    except ShardError as error:
        again = "" if "--force" in str(error) else "; `--force` makes both anew from the tars"
        raise ShardError(f"{error}{again}") from error
    if index.content_hash != manifest["index"]:
        raise ShardError(
            f"{folder}: index and manifest do not belong together (the content hashes differ): "
            "`--force` makes them anew"
        )
    frames = {stream: frames for stream, frames in index.frames.items() if frames.any()}
    index = replace(index, frames=frames, dialogue=dialogues_of(folder, index))
    order = [*list(manifest)[:3], "streams"]
    manifest = {key: manifest[key] for key in dict.fromkeys([*order, *manifest])} | {"schema": SCHEMA}
    _place(folder, index, manifest)
    print(f"{folder}: index and manifest are of version {SCHEMA} now; the shards are as they were", file=sys.stderr)
    return manifest


def _old_manifest(folder: Path) -> dict[str, Any]:
    """What is there to be replaced; empty where it cannot be read: that may be why it is made anew."""
    with suppress(OSError, ValueError):
        data = parse_json((folder / MANIFEST_NAME).read_bytes())
        if isinstance(data, dict) and isinstance(data.get("tasks", []), list):
            return data
    return {}


def _read_tasks(path: Path) -> list[Task]:
    try:
        data = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ShardError(
            f"{path}: there is no such file; give the tasks as JSON, with the fields of the manifest's tasks: name, "
            "kind, questions, convention, and labels and answers or low, high and step"
        ) from error
    except (ValueError, OSError) as error:
        raise ShardError(f"{path}: not a readable JSON file ({one_line(error)})") from error
    items = [data] if isinstance(data, dict) else data
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise ShardError(f"{path}: holds no task; one object or a list of objects is needed")
    return [Task.from_json(item, str(path)) for item in items]


def _dataset(folder: Path, shards: list[str]) -> str:
    """The data set that the first readable sample names; the check of all samples then holds the others to it."""
    for name in shards:
        # What is unreadable is reported by the scan, with all the rest.
        with suppress(OSError, ValueError, RecursionError):
            with (folder / name).open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            for member in walk_tar(data, lambda kind, member, what: None):
                if member.name.endswith(f".{codec.JSON_MEMBER}"):
                    found = codec.decode_json(data[member.offset : member.offset + member.size], name).get("dataset")
                    if isinstance(found, str):
                        return found
    return ""


def _place(folder: Path, index: Index, manifest: dict[str, Any]) -> None:
    """Both files or none: the index first, because a folder with a manifest counts as finished.

    Where there were older ones, a reader that opens the folder between the two steps is refused: the two do not belong
    together.
    """
    temporary = folder / f".{secrets.token_hex(4)}.partial"
    old = temporary / f"old-{INDEX_NAME}"
    try:
        temporary.mkdir()
        save_index(temporary, index)
        write_manifest(temporary, manifest)
        with suppress(FileNotFoundError):
            shutil.copy2(folder / INDEX_NAME, old)
        os.replace(temporary / INDEX_NAME, folder / INDEX_NAME)
        try:
            os.replace(temporary / MANIFEST_NAME, folder / MANIFEST_NAME)
        except BaseException:  # Ctrl-C, too: the new index and the old manifest do not belong together
            if old.exists():
                os.replace(old, folder / INDEX_NAME)
            else:
                (folder / INDEX_NAME).unlink()
            raise
    except OSError as error:
        raise ShardError(f"{folder}: index and manifest cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
