"""What was answered: the confusion matrix of a classification, predicted against true of a regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from egmf_dist.report.curves import is_number
from egmf_dist.style import COLOURS, FONT, HEAT, heat_map, new_figure, tidy


def confusion_figure(task: str, split: str, result: dict[str, Any]) -> Figure:
    """Counts, coloured by the share of the true class (rows), from an evaluation's ``labels`` and ``confusion``."""
    labels, counts = list(result["labels"]), np.asarray(result["confusion"], dtype=float)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(5.2, 0.8 * len(labels) + 1.6)
    figure = new_figure(side + 1.2, side * 0.86)
    axes = figure.subplots()
    text = [[f"{int(c)}\n{s:.0%}" for c, s in zip(*row, strict=True)] for row in zip(counts, share, strict=True)]
    image = heat_map(
        axes, share, [f"{x} ({int(n)})" for x, n in zip(labels, counts.sum(axis=1), strict=True)], labels, text, 1
    )
    metrics = result["metrics"]
    scores = f"weighted F1 {shown(metrics.get('weighted_f1'))}, accuracy {shown(metrics.get('accuracy'))}"
    tidy(axes, _title(task, split, result, scores), "predicted", "true (number of samples)", grid=False)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.85)
    return figure


def scatter_figure(
    task: str, split: str, result: dict[str, Any] | None, truth: list[float], predicted: list[float]
) -> Figure:
    """Density of (true, predicted) with the line on which a perfect model's answers stand."""
    y, p = np.asarray(truth, dtype=float), np.asarray(predicted, dtype=float)
    low, high = min(y.min(), p.min()), max(y.max(), p.max())
    margin = 0.06 * (high - low) or 0.5
    figure = new_figure(6.6, 5.6)
    axes = figure.subplots()
    extent = (low - margin, high + margin, low - margin, high + margin)
    cells = axes.hexbin(y, p, gridsize=34, extent=extent, mincnt=1, bins="log", cmap=HEAT, linewidths=0.2)
    axes.plot(extent[:2], extent[:2], color=COLOURS[1], linewidth=1.4, linestyle="--", label="predicted = true")
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[:2])
    axes.set_aspect("equal")
    metrics = result["metrics"] if result else {}
    scores = f"Corr {shown(metrics.get('corr'))}, MAE {shown(metrics.get('mae'))}"
    tidy(axes, _title(task, split, result, f"{scores}, n {len(y)}"), "true", "predicted (expected value)")
    axes.legend(fontsize=FONT - 2, loc="upper left", frameon=False)
    figure.colorbar(cells, ax=axes, label="samples", shrink=0.85)
    return figure


def reliability_figure(task: str, split: str, bins: Sequence[dict[str, Any]]) -> Figure:
    """How often answers are right at each confidence, beside the line on which confidence is right.

    Args:
        task: its name.
        split: which split was scored.
        bins: an evaluation's ``reliability``: ``low``, ``high``, ``n``, ``confidence`` and ``accuracy`` (means).
    """
    held = [one for one in bins if one["n"]]
    figure = new_figure(4.4, 3.9)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=COLOURS[1], linewidth=1.4, linestyle="--", label="confidence is right")
    axes.bar(
        [one["low"] for one in held],
        [one["accuracy"] for one in held],
        [one["high"] - one["low"] for one in held],
        align="edge",
        color=COLOURS[0],
        edgecolor="white",
        alpha=0.75,
        label="accuracy",
    )
    most = max((one["n"] for one in held), default=1)
    axes.scatter(
        [one["confidence"] for one in held],
        [one["accuracy"] for one in held],
        [12 + 90 * one["n"] / most for one in held],
        color="black",
        zorder=3,
        label="mean confidence (size: samples)",
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    tidy(axes, f"{task}, {split} split", "confidence", "accuracy")
    axes.legend(fontsize=FONT - 3, frameon=False, loc="upper left")
    return figure


def shown(value: object) -> str:
    """Three decimals, or the word for a metric that is not defined."""
    return f"{value:.3f}" if is_number(value) else "undefined"


def _title(task: str, split: str, result: dict[str, Any] | None, scores: str) -> str:
    alarm = "\nCOLLAPSED TO ONE ANSWER" if result and result.get("collapsed") else ""
    return f"{task}, {split} split: {scores}{alarm}"
