"""Which samples a page shows, and what they are: text from the predictions or the shards, features as pictures.

The shards are only read where they can still be opened on this machine and are those that the run was trained on; what
cannot be found again is left out without an error, since a report must outlive its data.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imsave

from egmf_dist.errors import EgmfError
from egmf_dist.report.read import RunResults
from egmf_dist.run.places import find
from egmf_dist.style import HEAT
from egmf_shards import Sample, ShardSet
from egmf_shards.errors import ShardError

SHOWN = 8
"""Samples of each list on a page."""
MOST_FRAMES = 240
"""Columns of a picture of features; longer ones are thinned out evenly."""
CLAMP = 3.0
"""Standard deviations at which a picture's colours end."""


@dataclass(frozen=True)
class Found:
    """What the run's shards still say."""

    samples: dict[tuple[str, str, str, int], Sample] = field(default_factory=dict)
    """Those that the page shows, by :func:`key_of`."""
    counts: dict[str, int] = field(default_factory=dict)
    """Samples of each split."""
    tasks: dict[str, str] = field(default_factory=dict)
    """By name the kind of each task."""
    streams: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """By name the widths of each feature stream."""


def errors(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One task's worst answers: wrong ones by their probability, numbers by their distance from the truth."""
    if not rows:
        return []
    if isinstance(rows[0]["truth"], str):
        wrong = [row for row in rows if row["predicted"] != row["truth"] and row.get("probabilities")]
        return sorted(wrong, key=lambda row: -max(row["probabilities"]))[:SHOWN]
    return sorted(rows, key=lambda row: -abs(row["predicted"] - row["truth"]))[:SHOWN]


def disagreements(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One task's samples whose answer hangs most on which stream is there, by what is answered without each.

    Classes: by the number of different answers, then by the answers that differ from the one with everything; numbers:
    by the distance between the lowest and the highest. Samples on which all agree are left out.
    """

    def spread(row: Mapping[str, Any]) -> tuple[float, float]:
        answers = [row["predicted"], *row["without"].values()]
        if isinstance(row["predicted"], str):
            return len(set(answers)) - 1, sum(answer != row["predicted"] for answer in answers)
        return max(answers) - min(answers), 0.0

    asked = [row for row in rows if row.get("without")]
    return sorted((row for row in asked if spread(row)[0] > 0), key=spread, reverse=True)[:SHOWN]


def find_samples(folder: Path, run: RunResults) -> Found:
    """The samples that a page shows, out of the shards the run names; empty where those are elsewhere or have changed.

    Args:
        folder: the run's.
        run: its results.
    """
    data = run.settings.get("data")
    named = data.get("shards") if isinstance(data, dict) else None
    then = (run.manifest.get("identity") or {}).get("data")
    if not isinstance(named, list) or not then:
        return Found()
    began = run.settings.get("directory")
    directories = [Path.cwd(), *([Path(began)] if isinstance(began, str) else [])]
    folders = [find(str(path), directories) for path in named]
    # A store behind a URL may be slow, or ask who reads it: a report is drawn without it.
    local = [path for path in folders if path is not None and "://" not in path]
    if len(local) < len(folders):
        return Found()
    try:
        train = ShardSet.open(local, "train")
        if train.index_hash != then:
            return Found()
        splits = {"train": train}
        for split in ("valid", "test"):
            if all(split in manifest["splits"] for manifest in train.manifests):
                splits[split] = ShardSet.open(local, split)
        samples: dict[tuple[str, str, str, int], Sample] = {}
        for name, rows in run.predictions.items():
            split = run.evaluations.get(name, {}).get("split", name.split("-without-")[0])
            if split in splits:
                samples |= _read(splits[split], name, wanted(rows))
    except (ShardError, EgmfError, OSError, KeyError):
        return Found()
    counts = {split: len(shards) for split, shards in splits.items()}
    return Found(samples, counts, {name: task.kind for name, task in train.tasks.items()}, train.streams)


def wanted(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Ids of the samples that a page shows of a split's predictions."""
    ids = set()
    for task in {row["task"] for row in rows}:
        own = [row for row in rows if row["task"] == task]
        ids |= {str(row.get("id", "")) for row in [*errors(own), *disagreements(own)]}
    return ids


def key_of(name: str, row: Mapping[str, Any]) -> tuple[str, str, str, int]:
    """What tells a prediction's sample from others: several folders, and several splits, may have one id.

    Args:
        name: of the predictions, such as the split's.
        row: one of them.
    """
    return name, str(row["task"]), str(row.get("id", "")), int(row.get("nth", 0))


def _read(shards: ShardSet, name: str, ids: set[str]) -> dict[tuple[str, str, str, int], Sample]:
    seen: Counter[tuple[str, str]] = Counter()
    found = {}
    for sample in shards.read(shards.find(ids)).samples:  # in the order of the predictions
        own = sample.task, sample.id
        found[name, *own, seen[own]] = sample
        seen[own] += 1
    return found


def feature_picture(frames: np.ndarray) -> bytes:
    """A PNG of one stream: time to the right, a row a dimension, each as deviations from its own mean in this sample.

    Args:
        frames: float32 ``[frames, dim]``.
    """
    if len(frames) > MOST_FRAMES:
        frames = frames[np.linspace(0, len(frames) - 1, MOST_FRAMES).round().astype(int)]
    spread = frames.std(axis=0)
    deviations = (frames - frames.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    buffer = io.BytesIO()
    imsave(buffer, deviations.T, cmap=HEAT, vmin=-CLAMP, vmax=CLAMP, format="png")
    return buffer.getvalue()
