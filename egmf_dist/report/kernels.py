"""What the kernels cost, as pictures of a ``summary.json`` of ``egmf bench kernels``.

Every picture says in its title whether it was predicted or measured, and on what.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egmf_dist.report.curves import number
from egmf_dist.style import COLOURS, FONT, new_figure, plain, save, tidy

Rows = Sequence[dict[str, Any]]
DIRECTIONS = ("forward", "backward")
ORDER = ("eager", "inductor", "compile", "fused")
SHORT = {
    "ragged_pool_gate": "pool",
    "hier_gate_mix_norm": "mix",
    "ms_dwconv": "conv",
    "gated_tri_proj": "projection",
    "gated_expert_mix": "whole mix",
}


def write_kernel_report(summary: dict[str, Any], out: Path) -> list[Path]:
    """Draw a summary into ``out``, which is there; what has no data is left out.

    Args:
        summary: ``kind`` "predicted": ``passes.png`` and ``bounds.png``; else ``times.png`` and ``roofline.png``.
        out: folder.

    Returns:
        The files written.
    """
    if summary["kind"] == "predicted":
        made = [("passes", passes_figure(summary)), ("bounds", bounds_figure(summary))]
    else:
        made = [("times", times_figure(summary)), ("roofline", roofline_figure(summary))]
    return [save(figure, out / f"{name}.png") for name, figure in made if figure is not None]


def passes_figure(summary: dict[str, Any]) -> Figure | None:
    """Bytes moved, in passes over one ``T x D`` stream: a panel a direction, at the middle width."""
    rows = [row for row in summary["rows"] if row["passes"] is not None]
    if not rows:
        return None
    width = _middle(rows)
    figure = new_figure(12, 6.4)
    for axes, direction in zip(figure.subplots(2, 1), DIRECTIONS, strict=True):
        chosen = [row for row in rows if row["width"] == width and row["direction"] == direction]
        _bars(axes, chosen, "implementation", "passes", "{:.1f}")
        axes.set_yscale("log")
        axes.set_ylim(0.5, axes.get_ylim()[1] * 1.6)
        tidy(axes, direction, "", "passes over one T x D stream")
    axes.figure.axes[0].legend(fontsize=FONT - 2, frameon=False, ncols=3, loc="upper left")
    settings = summary["settings"]
    _title(figure, summary, f"bytes moved at width {width}, {settings['tokens']} tokens, bf16")
    return figure


def bounds_figure(summary: dict[str, Any]) -> Figure | None:
    """The datasheet's roofline of the fused operators, forward and backward together: a panel a device."""
    rows = [row for row in summary["rows"] if row["implementation"] == "fused" and row["bound_us"]]
    if not rows:
        return None
    devices = list(rows[0]["bound_us"])
    figure = new_figure(12, 3.4 * len(devices))
    for axes, device in zip(np.atleast_1d(figure.subplots(len(devices), 1)), devices, strict=True):
        both: dict[tuple[str, int], float] = {}
        for row in rows:
            key = (row["operator"], row["width"])
            both[key] = both.get(key, 0.0) + row["bound_us"][device]
        whole = [{"operator": op, "width": width, "bound": bound} for (op, width), bound in both.items()]
        _bars(axes, whole, "width", "bound", "{:.0f}")
        tidy(axes, device, "", "least microseconds")
    axes.figure.axes[0].legend(fontsize=FONT - 2, frameon=False, ncols=3, loc="upper left", title="width")
    _title(figure, summary, "roofline bounds of the fused operators, forward + backward (no kernel is faster)")
    return figure


def times_figure(summary: dict[str, Any]) -> Figure | None:
    """Measured milliseconds forward and backward together on large ragged batches: a panel a width."""
    rows = [row for row in _large(summary) if row["ms"] and row["direction"] == "both"]
    widths = sorted({row["width"] for row in rows})
    if not rows:
        return None
    figure = new_figure(12, 3.2 * len(widths))
    for axes, width in zip(np.atleast_1d(figure.subplots(len(widths), 1)), widths, strict=True):
        _bars(axes, [row for row in rows if row["width"] == width], "implementation", "ms", "{:.2f}")
        axes.set_yscale("log")
        axes.set_ylim(top=axes.get_ylim()[1] * 1.6)
        tidy(axes, f"width {width}", "", "milliseconds")
    axes.figure.axes[0].legend(fontsize=FONT - 2, frameon=False, ncols=4, loc="upper left")
    _title(figure, summary, "forward + backward, large ragged batches, bf16")
    return figure


def roofline_figure(summary: dict[str, Any]) -> Figure | None:
    """What the fused operators reach of the measured roofline on large ragged batches: a panel a direction."""
    rows = [row for row in _large(summary) if row["implementation"] == "fused" and row["percent_of_roofline"]]
    if not rows:
        return None
    figure = new_figure(12, 6.4)
    for axes, direction in zip(figure.subplots(2, 1), DIRECTIONS, strict=True):
        _bars(axes, [row for row in rows if row["direction"] == direction], "width", "percent_of_roofline", "{:.0f}")
        axes.set_ylim(0, 118)
        tidy(axes, direction, "", "% of the measured roofline")
    axes.figure.axes[0].legend(fontsize=FONT - 2, frameon=False, ncols=3, loc="upper left", title="width")
    _title(figure, summary, "share of the measured roofline, large ragged batches, bf16")
    return figure


def _bars(axes: Axes, rows: Rows, group: str, value: str, form: str) -> None:
    """Groups of bars: an operator each, in it one bar for each value of ``group``."""
    operators = [name for name in SHORT if any(row["operator"] == name for row in rows)]
    found = {row[group] for row in rows}
    bars = [name for name in ORDER if name in found] or sorted(found)
    by_key = {(row["operator"], row[group]): row[value] for row in rows}
    width = 0.84 / max(len(bars), 1)
    for i, name in enumerate(bars):
        heights = [number(by_key.get((operator, name))) for operator in operators]
        places = np.arange(len(operators)) + (i - (len(bars) - 1) / 2) * width
        drawn = axes.bar(places, heights, width * 0.96, color=COLOURS[i % len(COLOURS)], label=plain(str(name)))
        axes.bar_label(drawn, ["" if np.isnan(h) else form.format(h) for h in heights], fontsize=FONT - 3, padding=1)
    axes.set_xticks(range(len(operators)), [SHORT[operator] for operator in operators])
    axes.grid(visible=False, axis="x")


def _large(summary: dict[str, Any]) -> Rows:
    """Rows of ragged batches whose streams fit no cache; ``report.html`` of a GPU check has the model's shapes."""
    return [row for row in summary["rows"] if row["layout"] == "ragged" and row.get("shape", "stream") == "stream"]


def _middle(rows: Rows) -> int:
    widths = sorted({int(row["width"]) for row in rows})
    return widths[len(widths) // 2]


def _title(figure: Figure, summary: dict[str, Any], what: str) -> None:
    figure.suptitle(plain(f"{summary['label']}: {what}"), fontsize=FONT + 1)
