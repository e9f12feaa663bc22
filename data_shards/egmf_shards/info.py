"""``egmf shards info``: what a folder of shards holds, as a dictionary and as tables for a person."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from egmf_shards.index import load_index
from egmf_shards.manifest import read_manifest
from egmf_shards.sample import FEATURE_MODALITIES, MODALITIES, SPLITS

PERCENTILES = (0, 50, 95, 100)


def describe(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest's facts, and per split the percentiles 0, 50, 95, 100 of text characters and frames where present.

    Raises:
        ShardError: the folder is missing, unfinished or damaged.
    """
    path = Path(folder)
    manifest, index = read_manifest(path), load_index(path)
    splits = {}
    for split, data in manifest["splits"].items():
        rows = index.split == SPLITS.index(split)
        lengths = {
            "text_chars": _percentiles(index.text_chars[rows]),
            "audio_frames": _percentiles(index.audio_frames[rows]),
            "vision_frames": _percentiles(index.vision_frames[rows]),
        }
        splits[split] = data | {"lengths": lengths}
    return {
        "folder": str(path),
        "dataset": manifest["dataset"],
        "languages": manifest["languages"],
        "dims": manifest["dims"],
        "tasks": {task["name"]: task["kind"] for task in manifest["tasks"]},
        "shards": len(manifest["shards"]),
        "bytes": sum(shard["size"] for shard in manifest["shards"]),
        "index": index.content_hash,
        "splits": splits,
        "source": manifest["source"],
        "ceilings": manifest.get("ceilings"),
    }


def _percentiles(lengths: np.ndarray) -> list[int] | None:
    present = lengths[lengths > 0]
    return [int(x) for x in np.percentile(present, PERCENTILES)] if len(present) else None


def print_info(folder: str | os.PathLike[str], console: Console | None = None) -> None:
    """Print :func:`describe` as tables on standard output (or ``console``)."""
    info = describe(folder)
    console = console or Console()
    widths = ", ".join(f"{m} {info['dims'][m] or 'none'}" for m in FEATURE_MODALITIES)
    console.print(f"[bold]{info['dataset']}[/] in {info['folder']}", highlight=False)
    console.print(
        f"languages {', '.join(info['languages'])}; feature width: {widths}; "
        f"{info['shards']} shards, {info['bytes'] / 1e6:.1f} MB",
        highlight=False,
    )
    console.print(f"index {info['index']}", highlight=False)
    console.print(_split_table(info))
    console.print(_length_table(info))
    console.print(_target_table(info))
    if info["ceilings"]:
        console.print(_ceiling_table(info["ceilings"]))


def _split_table(info: dict[str, Any]) -> Table:
    table = Table("split", title="Samples, and how many lack a modality")
    for column in ("samples", "utterances", *(f"no {m}" for m in MODALITIES)):
        table.add_column(column, justify="right")
    for split, data in info["splits"].items():
        counts = [data["samples"], data["utterances"], *(data["missing"][m] for m in MODALITIES)]
        table.add_row(split, *map(str, counts))
    return table


def _length_table(info: dict[str, Any]) -> Table:
    table = Table("split", title="Lengths where present: min / median / 95 % / max")
    for column in ("text chars", "audio frames", "vision frames"):
        table.add_column(column, justify="right")
    for split, data in info["splits"].items():
        table.add_row(split, *(" / ".join(map(str, p)) if p else "-" for p in data["lengths"].values()))
    return table


def _target_table(info: dict[str, Any]) -> Table:
    table = Table("task", "label", title="Targets")
    for split in info["splits"]:
        table.add_column(split, justify="right")
    for task, kind in info["tasks"].items():
        splits = info["splits"].values()
        if kind == "classification":
            counts = [data["labels"].get(task, {}) for data in splits]
            for label in next((c for c in counts if c), {}):
                table.add_row(task, label, *(str(c.get(label, 0)) for c in counts))
        else:
            values = [data["values"].get(task) for data in splits]
            table.add_row(task, "mean ± std", *(f"{v['mean']:.3f} ± {v['std']:.3f}" if v else "-" for v in values))
            table.add_row(task, "min to max", *(f"{v['min']:g} to {v['max']:g}" if v else "-" for v in values))
    return table


def _ceiling_table(ceilings: dict[str, Any]) -> Table:
    table = Table("modalities", title="Ceilings: the best possible by the construction")
    for task, data in ceilings.items():
        table.add_column(f"{task}, {data['metric']}", justify="right")
    for name in next(iter(ceilings.values())):
        if name != "metric":
            table.add_row(name, *(f"{data[name]:.3f}" for data in ceilings.values()))
    return table
