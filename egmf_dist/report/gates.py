"""What the fusion says of itself, such as whom its gate listens to: the mean of each column, by true class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from egmf_dist.style import heat_map, new_figure, plain, tidy

SIGNS = ("negative", "neutral", "positive")


def gates_figure(task: str, split: str, rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> Figure | None:
    """A heat map for each of the fusion's diagnostics in one task's predictions; None where no row holds any.

    Args:
        task: the task's name.
        split: which split was scored.
        rows: the predictions; ``gates`` holds for each diagnostic a number per name.
        labels: the order of the classes; for a regression it is empty, and rows are negative, neutral and positive.
    """
    tables = gate_tables(rows, [str(true_class(row["truth"])) for row in rows], labels or SIGNS)
    if not tables:
        return None
    figure = new_figure(10, max(2.6, 0.52 * len(tables[0][2]) + 1.5))
    for (level, columns, lines), axes in zip(tables, np.atleast_1d(figure.subplots(1, len(tables))), strict=True):
        means = np.array([values for *_, values in lines])
        text = [[f"{value:.2f}" for value in line] for line in means]
        names = [f"{name} ({count})" for name, count, _ in lines]
        heat_map(axes, means, names, columns, text, max(float(means.max()), 1e-6))
        tidy(axes, f"{level}: mean by true class", "", "true (number of samples)", grid=False)
    figure.suptitle(f"{plain(task)}, {split} split", fontsize=12)
    return figure


def true_class(truth: str | float) -> str:
    """The label key, or for a number its sign in words."""
    if isinstance(truth, str):
        return truth
    return SIGNS[1 + (truth > 0) - (truth < 0)]


def gate_tables(
    rows: Sequence[dict[str, Any]], groups: Sequence[str], order: Sequence[str]
) -> list[tuple[str, list[str], list[tuple[str, int, list[float]]]]]:
    """For each diagnostic its name, its columns, and per group the samples and the mean of each column.

    Args:
        rows: the predictions; those without diagnostics are left out.
        groups: the group of each row, such as its true class or its language.
        order: the order of the groups; those that it does not name follow by name.
    """
    pairs = [(row, group) for row, group in zip(rows, groups, strict=True) if any((row.get("gates") or {}).values())]
    if not pairs:
        return []
    rows, groups = [row for row, _ in pairs], [group for _, group in pairs]
    names = [name for name in order if name in groups] + sorted(set(groups) - set(order))
    tables = []
    for level, weights in rows[0]["gates"].items():
        if weights:
            lines = [
                (name, groups.count(name), [_mean(rows, groups, name, level, column) for column in weights])
                for name in names
            ]
            tables.append((level, list(weights), lines))
    return tables


def _mean(rows: Sequence[dict[str, Any]], classes: Sequence[str], name: str, level: str, column: str) -> float:
    weights = [r["gates"][level].get(column, 0.0) for r, c in zip(rows, classes, strict=True) if c == name]
    return float(np.mean(weights))
