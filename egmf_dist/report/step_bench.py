"""What a training step costs, as a picture of a ``summary.json`` of ``egmf bench step``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from egmf_dist.style import COLOURS, FONT, GREY, new_figure, plain, save, tidy


def write_step_report(summary: dict[str, Any], out: Path) -> Path:
    """Draw ``step.png`` into ``out``, which is there: samples a second of everyone, and where our time goes."""
    parts = summary["breakdown"]
    rows = summary["rows"]
    figure = new_figure(12, 1.6 + 0.45 * len(rows) + (1.8 if parts else 0))
    if parts:
        speeds, shares = figure.subplots(2, 1, height_ratios=[0.45 * len(rows) + 0.6, 1])
        _parts(shares, parts)
    else:
        speeds = figure.subplots()
    _speeds(speeds, rows)
    figure.suptitle(plain(f"{summary['backbone']}; {summary['data']}; {summary['machine']}"), fontsize=FONT - 1)
    return save(figure, out / "step.png")


def _speeds(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for place, row in enumerate(reversed(rows)):
        speed = row["samples_per_s"]
        theirs = row["contestant"] in ("bare", "trainer", "predecessor")
        axes.barh(place, speed, 0.7, color=GREY if theirs else COLOURS[0])
        axes.errorbar(speed, place, xerr=[[speed - row["min"]], [row["max"] - speed]], color="black", capsize=2)
        axes.annotate(
            f"{speed:.3g}", (row["max"], place), (4, 0), textcoords="offset points", va="center", fontsize=FONT - 2
        )
    axes.set_yticks(range(len(rows)), [plain(row["title"]) for row in reversed(rows)])
    axes.margins(x=0.1)
    tidy(axes, "one rank, median of the rounds", "samples/s", "")
    axes.grid(visible=False, axis="y")


def _parts(axes: Axes, parts: dict[str, float]) -> None:
    whole, left = sum(parts.values()), 0.0
    for number, (part, seconds) in enumerate(parts.items()):
        share = seconds / whole
        axes.barh(0, share, left=left, color=(*COLOURS, GREY)[number % (len(COLOURS) + 1)], label=f"{part} {share:.1%}")
        left += share
    axes.set_yticks([])
    axes.set_xlim(0, 1)
    axes.legend(fontsize=FONT - 3, frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    tidy(axes, "where the time of a step goes (dialogues, context read once)", "", "", grid=False)
