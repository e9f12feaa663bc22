"""``manifest.json``: what a shard folder holds, in words a person and a training run can both read.

Keys: ``schema``, ``dataset``, ``tasks``, ``streams`` (by feature stream its width, frame rate and origin),
``languages``, ``splits`` (samples, utterances, label counts or value statistics per task, missing modalities),
``statistics`` (per stream and dimension, of the training split; optional), ``shards`` (name, bytes, samples, SHA-256),
``index`` (content hash of the index that belongs to it), ``source`` (where it came from), and for generated data
``ceilings``. All of them are specified in ``docs/shard-format.md``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egmf_shards.errors import ShardError
from egmf_shards.foreign_files import HEAD, foreign_kind
from egmf_shards.format import rules
from egmf_shards.format.sample import SPLITS, TEXT
from egmf_shards.format.task import Task
from egmf_shards.messages import json_reason, one_line, shown, unbroken
from egmf_shards.storage.base import Storage
from egmf_shards.storage.opening import open_storage

MANIFEST_NAME = "manifest.json"
SCHEMA = 2
MAX_DEPTH = 200
"""Levels of objects and lists in a manifest; its own keys need 6, ``source`` may add more."""
_KEYS = ("schema", "dataset", "tasks", "streams", "languages", "splits", "shards", "index", "source")


# A list of numbers as json.dumps indents it. A string cannot match: it holds no raw line break.
_NUMBERS = re.compile(r"\[\n\s+([-+.0-9eE]+(?:,\n\s+[-+.0-9eE]+)*)\n\s+\]")


@dataclass(frozen=True)
class FeatureStream:
    """What a manifest says about a feature stream."""

    dim: int = 0
    """Numbers of a frame; 0: no sample has it."""
    rate: float | None = None
    """Frames a second, if known."""
    made_by: str = ""
    """What extracted the features, such as ``openSMILE 2.3, eGeMAPS``."""
    specification: Mapping[str, Any] | None = None
    """How they were extracted, so that they can be once more: ``extractor``, ``version``, ``sha256`` of the whole, and
    whatever the extractor adds. None: nothing says it."""

    def to_json(self) -> dict[str, Any]:
        """As the manifest stores it."""
        known = {"rate": self.rate, "made_by": self.made_by or None, "specification": self.specification}
        return {"dim": self.dim} | {name: value for name, value in known.items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FeatureStream:
        """The inverse of :meth:`to_json`; other keys are not read."""
        return cls(data["dim"], data.get("rate"), data.get("made_by", ""), data.get("specification"))


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``manifest`` into ``folder``; the same manifest gives the same bytes.

    Raises:
        ShardError: what :func:`read_manifest` would refuse, by the same rules.
    """
    try:
        fault = next(_faults(manifest, [task["name"] for task in manifest["tasks"]]), "")
        if levels(manifest) > MAX_DEPTH:
            fault = f"nested deeper than {MAX_DEPTH} levels"
    except ValueError as error:
        fault = one_line(error)
    if fault:
        raise ShardError(f"{folder / MANIFEST_NAME}: would not be readable again ({fault}); nothing was written")
    text = json.dumps(manifest, ensure_ascii=False, allow_nan=False, indent=2)
    text = _NUMBERS.sub(_numbers_in_one_line, text)  # hundreds of dimensions stay on one line each
    (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def _numbers_in_one_line(match: re.Match[str]) -> str:
    return f"[{unbroken(match[1])}]"


def read_manifest(folder: Path | Storage) -> dict[str, Any]:
    """The manifest of a folder of shards.

    Raises:
        ShardError: there is no such folder or no manifest in it, it is not JSON, of another schema, lacks a key, or
            holds something of another type than the specification says.
    """
    storage = open_storage(folder)
    path = storage.where(MANIFEST_NAME)
    if not storage.is_folder():
        raise ShardError(
            f"{storage.location}: there is no such folder of shards; "
            "make one with `egmf shards synth` or `egmf shards import`"
        )
    try:
        manifest = parse_json(storage.read_file(MANIFEST_NAME))
    except FileNotFoundError as error:
        raise ShardError(
            f"{storage.location}: holds no {MANIFEST_NAME}, so it is not a finished folder of shards"
        ) from error
    except ShardError:
        raise
    except (ValueError, OSError) as error:
        raise ShardError(f"{path}: not a readable JSON file ({one_line(error)})") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if not _whole(schema) or schema not in (1, SCHEMA):
        raise ShardError(f"{path}: schema is {shown(schema)}; this version reads 1 and {SCHEMA}")
    manifest = current(manifest)
    lacking = [key for key in _KEYS if key not in manifest]
    if lacking:
        raise ShardError(f"{path}: lacks {', '.join(lacking)}; write the folder anew")
    names = tasks_of(manifest, storage).keys()
    for wrong in _faults(manifest, names):
        raise ShardError(f"{path}: malformed ({wrong}); `egmf shards index --force` makes it anew")
    return dict(manifest)


def current(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest of schema 1, which gave ``dims`` alone, with ``streams`` in their place; others unchanged."""
    if manifest.get("schema") != 1 or "dims" not in manifest:
        return manifest
    dims = manifest["dims"]
    streams = {m: {"dim": n} for m, n in dims.items()} if isinstance(dims, dict) else dims
    return {key: value for key, value in manifest.items() if key != "dims"} | {"streams": streams}


def parse_json(data: bytes) -> Any:
    """The value of a JSON file that anybody may have written.

    Raises:
        ValueError: not JSON, nested deeper than :data:`MAX_DEPTH`, with a text that is not Unicode or a number that is
            not finite. One line.
    """
    try:
        value = json.loads(data)
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:
        raise ValueError(foreign_kind(data[:HEAD]) or json_reason(error)) from error
    if levels(value) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    return value


def levels(value: Any) -> int:
    """How many levels of objects and lists there are in a JSON value; a plain value has none.

    Raises:
        ValueError: a text is no Unicode, or a number is not finite: it could be neither printed nor written.
    """
    found, level = -1, [value]
    while level:
        found += 1
        for text in level:
            if isinstance(text, str) and not text.isascii():
                text.encode()
            elif isinstance(text, float) and not math.isfinite(text):
                raise ValueError(f"a number is {text}; JSON has none such")
        level = [x for items in level if isinstance(items, dict | list) for x in _children(items)]
    return found


def _children(items: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return (*items, *items.values()) if isinstance(items, dict) else items


def _faults(manifest: dict[str, Any], tasks: Collection[str]) -> Iterator[str]:
    """What has another type than the specification says; ``egmf shards verify`` compares the counts themselves."""
    for key in ("dataset", "index"):
        if not isinstance(manifest[key], str):
            yield f"{key} is {shown(manifest[key])}; a text is needed"
    streams = manifest["streams"]
    if not isinstance(streams, dict):
        yield f"streams is {shown(streams)}; an object by name is needed"
        return
    for name, stream in streams.items():
        fault = stream_fault(name, stream)
        if fault:
            yield f"streams.{name[:40]}: {fault}"
            return
    if len(streams) > rules.MAX_STREAMS:
        yield f"{len(streams)} streams; at most {rules.MAX_STREAMS} are read"
    modalities = (TEXT, *streams)
    if not isinstance(manifest["languages"], list) or not _all(manifest["languages"], str):
        yield "languages is no list of texts"
    shards = manifest["shards"]
    if not isinstance(shards, list) or not all(isinstance(shard, dict) and _sound_shard(shard) for shard in shards):
        yield "shards is no list of objects with name, size, samples and sha256"
    splits = manifest["splits"]
    if not isinstance(splits, dict) or not set(splits) <= set(SPLITS):
        yield f"splits is no object with some of {', '.join(SPLITS)}"
    else:
        for split, data in splits.items():
            if not isinstance(data, dict) or not _sound_split(data, tasks, modalities):
                yield f"splits.{split} has not the samples, utterances, labels, values and missing of the specification"
    statistics = manifest.get("statistics", {})
    if not isinstance(statistics, dict) or not all(
        isinstance(statistics[m], dict) and _sound_statistics(statistics[m], stream["dim"])
        for m, stream in streams.items()
        if m in statistics
    ):
        yield "statistics is no object of frames and of mean, std, min and max, one number for each dimension"
    ceilings = manifest.get("ceilings")
    if ceilings is not None and not _sound_ceilings(ceilings):
        yield "ceilings is no object of a metric and its numbers for each task"


def _sound_shard(shard: dict[str, Any]) -> bool:
    return (
        isinstance(shard.get("name"), str)
        and _whole(shard.get("size"))
        and _whole(shard.get("samples"))
        and isinstance(shard.get("sha256", ""), str)
    )


def stream_fault(name: str, stream: Any) -> str:
    """What is wrong with a feature stream's name, and with what a manifest says about it."""
    if rules.stream_fault(name):
        return rules.stream_fault(name)
    if not isinstance(stream, dict) or not _whole(stream.get("dim"), rules.MAX_DIM):
        found = shown(stream.get("dim")) if isinstance(stream, dict) else shown(stream)
        return f"dim is {found}; a whole number from 0 (no sample has it) to {rules.MAX_DIM} is needed"
    rate = stream.get("rate")
    if rate is not None and not (_number(rate) and rate > 0):
        return f"rate is {shown(rate)}; frames a second, above 0, are needed"
    if not isinstance(stream.get("made_by", ""), str):
        return f"made_by is {shown(stream['made_by'])}; a text is needed"
    made = stream.get("specification")
    if made is not None and not (
        isinstance(made, dict)
        and all(isinstance(made.get(key), str) for key in ("extractor", "sha256"))
        and _whole(made.get("version"))
    ):
        return "specification is no object with extractor, version and sha256"
    return ""


def _sound_split(data: dict[str, Any], tasks: Collection[str], modalities: Iterable[str]) -> bool:
    labels, values, missing = (data.get(key) for key in ("labels", "values", "missing"))
    return (
        _whole(data.get("samples"))
        and _whole(data.get("utterances"))
        and isinstance(labels, dict)
        and isinstance(values, dict)
        and isinstance(missing, dict)
        and {*labels, *values} <= set(tasks)
        and all(isinstance(counts, dict) and counts and all(map(_whole, counts.values())) for counts in labels.values())
        and all(isinstance(v, dict) and _whole(v.get("count")) for v in values.values())
        and all(_number(v.get(name)) for v in values.values() for name in ("mean", "std", "min", "max"))
        and all(_whole(missing.get(modality)) for modality in modalities)
    )


def _sound_statistics(data: dict[str, Any], dim: int | None) -> bool:
    columns = [data.get(name) for name in ("mean", "std", "min", "max")]
    return (
        _whole(data.get("frames"))
        and bool(dim)
        and all(isinstance(x, list) and len(x) == dim and all(map(_number, x)) for x in columns)
    )


def _sound_ceilings(ceilings: Any) -> bool:
    return isinstance(ceilings, dict) and all(
        isinstance(data, dict)
        and isinstance(data.get("metric"), str)
        and all(name == "metric" or _number(value) for name, value in data.items())
        for data in ceilings.values()
    )


def _whole(value: Any, most: int = (1 << 63) - 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _all(items: Iterable[Any], kind: type) -> bool:
    return all(isinstance(item, kind) for item in items)


def dims_of(manifest: dict[str, Any]) -> dict[str, int]:
    """The width of each of a manifest's feature streams, sorted by name; 0: named, and no sample has it."""
    return {name: int(manifest["streams"][name]["dim"]) for name in sorted(manifest["streams"])}


def tasks_of(manifest: dict[str, Any], folder: Path | Storage) -> dict[str, Task]:
    """The manifest's tasks by name; ``folder`` is where it lies, for messages.

    Raises:
        ShardError: there is none, one is malformed, or two have one name.
    """
    where, definitions = open_storage(folder).where(MANIFEST_NAME), manifest["tasks"]
    if not isinstance(definitions, list) or not definitions or not _all(definitions, dict):
        raise ShardError(f"{where}: tasks must be a list of at least one object")
    tasks = [Task.from_json(data, where) for data in definitions]
    found = {task.name: task for task in tasks}
    if len(found) != len(tasks):
        raise ShardError(f"{where}: tasks has two of one name; each name may occur once")
    return found
