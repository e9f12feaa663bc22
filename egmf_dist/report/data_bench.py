"""What readers deliver, as a picture of a ``summary.json`` of ``egmf bench data``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egmf_dist.style import COLOURS, FONT, new_figure, plain, save, tidy


def write_data_report(summary: dict[str, Any], out: Path, titles: dict[str, str]) -> Path | None:
    """Draw ``readers.png`` into ``out``, which is there.

    Args:
        summary: what :func:`egmf_dist.bench.data.measure_data` returns.
        out: folder.
        titles: a reader's name in the summary to its name in the picture; their order is the bars'.

    Returns:
        The file, or None where nothing was measured.
    """
    figure = readers_figure(summary, titles)
    return None if figure is None else save(figure, out / "readers.png")


def readers_figure(summary: dict[str, Any], titles: dict[str, str]) -> Figure | None:
    """Samples a second of each reader's best way, warm and cold: a panel a size, whiskers from min to max."""
    rows = [row for row in summary["rows"] if row["best"]]
    sizes = [size for size in summary["samples"] if any(row["size"] == size for row in rows)]
    if not sizes:
        return None
    figure = new_figure(12, 3.6 * len(sizes))
    for axes, size in zip(np.atleast_1d(figure.subplots(len(sizes), 1)), sizes, strict=True):
        _panel(axes, [row for row in rows if row["size"] == size], titles)
        payload = summary["payload_bytes"][size] / 1000
        tidy(axes, f"samples of {payload:.0f} KB", "", "samples/s (log)")
        axes.grid(visible=False, axis="x")
    figure.axes[0].legend(fontsize=FONT - 2, frameon=False, ncols=2, loc="upper right")
    rounds = summary["rounds"]
    what = f"batches of 32, median of {rounds} rounds" if rounds > 1 else "batches of 32, one round"
    figure.suptitle(plain(f"{summary['machine']}: {what}"), fontsize=FONT)
    return figure


def _panel(axes: Axes, rows: list[dict[str, Any]], titles: dict[str, str]) -> None:
    names = [name for name in titles if any(row["reader"] == name for row in rows)]
    for i, state in enumerate(("warm", "cold")):
        for row in (row for row in rows if row["state"] == state):
            place, speed = names.index(row["reader"]) + (i - 0.5) * 0.4, row["samples_per_s"]
            first = row["reader"] == rows[0]["reader"]
            axes.bar(place, speed, 0.38, color=COLOURS[i], label=state if first else None)
            axes.errorbar(
                place, speed, [[speed - row["min"]], [row["max"] - speed]], color="black", linewidth=1, capsize=2
            )
            axes.annotate(
                f"{speed:,.0f}", (place, row["max"]), (0, 3), textcoords="offset points", ha="center", fontsize=FONT - 3
            )
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 2, high * 3)
    axes.set_xticks(range(len(names)), [plain(titles[name]) for name in names])
