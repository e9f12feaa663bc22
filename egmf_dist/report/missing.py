"""What each modality is worth: the score without it, beside the best score that the data's construction allows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from egmf_dist.inference.conditions import conditions
from egmf_dist.report.curves import number
from egmf_dist.style import COLOURS, FONT, GREY, new_figure, plain, tidy

DISTURBED = {"drop": "share of frames or words that is gone", "noise": "signal to noise, dB"}


def robustness_figure(task: str, kind: str, measured: dict[str, Any]) -> Figure | None:
    """The headline metric as each stream is disturbed more; None where that was not measured.

    Args:
        task: its name.
        kind: ``drop`` or ``noise``.
        measured: the task's part of ``SPLIT-robustness.json``.
    """
    curves = {stream: curve.get(kind) for stream, curve in (measured.get("curves") or {}).items()}
    curves = {stream: points for stream, points in curves.items() if points}
    if not curves:
        return None
    figure = new_figure(4.4, 3.6)
    axes = figure.subplots()
    for i, (stream, points) in enumerate(curves.items()):
        at, values = [p[0] for p in points], [number(p[1]) for p in points]
        axes.plot(at, values, "o-", color=COLOURS[i % len(COLOURS)], markersize=3.5, linewidth=1.5, label=plain(stream))
    clean = number(measured.get("clean"))
    if math.isfinite(clean):
        axes.axhline(clean, color=GREY, linestyle=":", linewidth=1.3, label="undisturbed")
    if kind == "noise":
        axes.invert_xaxis()  # more noise to the right
    tidy(axes, f"{task}: {measured.get('metric', '')}", DISTURBED[kind])
    axes.legend(fontsize=FONT - 3, frameon=False)
    return figure


def missing_figure(split: str, evaluation: dict[str, Any]) -> Figure | None:
    """Bars per task (all modalities, then without each), with ceilings where known; None where nothing was removed."""
    if not evaluation.get("removed"):
        return None
    table = conditions(evaluation)
    figure = new_figure(5.4 * len(table), 3.9)
    panels = np.atleast_1d(figure.subplots(1, len(table)))
    for axes, (task, (metric, rows)) in zip(panels, table.items(), strict=True):
        bars = {
            "measured": (COLOURS[0], [number(row.measured) for row in rows]),
            "ceiling": (COLOURS[4], [number(row.ceiling) for row in rows]),
        }
        bars = {name: bar for name, bar in bars.items() if any(map(math.isfinite, bar[1]))}
        width = 0.84 / len(bars)
        for i, (name, (colour, heights)) in enumerate(bars.items()):
            places = np.arange(len(rows)) + (i - (len(bars) - 1) / 2) * width
            drawn = axes.bar(places, np.nan_to_num(heights), width * 0.96, color=colour, label=name)
            text = [f"{h:.3f}" if math.isfinite(h) else "undefined" if name == "measured" else "" for h in heights]
            axes.bar_label(drawn, text, fontsize=FONT - 3, padding=1)
        axes.set_xticks(range(len(rows)), [row.label for row in rows])
        # Room above the bars for the legend.
        axes.set_ylim(
            top=1.25 * max([h for _, heights in bars.values() for h in heights if math.isfinite(h)], default=1)
        )
        tidy(axes, f"{task}: {metric}, {split} split")
        axes.grid(visible=False, axis="x")
        axes.legend(fontsize=FONT - 2, frameon=False, ncols=2, loc="upper right")
    return figure
