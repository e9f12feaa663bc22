"""``egmf shards verify``: reads every byte of a folder of shards and names everything that is wrong with it.

Unlike the reader, which stops at the first fault, this collects them: tar structure (``tar_walk``), index against
tars and every sample against the writer's rules (``scan``), ids and texts between splits, manifest against contents.
A problem names shard, key and member. A note is worth knowing, and no problem.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from egmf_shards.check.scan import CAP, Problem, Recorded, Report, Scan
from egmf_shards.errors import ShardError
from egmf_shards.format.index import INDEX_NAME, Index, load_index
from egmf_shards.format.index_checks import tasks_fault
from egmf_shards.format.manifest import MANIFEST_NAME, FeatureStream, dims_of, read_manifest, tasks_of
from egmf_shards.progress import progress as bar
from egmf_shards.write.writer import ShardWriter

__all__ = ["CAP", "Problem", "Report", "print_report", "verify"]

T = TypeVar("T")
_COUNTED = ("languages", "splits", "statistics", "shards")
"""The manifest's keys that follow from the shards."""


def verify(folder: str | os.PathLike[str], progress: Callable[[list[str], str], Iterable[str]] = bar) -> Report:
    """Read and check everything in ``folder``; ``progress`` wraps the loop over the shards' names.

    Raises:
        ShardError: there is no such folder. Everything else is a problem in the report.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ShardError(f"{path}: there is no such folder of shards")
    report = Report(path)
    manifest = _load(report, MANIFEST_NAME, partial(read_manifest, path))
    index = _load(report, INDEX_NAME, partial(load_index, path, check_shards=False))
    ledger = None
    if manifest is not None:
        streams = {name: FeatureStream.from_json(data) for name, data in manifest["streams"].items()}
        ledger = ShardWriter(path, manifest["dataset"], list(tasks_of(manifest, path).values()), streams)
        if index is not None and index.content_hash != manifest["index"]:
            report.add("index", INDEX_NAME, "", "", "is not the one that the manifest names (content hashes differ)")
        fault = None if index is None else tasks_fault(index, ledger.tasks)
        if fault:
            report.add("index", INDEX_NAME, "", "", fault)
    recorded = _recorded(index, manifest)
    found = {p.name for p in path.iterdir() if p.name.endswith(".tar")}
    scan = Scan(report, ledger, index)
    for name in progress(sorted(found | set(recorded)), "verifying shards"):
        if name not in found:
            report.add("missing shard", name, "", "", "the index or the manifest names it; restore it")
            continue
        if recorded and name not in recorded:
            report.add("index", name, "", "", "the shard is in neither index nor manifest, so nothing reads it")
        scan.shard(name, recorded.get(name, Recorded()))
    report.notes += scan.repeats()
    if manifest is not None and any("sha256" not in shard for shard in manifest["shards"]):
        report.notes.append("a shard has no SHA-256 in the manifest: the bodies of its PAX records were not checked")
    if ledger is None or manifest is None or index is None or not report.ok:
        report.notes.append("the manifest's counts were not compared; they are once everything else is right")
    else:
        rebuilt = ledger.manifest_for(index, scan.hashes)
        said, found_dims = dims_of(manifest), dims_of(rebuilt)
        for name in sorted(stream for stream in found_dims if said.get(stream) != found_dims[stream]):
            what = f"streams.{name} is lacking; the shards have it with width {found_dims[name]}"
            report.add("manifest", MANIFEST_NAME, "", "", what)
        for line in (d for key in _COUNTED if key in manifest for d in _differences(manifest[key], rebuilt[key], key)):
            report.add("manifest", MANIFEST_NAME, "", "", line)
    return report


def _load(report: Report, name: str, load: Callable[[], T]) -> T | None:
    try:
        return load()
    except ShardError as error:
        report.add(name.partition(".")[0], name, "", "", str(error).removeprefix(f"{report.folder / name}: "))
        return None


def _recorded(index: Index | None, manifest: dict[str, Any] | None) -> dict[str, Recorded]:
    listed = {} if manifest is None else {shard["name"]: shard for shard in manifest["shards"]}
    if index is None:
        return {name: Recorded(shard.get("size"), shard.get("sha256")) for name, shard in listed.items()}
    members: list[dict[tuple[str, str], tuple[int, int, int, int]]] = [{} for _ in index.shard_names]
    rows = np.repeat(np.arange(len(index)), np.diff(index.first_member)).tolist()
    columns = (index.member_kind, index.member_shard, index.member_offset, index.member_size, index.member_crc)
    keys = index.key.tolist()
    for row, kind, shard, *place in zip(rows, *(c.tolist() for c in columns), strict=True):
        members[shard][keys[row], index.kinds[kind]] = (place[0], place[1], place[2], row)
    names, sizes = index.shard_names.tolist(), index.shard_sizes.tolist()
    recorded = {name: Recorded() for name in listed}
    for name, size, inside in zip(names, sizes, members, strict=True):
        recorded[name] = Recorded(size, listed.get(name, {}).get("sha256"), inside)
    return recorded


def _differences(recorded: Any, found: Any, place: str) -> Iterator[str]:
    """Where the manifest and what was counted differ; a hash that the manifest lacks is none."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        for key in sorted({*recorded, *found}, key=str):
            if key in recorded and key in found:
                yield from _differences(recorded[key], found[key], f"{place}.{key}")
            elif key != "sha256":
                yield f"{place}.{key} is {recorded.get(key, 'lacking')}; the shards say {found.get(key, 'nothing')}"
    elif isinstance(recorded, list) and isinstance(found, list) and len(recorded) == len(found):
        for i, (a, b) in enumerate(zip(recorded, found, strict=True)):
            yield from _differences(a, b, f"{place}[{i}]")
    elif isinstance(recorded, float) and isinstance(found, int | float):
        if not math.isclose(recorded, found, rel_tol=1e-3, abs_tol=1e-5):  # another program may sum in another order
            yield f"{place} is {recorded}; the shards say {found}"
    elif recorded != found:
        yield f"{place} is {recorded!r}; the shards say {found!r}"


def print_report(report: Report, console: Console | None = None) -> int:
    """One line per problem on standard output, then a table by kind; returns the exit code, 0 (sound) or 1."""
    for problem in report.problems:
        print(problem)
    console = console or Console()
    if not report.ok:
        table = Table("problem", title=f"{report.counts.total()} problems in {escape(str(report.folder))}")
        table.add_column("found", justify="right")
        table.add_column("first in", overflow="fold")
        for kind, count in sorted(report.counts.items()):
            table.add_row(kind, str(count), escape(next(p.shard for p in report.problems if p.kind == kind)))
        console.print(table)
    for note in report.notes:
        print(f"note: {note}")
    size = f"{report.shards} shards, {report.samples} samples, {report.members} members, {report.bytes / 1e6:.1f} MB"
    print(f"{report.folder}: {size} read: {'sound' if report.ok else 'NOT SOUND'}")
    return 0 if report.ok else 1
