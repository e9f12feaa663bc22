"""How a run stands damage: a curve for each stream over what is lost of it, and over noise."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egmf_dist.report.curves import number
from egmf_dist.style import COLOURS, FONT, new_figure, plain, tidy


def robustness_figure(task: str, split: str, found: dict[str, Any]) -> Figure | None:
    """Drop curves, beside them noise curves where there are any; None where nothing was lost.

    Args:
        task: its name.
        split: for the title.
        found: the task's part of ``SPLIT-robustness.json``.
    """
    curves, metric = found.get("curves") or {}, found["metric"]
    noisy = {name: own["noise"] for name, own in curves.items() if own.get("noise")}
    dropped = {name: own["drop"] for name, own in curves.items() if own.get("drop")}
    if not dropped:
        return None
    figure = new_figure(5.6 * (2 if noisy else 1), 3.8)
    panels = figure.subplots(1, 2 if noisy else 1, sharey=True, squeeze=False)[0]
    _lines(panels[0], dropped)
    panels[0].xaxis.set_major_formatter(lambda rate, _: f"{rate:.0%}")
    tidy(panels[0], f"{task}: {metric}, {split} split", "frames or words lost", metric)
    if noisy:
        _lines(panels[1], noisy, first=list(curves))
        panels[1].axhline(number(found["clean"]), color="#888888", linewidth=1, linestyle="--", label="as it is")
        panels[1].invert_xaxis()
        tidy(panels[1], "noise", "signal over noise, dB", "")
    for axes in panels:
        axes.legend(fontsize=FONT - 2, frameon=False)
    return figure


def _lines(axes: Axes, curves: dict[str, Any], first: list[str] | None = None) -> None:
    names = first or list(curves)
    for name, points in curves.items():
        colour = COLOURS[names.index(name) % len(COLOURS)]
        places, values = zip(*points, strict=True)
        axes.plot(places, [number(v) for v in values], marker="o", markersize=4, color=colour, label=plain(name))
