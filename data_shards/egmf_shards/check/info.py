"""``egmf shards info``: what a folder of shards holds, as a dictionary and as tables for a person.

All of it comes from the manifest and the index; only :func:`target_values` reads shards. The picture of the same facts
is drawn above this floor, which has no matplotlib.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from egmf_shards.accelerated import crc32
from egmf_shards.errors import ShardError
from egmf_shards.format import codec
from egmf_shards.format.index import Index, frames_column, load_index
from egmf_shards.format.manifest import dims_of, read_manifest
from egmf_shards.format.rules import FP16_MAX
from egmf_shards.format.sample import SPLITS, TEXT
from egmf_shards.format.task import CLASSIFICATION, REGRESSION
from egmf_shards.progress import progress
from egmf_shards.storage.base import Storage
from egmf_shards.storage.opening import open_storage

PERCENTILES = (5, 25, 50, 75, 95, 100)
TEXT_LENGTH = "text_chars"
"""The index's column of the length of texts; a stream's is ``STREAM_frames``."""


def describe(folder: str | os.PathLike[str] | Storage) -> dict[str, Any]:
    """The manifest's facts, per split the :data:`PERCENTILES` of text characters and frames where present, and for each
    feature modality what was stored, removed, repaired, and what the training split's statistics come to.

    Raises:
        ShardError: the folder is missing, unfinished or damaged.
    """
    storage = open_storage(folder)
    manifest, index = read_manifest(storage), load_index(storage)
    dims = dims_of(manifest)
    return {
        "folder": storage.location,
        "dataset": manifest["dataset"],
        "languages": manifest["languages"],
        "streams": {name: manifest["streams"][name] for name in dims},
        "tasks": {task["name"]: task["kind"] for task in manifest["tasks"]},
        "shards": len(manifest["shards"]),
        "bytes": sum(shard["size"] for shard in manifest["shards"]),
        "index": index.content_hash,
        "splits": {s: data | {"lengths": _lengths(index, s, list(dims))} for s, data in manifest["splits"].items()},
        "features": {name: _features(manifest, index, name) for name, dim in dims.items() if dim},
        "source": manifest["source"],
        "ceilings": manifest.get("ceilings"),
    }


def present_lengths(index: Index, split: str, column: str) -> np.ndarray:
    """int32: the lengths (a column of the index) of the split's samples that have the modality."""
    columns = {TEXT_LENGTH: index.text_chars} | {frames_column(m): frames for m, frames in index.frames.items()}
    if column not in columns:
        return np.zeros(0, np.int32)
    lengths = columns[column][index.split == SPLITS.index(split)]
    return lengths[lengths > 0]


def _lengths(index: Index, split: str, streams: list[str]) -> dict[str, list[int] | None]:
    columns = (TEXT_LENGTH, *map(frames_column, streams))
    found = {column: present_lengths(index, split, column) for column in columns}
    return {c: [int(x) for x in np.percentile(n, PERCENTILES)] if len(n) else None for c, n in found.items()}


def _features(manifest: dict[str, Any], index: Index, modality: str) -> dict[str, Any]:
    counts = _importer_counts(manifest["source"], modality)
    kept, removed = counts.pop("frames_kept", 0), counts.pop("padding_frames_removed", None)
    statistics = manifest.get("statistics", {}).get(modality)
    return {
        "width": manifest["streams"][modality]["dim"],
        "frames": int(index.frames[modality].sum(dtype=np.int64)) if modality in index.frames else 0,
        "padding": None if removed is None else {"stored": kept, "padded": kept + removed},
        "counts": counts,
        "train": None if statistics is None else _summary(statistics),
    }


def _importer_counts(source: Any, modality: str) -> dict[str, int]:
    """What the importer counted. ``source`` may be any JSON in shards of another program."""
    features = source.get("features") if isinstance(source, dict) else None
    counts = features.get(modality) if isinstance(features, dict) else None
    if not isinstance(counts, dict):
        return {}
    # Nothing negative or endless: percentages are made of them.
    return {name: count for name, count in counts.items() if isinstance(count, int) and 0 <= count < 1 << 63}


def _summary(statistics: dict[str, Any]) -> dict[str, Any]:
    """Hundreds of dimensions as ranges, and how many of them are suspect."""
    columns = {name: np.asarray(statistics[name], np.float64) for name in ("mean", "std", "min", "max")}
    beyond = np.maximum(np.abs(columns["min"]), np.abs(columns["max"])) > FP16_MAX
    return {
        "frames": int(statistics["frames"]),
        "mean": [float(columns["mean"].min()), float(columns["mean"].max())],
        "std": [float(columns["std"].min()), float(columns["std"].max())],
        # By these and not by the std, which another program may have written as a rounding error.
        "constant": int((columns["min"] == columns["max"]).sum()),
        "beyond_fp16": int(beyond.sum()),
        "largest": float(max(abs(columns["min"]).max(), abs(columns["max"]).max())),
    }


def target_values(folder: str | os.PathLike[str] | Storage) -> dict[str, dict[str, np.ndarray]]:
    """The numbers of every regression, float64 ``[samples]`` by task and split. Reads the samples' JSON members.

    Raises:
        ShardError: the folder is missing, unfinished or damaged, or a sample's bytes have changed.
    """
    storage = open_storage(folder)
    manifest, index = read_manifest(storage), load_index(storage)
    names = [task["name"] for task in manifest["tasks"] if task["kind"] == REGRESSION]
    found: dict[str, dict[str, list[float]]] = {name: {split: [] for split in SPLITS} for name in names}
    numbers = [number for number, name in enumerate(index.task_names.tolist()) if name in found]
    rows = np.flatnonzero(np.isin(index.task, numbers) & (index.target > 0)).tolist()
    for row in progress(rows, "reading targets"):
        key, kinds = str(index.key[row]), index.member_kind[index.first_member[row] : index.first_member[row + 1]]
        member = int(index.first_member[row]) + int(np.flatnonzero(kinds == index.kinds.index(codec.JSON_MEMBER))[0])
        shard = str(index.shard_names[index.member_shard[member]])
        data = storage.view(shard, int(index.member_offset[member]), int(index.member_size[member]))
        where = f"{storage.where(shard)}, sample {key!r}"
        if crc32(data) != index.member_crc[member]:
            raise ShardError(f"{where}: the bytes have changed since they were written (CRC32 mismatch)")
        value = codec.decode_json(data, where).get("value")
        if not isinstance(value, int | float) or not abs(value) < 1e300:
            raise ShardError(f"{where}: holds no value, which its task needs")
        found[str(index.task_names[index.task[row]])][SPLITS[index.split[row]]].append(float(value))
    return {
        name: {split: np.array(x, dtype=np.float64) for split, x in splits.items() if x}
        for name, splits in found.items()
    }


def print_info(folder: str | os.PathLike[str] | Storage, console: Console | None = None) -> None:
    """Print :func:`describe` as tables on standard output (or ``console``)."""
    info = describe(folder)
    console = console or Console()
    widths = ", ".join(f"{name} {_stream(stream)}" for name, stream in info["streams"].items())
    console.print(f"[bold]{escape(info['dataset'])}[/] in {escape(info['folder'])}", highlight=False)
    console.print(
        f"languages {escape(', '.join(info['languages']))}; feature streams: {escape(widths) or 'none'}; "
        f"{info['shards']} shards, {info['bytes'] / 1e6:.1f} MB",
        highlight=False,
    )
    console.print(f"index {escape(info['index'])}", highlight=False)
    origin = _origin(info["source"])
    if origin:
        console.print(escape(origin), highlight=False)
    console.print(_split_table(info))
    console.print(_length_table(info))
    for task, kind in info["tasks"].items():
        if kind == CLASSIFICATION:
            console.print(_class_table(info, task, console))
    if REGRESSION in info["tasks"].values():
        console.print(_value_table(info))
    if info["features"]:
        console.print(_feature_table(info))
    if info["ceilings"]:
        console.print(_ceiling_table(info["ceilings"]))


def _origin(source: Any) -> str:
    """Importer and files in one line; empty where another program says something else."""
    if not isinstance(source, dict) or not isinstance(source.get("importer"), str):
        return ""
    files = source.get("files")
    names = [
        f"{file['file']}{' (' + str(file['known_as']) + ')' if 'known_as' in file else ''}"
        for file in (files if isinstance(files, list) else ())
        if isinstance(file, dict) and "file" in file
    ]
    return f"made by: {source['importer']}" + (f" from {', '.join(names)}" if names else "")


def _stream(stream: dict[str, Any]) -> str:
    """``74 wide at 100 Hz, by covarep``."""
    if not stream["dim"]:
        return "none"
    rate, made_by = stream.get("rate"), stream.get("made_by")
    return f"{stream['dim']}" + (f" at {rate:g} Hz" if rate else "") + (f" by {made_by}" if made_by else "")


def _split_table(info: dict[str, Any]) -> Table:
    table = Table("split", title="Samples, and how many lack a modality")
    modalities = (TEXT, *info["streams"])
    for column in ("samples", "utterances", *(f"no {m}" for m in modalities)):
        table.add_column(column, justify="right")
    for split, data in info["splits"].items():
        missing = (_share(data["missing"][m], data["samples"]) for m in modalities)
        table.add_row(split, str(data["samples"]), str(data["utterances"]), *missing)
    return table


def _share(count: int, of: int) -> str:
    return f"{count} ({count / of:.1%})" if count and of else str(count)


def _length_table(info: dict[str, Any]) -> Table:
    table = Table("length", "split", title="Lengths where present: percentiles")
    for percent in PERCENTILES:
        table.add_column("largest" if percent == 100 else f"{percent} %", justify="right")
    for column in (TEXT_LENGTH, *map(frames_column, info["streams"])):
        for split, data in info["splits"].items():
            if data["lengths"][column]:
                table.add_row(column.replace("_", " "), split, *map(str, data["lengths"][column]))
    return table


def _class_table(info: dict[str, Any], task: str, console: Console) -> Table:
    table = Table("class", title=f"{escape(task)}: classes, with their share of the split")
    counts = {split: data["labels"][task] for split, data in info["splits"].items() if task in data["labels"]}
    if not counts:
        return table
    labels = list(next(iter(counts.values())))
    shares = {split: {x: n / max(sum(c.values()), 1) for x, n in c.items()} for split, c in counts.items()}
    largest = max(share for split in shares.values() for share in split.values())
    digits = max(len(str(n)) for c in counts.values() for n in c.values())
    # What is left of the console after the class names, the numbers and the frame, divided among the splits.
    taken = max(console.measure(escape(label)).maximum for label in labels) + 4 + len(counts) * (digits + 11)
    width = max(4, min(24, (console.width - taken) // len(counts)))
    for split in counts:
        table.add_column(split, no_wrap=True)
    for label in labels:
        bars = (
            f"{counts[split].get(label, 0):>{digits}} {share:6.1%} "
            + _bar(share / largest if largest else 0.0, width, console.options.ascii_only)
            for split, share in ((split, shares[split].get(label, 0.0)) for split in counts)
        )
        table.add_row(escape(label), *bars)
    return table


def _bar(share: float, width: int, ascii_only: bool) -> str:
    """``share`` of ``width`` cells, to an eighth of one; what is there at all is seen."""
    if ascii_only:
        return "#" * (max(round(share * width), 1) if share else 0)
    eighths = max(round(share * width * 8), 1) if share else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _value_table(info: dict[str, Any]) -> Table:
    table = Table("task", "split", title="Values")
    for column in ("samples", "mean", "std", "least", "largest"):
        table.add_column(column, justify="right")
    for task, kind in info["tasks"].items():
        for split, data in info["splits"].items():
            v = data["values"].get(task)
            if kind == REGRESSION and v:
                numbers = (f"{v['mean']:.3f}", f"{v['std']:.3f}", f"{v['min']:g}", f"{v['max']:g}")
                table.add_row(escape(task), split, str(v["count"]), *numbers)
    return table


def _feature_table(info: dict[str, Any]) -> Table:
    table = Table("", title="Features")
    modalities: Sequence[str] = list(info["features"])
    for modality in modalities:
        table.add_column(modality, justify="right")

    def row(name: str, cell: Callable[[dict[str, Any]], str | None]) -> None:
        cells = [cell(info["features"][m]) for m in modalities]
        if any(cell is not None for cell in cells):
            table.add_row(name, *("-" if cell is None else cell for cell in cells))

    def train(name: str, cell: Callable[[dict[str, Any]], str]) -> None:
        row(name, lambda f: None if f["train"] is None else cell(f["train"]))

    row("width", lambda f: str(f["width"]))
    row("frames stored", lambda f: f"{f['frames']:,}")
    row("padding removed", _padding)
    for name in _in_order(f["counts"] for f in info["features"].values()):
        words = escape(name.replace("_", " "))
        row(words, lambda f, name=name: f"{f['counts'][name]:,}" if name in f["counts"] else None)  # type: ignore[misc]
    train("training split: frames", lambda t: f"{t['frames']:,}")
    train("mean of a dimension", lambda t: f"{t['mean'][0]:.3g} to {t['mean'][1]:.3g}")
    train("std of a dimension", lambda t: f"{t['std'][0]:.3g} to {t['std'][1]:.3g}")
    train("largest number by size", lambda t: f"{t['largest']:.4g}")
    train("dimensions that never change", lambda t: str(t["constant"]))
    train("dimensions beyond fp16 (65504)", lambda t: str(t["beyond_fp16"]))
    return table


def _padding(feature: dict[str, Any]) -> str | None:
    padding = feature["padding"]
    if padding is None:
        return None
    removed, whole = padding["padded"] - padding["stored"], padding["padded"]
    return f"{removed:,} frames" + (f" ({removed / whole:.1%})" if whole else "")


def _in_order(dictionaries: Iterable[dict[str, Any]]) -> list[str]:
    """Every key once, in the order of first use."""
    return list(dict.fromkeys(key for one in dictionaries for key in one))


def _ceiling_table(ceilings: dict[str, Any]) -> Table:
    table = Table("modalities", title="Ceilings: the best possible by the construction")
    for task, data in ceilings.items():
        table.add_column(escape(f"{task}, {data['metric']}"), justify="right")
    for name in _in_order(ceilings.values()):
        if name != "metric":
            table.add_row(escape(name), *(f"{data[name]:.3f}" if name in data else "-" for data in ceilings.values()))
    return table
