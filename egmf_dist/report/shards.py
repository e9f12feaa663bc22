"""What a folder of shards holds, as one picture: targets, lengths and missing modalities of every split."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from egmf_dist.errors import EgmfError
from egmf_dist.style import COLOURS, FIRST_CJK, FONT, GREY, families, new_figure, plain, save, tidy
from egmf_shards import CLASSIFICATION, TEXT, Task, describe
from egmf_shards.check.info import TEXT_LENGTH, present_lengths, target_values
from egmf_shards.format.index import frames_column, load_index
from egmf_shards.format.manifest import dims_of, read_manifest, tasks_of
from egmf_shards.storage.opening import open_storage

COLUMNS = 3
BINS = 40
LONG_TAIL = 12.0
"""Largest length over the median beyond which lengths are drawn on a logarithmic axis."""

Lengths = dict[str, dict[str, np.ndarray]]
"""Column of the index -> split -> int32 lengths of the samples that have the modality."""
Values = dict[str, dict[str, np.ndarray]]
"""Task -> split -> float64 numbers of a regression."""


def write_shards_picture(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Draw the folder (a path or a URL) to ``path`` and return it; an existing file is replaced.

    The samples' JSON is read where there is a regression, for the histogram of its numbers; all else is in manifest
    and index.

    Raises:
        EgmfError: ``path`` does not end in ``.png``, its folder does not exist, or it cannot be written.
        ShardError: the folder of shards is missing, unfinished or damaged.
    """
    out = Path(path)
    if out.suffix.lower() != ".png":
        raise EgmfError(f"{out}: the picture is a PNG; name a file that ends in .png")
    if not out.parent.is_dir():
        raise EgmfError(f"{out}: there is no folder {out.parent} to write the picture into")
    storage = open_storage(folder)
    manifest, index = read_manifest(storage), load_index(storage)
    splits = list(manifest["splits"])
    columns = (TEXT_LENGTH, *map(frames_column, dims_of(manifest)))
    lengths = {column: {split: present_lengths(index, split, column) for split in splits} for column in columns}
    figure = shards_figure(describe(storage), tasks_of(manifest, storage), lengths, target_values(storage))
    try:
        # A folder of its own, so that nothing is left behind where the last step fails.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".") as folder_of_its_own:
            return save(figure, Path(folder_of_its_own) / out.name).replace(out)
    except OSError as error:
        raise EgmfError(f"{out}: cannot be written ({error.strerror})") from error


def shards_figure(info: dict[str, Any], tasks: dict[str, Task], lengths: Lengths, values: Values) -> Figure:
    """One panel for each task, for each modality's lengths, and for what is missing.

    Args:
        info: of :func:`egmf_shards.describe`.
        tasks: the manifest's, by name.
        lengths: see :data:`Lengths`.
        values: see :data:`Values`.
    """
    panels: list[tuple[Callable[[Axes], None], int]] = []
    for name, task in tasks.items():
        if task.kind == CLASSIFICATION and any(name in data["labels"] for data in info["splits"].values()):
            panels.append((_Classes(info, task), len(task.labels)))
        elif values.get(name):
            panels.append((_Histogram(task, values[name]), 0))
    for column, by_split in lengths.items():
        if any(len(x) for x in by_split.values()):
            panels.append((_Lengths(column, by_split), 0))
    panels.append((_Missing(info), 0))
    rows = [panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS)]
    # A class has three bars and a line of text.
    heights = [max(3.3, *(min(0.8 + 0.36 * labels, 8.0) for _, labels in row)) for row in rows]
    figure = new_figure(4.6 * COLUMNS, sum(heights) + 0.9)
    grid = figure.add_gridspec(len(rows), COLUMNS, height_ratios=heights)
    for i, row in enumerate(rows):
        for j, (draw, _) in enumerate(row):
            draw(figure.add_subplot(grid[i, j]))
    _legend(figure, info)
    languages = ", ".join(info["languages"])
    samples = sum(data["samples"] for data in info["splits"].values())
    title = f"{info['dataset']}: {samples:,} samples, {languages}, {info['bytes'] / 1e6:,.1f} MB"
    figure.suptitle(plain(title), fontsize=FONT + 2)
    return figure


def colours(splits: Any) -> dict[str, str]:
    """One colour a split, the same in every panel."""
    return dict(zip(("train", "valid", "test"), COLOURS, strict=False)) | {
        s: GREY for s in splits if s not in ("train", "valid", "test")
    }


def in_percent(axis: Axis) -> None:
    """Shares as percentages with as many decimals as they need."""
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g}%"))


def _legend(figure: Figure, info: dict[str, Any]) -> None:
    palette = colours(info["splits"])
    axes = figure.axes[0]
    handles = [
        axes.bar([np.nan], [np.nan], color=palette[split], label=f"{split}: {data['samples']:,} samples")
        for split, data in info["splits"].items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=FONT - 1, frameon=False)


class _Classes:
    """Horizontal bars: each class's share of its split."""

    def __init__(self, info: dict[str, Any], task: Task) -> None:
        self.task = task
        self.counts = {s: d["labels"][task.name] for s, d in info["splits"].items() if task.name in d["labels"]}

    def __call__(self, axes: Axes) -> None:
        labels = list(self.task.labels)
        palette, height = colours(self.counts), 0.8 / len(self.counts)
        for i, (split, counts) in enumerate(self.counts.items()):
            total = max(sum(counts.values()), 1)
            places = np.arange(len(labels)) + (i - (len(self.counts) - 1) / 2) * height
            bars = axes.barh(places, [counts.get(x, 0) / total for x in labels], height * 0.94, color=palette[split])
            if len(labels) <= 16:
                text = [f"{counts.get(x, 0):,}" for x in labels]
                axes.bar_label(bars, text, fontsize=FONT - 5, padding=2, color="#444444")
        names, note = drawable(self.task)
        axes.set_yticks(range(len(labels)), names)
        axes.invert_yaxis()
        axes.margins(x=0.14)
        in_percent(axes.xaxis)
        tidy(axes, self.task.name, "share of the task's samples" + note)
        axes.grid(visible=False, axis="y")


def drawable(task: Task) -> tuple[list[str], str]:
    """The classes' names as the fonts here can draw them, and what the reader must be told.

    Chinese labels where no font holds Chinese: the answers in a language that can be drawn, else numbers.
    """
    if _can_draw(task.labels):
        return [plain(_short(label)) for label in task.labels], ""
    for language, words in task.answers.items():
        if _can_draw(words):
            return [plain(_short(word)) for word in words], f"\n(answers in {language}: no font for the labels)"
    return [f"class {i + 1}" for i in range(len(task.labels))], "\n(in the task's order: no font for the labels)"


def _can_draw(texts: tuple[str, ...]) -> bool:
    return len(families()) > 1 or all(ord(c) < FIRST_CJK for text in texts for c in text)


def _short(text: str) -> str:
    return text if len(text) <= 22 else f"{text[:21]}…"


class _Histogram:
    """A regression's numbers: shares of the split, one step for each legal answer where these are few."""

    def __init__(self, task: Task, values: dict[str, np.ndarray]) -> None:
        self.task = task
        self.values = values

    def __call__(self, axes: Axes) -> None:
        low, high, step = self.task.low, self.task.high, self.task.step
        grid = np.array(self.task.values)
        on_grid = len(grid) <= BINS
        edges = np.append(grid - step / 2, grid[-1] + step / 2) if on_grid else np.linspace(low, high, BINS + 1)
        palette = colours(self.values)
        for split, numbers in self.values.items():
            # Where the steps do not divide the range, its end may lie a rounding error outside of the last one.
            _steps(axes, np.clip(numbers, edges[0], edges[-1]), edges, palette[split], filled=split == "train")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        in_percent(axes.yaxis)
        xlabel = f"value (a step for each legal answer, {step:.3g} apart)" if on_grid else "value"
        tidy(axes, self.task.name, xlabel, "share of the task's samples")


class _Lengths:
    """Lengths where the modality is present; on a logarithmic axis where the tail is long."""

    def __init__(self, column: str, lengths: dict[str, np.ndarray]) -> None:
        self.column = column
        self.lengths = {split: x for split, x in lengths.items() if len(x)}

    def __call__(self, axes: Axes) -> None:
        everything = np.concatenate(list(self.lengths.values()))
        low, high = int(everything.min()), int(everything.max())
        logarithmic = high > LONG_TAIL * float(np.median(everything))
        # A small split in many bins is noise.
        bins = int(np.clip(np.sqrt(min(map(len, self.lengths.values()))), 8, BINS))
        edges = _log_edges(low, high, bins) if logarithmic else _edges(low, high, bins)
        palette = colours(self.lengths)
        for split, numbers in self.lengths.items():
            _steps(axes, numbers, edges, palette[split], filled=split == "train")
        if logarithmic:
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        in_percent(axes.yaxis)
        modality, unit = self.column.split("_")
        unit = {"chars": "characters"}.get(unit, unit)
        median, most = np.percentile(everything, (50, 95))
        axes.axvline(median, color="black", linewidth=1, linestyle=":")
        axes.axvline(most, color="black", linewidth=1, linestyle=":")
        tidy(
            axes,
            f"{modality}, {unit} where present",
            f"dotted: median {median:,.0f}, 95 % {most:,.0f}; longest {high:,}",
            "share of the samples that have it",
        )


def _edges(low: int, high: int, bins: int) -> np.ndarray:
    """Borders between whole numbers, so that each bin holds equally many of them."""
    wide = -(-(high - low + 1) // bins)
    return np.arange(low, high + wide + 1, wide) - 0.5


def _log_edges(low: int, high: int, bins: int) -> np.ndarray:
    edges = np.unique(np.round(np.geomspace(low, high + 1, bins + 1)))
    return edges - 0.5


def _steps(axes: Axes, numbers: np.ndarray, edges: np.ndarray, colour: str, filled: bool) -> None:
    shares = np.histogram(numbers, edges)[0] / max(len(numbers), 1)
    axes.stairs(shares, edges, color=colour, linewidth=1.6, zorder=2)
    if filled:
        axes.stairs(shares, edges, color=colour, alpha=0.22, fill=True, zorder=1)


class _Missing:
    """Share of each split's samples that lack a modality."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.splits, self.modalities = info["splits"], (TEXT, *info["streams"])

    def __call__(self, axes: Axes) -> None:
        palette, width, top = colours(self.splits), 0.8 / len(self.splits), 0.0
        for i, (split, data) in enumerate(self.splits.items()):
            shares = [data["missing"][m] / max(data["samples"], 1) for m in self.modalities]
            places = np.arange(len(self.modalities)) + (i - (len(self.splits) - 1) / 2) * width
            bars = axes.bar(places, shares, width * 0.94, color=palette[split])
            axes.bar_label(bars, [_percent(x) for x in shares], fontsize=FONT - 4, padding=1)
            top = max(top, *shares)
        axes.set_xticks(range(len(self.modalities)), self.modalities)
        axes.set_ylim(0, 1.12 * top if top else 1)
        in_percent(axes.yaxis)
        tidy(axes, "missing modalities", "", "share of the split's samples")
        axes.grid(visible=False, axis="x")


def _percent(share: float) -> str:
    return "0" if not share else f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}" if share >= 0.0005 else "<0.1%"
