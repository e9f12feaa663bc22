"""How a run learnt: loss, validation, learning rate and gradient norm over steps; several runs beside each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egmf_dist.report.read import RunResults, headline
from egmf_dist.style import COLOURS, FONT, GREY, new_figure, plain, tidy

SMOOTHING = 6
"""Records on each side that enter the running mean of the loss."""


def training_figure(run: RunResults) -> Figure:
    """Four panels; a panel whose records are missing says so."""
    figure = new_figure(10, 6.6)
    for axes, draw in zip(np.ravel(figure.subplots(2, 2)), TRAINING_PANELS.values(), strict=True):
        draw(axes, run)
    figure.suptitle(plain(run.name), fontsize=FONT + 2)
    return figure


def _draw_rate(axes: Axes, run: RunResults) -> None:
    axes.plot(*series(run.train, "lr"), color=COLOURS[0], linewidth=1.3)
    tidy(axes, "learning rate", "step")


def _draw_norm(axes: Axes, run: RunResults) -> None:
    steps, values = series(run.train, "grad_norm")
    axes.plot(steps, values, color=COLOURS[0], linewidth=1.3)
    tidy(axes, "gradient norm, before clipping", "step")
    if any(value > 0 for value in values):
        axes.set_yscale("log")
    skipped = [r["step"] for r, before in zip(run.train, [{}, *run.train], strict=False) if _skips(r) > _skips(before)]
    if skipped:
        axes.plot(skipped, [0.03] * len(skipped), "x", color=COLOURS[1], transform=axes.get_xaxis_transform())
        axes.set_title("gradient norm, before clipping (x: skipped)", fontsize=FONT, loc="left")


def _skips(record: dict[str, Any]) -> int:
    return int(record.get("skipped") or 0)


def _draw_loss(axes: Axes, run: RunResults) -> None:
    steps, values = series(run.train, "loss")
    axes.plot(steps, values, color=COLOURS[0], linewidth=0.8, alpha=0.35)
    axes.plot(steps, smooth(values), color=COLOURS[0], linewidth=1.8, label="loss")
    for colour, key, style in ((COLOURS[1], "loss_answer", "--"), (COLOURS[2], "loss_auxiliary", ":")):
        steps, values = series(run.train, key)
        if values:
            axes.plot(steps, smooth(values), style, color=colour, linewidth=1.5, label=key.removeprefix("loss_"))
    tidy(axes, "training loss (running mean)", "step", "mean per sample")
    if axes.lines and run.train:
        axes.legend(fontsize=FONT - 2, frameon=False)
    else:
        _nothing(axes)


def _draw_validation(axes: Axes, run: RunResults) -> None:
    chosen = run.selected
    for i, (task, metric) in enumerate(validation_lines(run)):
        points = [(r["step"], r["tasks"].get(task, {}).get("metrics", {}).get(metric)) for r in run.valid]
        steps, values = zip(*[(s, v if is_number(v) else math.nan) for s, v in points], strict=True)
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(steps, values, "o-", color=colour, markersize=3.5, linewidth=1.5, label=plain(f"{task} {metric}"))
        if chosen is not None:
            at = values[steps.index(chosen["step"])]
            axes.plot([chosen["step"]], [at], "*", color=colour, markersize=14, markeredgecolor="black")
    tidy(axes, "validation", "step")
    if not run.valid:
        _nothing(axes)
        return
    if chosen is not None:
        rule = chosen.get("selected_by", "")
        axes.axvline(chosen["step"], color=GREY, linestyle=":", linewidth=1.2)
        axes.set_title(f"validation (star: kept adapter, step {chosen['step']})", fontsize=FONT, loc="left")
        axes.set_xlabel(plain(f"step; kept: best {rule}" if rule else "step"), fontsize=FONT - 3)
    axes.legend(fontsize=FONT - 2, frameon=False)


TRAINING_PANELS: dict[str, Callable[[Axes, RunResults], None]] = {
    "training loss": _draw_loss,
    "validation": _draw_validation,
    "learning rate": _draw_rate,
    "gradient norm": _draw_norm,
}


def validation_lines(run: RunResults) -> list[tuple[str, str]]:
    """Which (task, metric) to draw: each task's headline metric, and the one that selects where it is another."""
    tasks: dict[str, dict[str, Any]] = {}
    for record in run.valid:
        tasks |= record.get("tasks", {})
    lines = [(task, headline(result["metrics"])) for task, result in tasks.items()]
    rules = " ".join(str(record.get("selected_by", "")) for record in run.valid[-1:]).split()
    for task, result in tasks.items():
        lines += [(task, m) for m in result["metrics"] if f"{task}.{m}" in rules and (task, m) not in lines]
    return lines


def comparison_figure(runs: Sequence[RunResults], labels: Sequence[str]) -> Figure:
    """Training loss, validation score, and the headline metrics of the split that all runs evaluated."""
    splits = [s for s in runs[0].evaluations if all(s in run.evaluations for run in runs)]
    split = "test" if "test" in splits else next(iter(splits), None)
    panels = 2 if split is None else 3
    figure = new_figure(4.4 * panels, 3.8)
    axes: list[Axes] = list(figure.subplots(1, panels))
    for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        steps, values = series(run.train, "loss")
        axes[0].plot(steps, smooth(values), color=colour, linewidth=1.6, label=plain(label))
        steps, values = series(run.valid, "score")
        axes[1].plot(steps, values, "o-", color=colour, markersize=3.5, linewidth=1.6, label=plain(label))
    tidy(axes[0], "training loss (running mean)", "step", "mean per sample")
    tidy(axes[1], "validation score (what selects)", "step")
    # Under the panels: names of runs may be long.
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=FONT - 2, ncols=2)
    if split is not None:
        _draw_scores(axes[2], runs, labels, split)
    return figure


def _draw_scores(axes: Axes, runs: Sequence[RunResults], labels: Sequence[str], split: str) -> None:
    results = [run.evaluations[split]["tasks"] for run in runs]
    tasks = [task for task in results[0] if all(task in r for r in results)]
    names = [headline(results[0][task]["metrics"]) for task in tasks]
    width = 0.8 / len(runs)
    for i, (result, label) in enumerate(zip(results, labels, strict=True)):
        heights = [number(result[t]["metrics"].get(m)) for t, m in zip(tasks, names, strict=True)]
        places = np.arange(len(tasks)) + (i - (len(runs) - 1) / 2) * width
        bars = axes.bar(
            places, np.nan_to_num(heights), width * 0.95, color=COLOURS[i % len(COLOURS)], label=plain(label)
        )
        axes.bar_label(bars, [f"{h:.3f}" if math.isfinite(h) else "undefined" for h in heights], fontsize=FONT - 3)
    axes.set_xticks(range(len(tasks)), [plain(f"{t}\n{m}") for t, m in zip(tasks, names, strict=True)])
    tidy(axes, f"{split} split")
    axes.grid(visible=False, axis="x")


def series(records: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one key where it is a finite number."""
    points = [(int(r["step"]), float(r[key])) for r in records if is_number(r.get(key))]
    return [step for step, _ in points], [value for _, value in points]


def is_number(value: object) -> bool:
    """A finite number, not a missing or undefined one."""
    return isinstance(value, int | float) and math.isfinite(value)


def number(value: object) -> float:
    """The value, or NaN, which matplotlib leaves out."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def smooth(values: Sequence[float]) -> list[float]:
    """Running mean over as many values before as after each; a mean of the past alone would lag behind a falling loss.

    Towards both ends the window narrows, so that it stays even-sided: a straight line comes out as it is.
    """
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    out = []
    for i in range(len(values)):
        reach = min(SMOOTHING, i, len(values) - 1 - i)
        out.append(float(sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1))
    return out


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes, color=GREY)
