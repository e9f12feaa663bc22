"""What each modality is worth: the score without it, beside the best score that the data's construction allows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from egmf_dist.report.curves import number
from egmf_dist.report.read import headline
from egmf_dist.report.style import COLOURS, FONT, new_figure, tidy
from egmf_shards.sample import MODALITIES


def missing_figure(split: str, evaluation: dict[str, Any]) -> Figure | None:
    """Bars per task (all modalities, then without each), with ceilings where known; None where nothing was removed."""
    table = missing_table(evaluation)
    if not table:
        return None
    figure = new_figure(5.4 * len(table), 3.9)
    panels = np.atleast_1d(figure.subplots(1, len(table)))
    for axes, (task, (metric, rows)) in zip(panels, table.items(), strict=True):
        bars = {"measured": (COLOURS[0], [m for _, m, _ in rows]), "ceiling": (COLOURS[4], [c for _, _, c in rows])}
        bars = {name: bar for name, bar in bars.items() if any(map(math.isfinite, bar[1]))}
        width = 0.84 / len(bars)
        for i, (name, (colour, heights)) in enumerate(bars.items()):
            places = np.arange(len(rows)) + (i - (len(bars) - 1) / 2) * width
            drawn = axes.bar(places, np.nan_to_num(heights), width * 0.96, color=colour, label=name)
            text = [f"{h:.3f}" if math.isfinite(h) else "undefined" if name == "measured" else "" for h in heights]
            axes.bar_label(drawn, text, fontsize=FONT - 3, padding=1)
        axes.set_xticks(range(len(rows)), [name for name, _, _ in rows])
        # Room above the bars for the legend.
        axes.set_ylim(
            top=1.25 * max([h for _, heights in bars.values() for h in heights if math.isfinite(h)], default=1)
        )
        tidy(axes, f"{task}: {metric}, {split} split")
        axes.grid(visible=False, axis="x")
        axes.legend(fontsize=FONT - 2, frameon=False, ncols=2, loc="upper right")
    return figure


def missing_table(evaluation: dict[str, Any]) -> dict[str, tuple[str, list[tuple[str, float, float]]]]:
    """For each task its metric and rows (which modalities, measured, ceiling); NaN where a number is not known.

    Empty where the evaluation did not remove modalities.
    """
    removed: dict[str, dict[str, Any]] = evaluation.get("removed") or {}
    if not removed:
        return {}
    gone = set(evaluation.get("without", ()))
    out = {}
    for task, result in evaluation["tasks"].items():
        ceilings: dict[str, Any] = (evaluation.get("ceilings") or {}).get(task, {})
        metric = ceilings.get("metric", headline(result["metrics"]))
        rows = []
        for name, scored, absent in [
            ("all" if not gone else f"without {'+'.join(sorted(gone))}", result, gone),
            *((f"without {m}", r["tasks"].get(task), gone | {m}) for m, r in removed.items()),
        ]:
            present = "+".join(m for m in MODALITIES if m not in absent)
            measured = scored["metrics"].get(metric) if scored else None
            rows.append((name, number(measured), number(ceilings.get(present))))
        out[task] = (metric, rows)
    return out
