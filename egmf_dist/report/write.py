"""Draw a run: everything there is data for, as PNG files in ``RUN/report`` and on one page, ``index.html``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from egmf_dist.files import write_text
from egmf_dist.report.answers import confusion_figure, reliability_figure, scatter_figure
from egmf_dist.report.curves import comparison_figure, training_figure
from egmf_dist.report.gates import gates_figure
from egmf_dist.report.missing import DISTURBED, missing_figure, robustness_figure
from egmf_dist.report.page import render_page
from egmf_dist.report.read import RunResults, read_run
from egmf_dist.report.samples import find_samples
from egmf_dist.run.folder import Run
from egmf_dist.style import save


def write_report(run: Path, compare: Sequence[Path] = ()) -> list[Path]:
    """Draw ``training.png``, ``confusion-TASK-SPLIT.png`` (and ``reliability``, ``scatter``, ``gates`` alike),
    ``missing-SPLIT.png``, ``robustness-drop-TASK-SPLIT.png`` (and ``-noise-``) and, with runs to compare,
    ``compare.png``; then everything on one page, ``index.html``. What has no data is left out.

    Args:
        run: the run's folder.
        compare: other runs' folders.

    Returns:
        The files written, in that order.

    Raises:
        EgmfError: a folder is missing, holds nothing to draw yet, or one of its files is broken.
    """
    folders = [Path(run), *map(Path, compare)]
    # Everything is read before anything is written.
    results = [read_run(folder) for folder in folders]
    labels = run_labels(folders)
    page = render_page(results, labels, find_samples(folders[0], results[0]))
    out = Run(folders[0]).report
    out.mkdir(exist_ok=True)
    written = [save(figure, out / f"{name}.png") for name, figure in figures(results[0])]
    if compare:
        written.append(save(comparison_figure(results, labels), out / "compare.png"))
    write_text(out / "index.html", page)
    return [*written, out / "index.html"]


def run_labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of their parents as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts))):
        labels = ["/".join(p[-count:]) for p in parts]
        if len(set(labels)) == len(set(parts)):
            return labels
    return [str(folder) for folder in folders]


def figures(run: RunResults) -> Iterator[tuple[str, Figure]]:
    """Names (without ending) and pictures of one run."""
    if run.train or run.valid:
        yield "training", training_figure(run)
    for split in sorted(set(run.evaluations) | set(run.predictions)):
        evaluation = run.evaluations.get(split, {"tasks": {}})
        rows = run.predictions.get(split, [])
        tasks = list(evaluation["tasks"]) + sorted({r["task"] for r in rows} - set(evaluation["tasks"]))
        for task in tasks:
            yield from task_figures(task, split, evaluation["tasks"].get(task), [r for r in rows if r["task"] == task])
        picture = missing_figure(split, evaluation)
        if picture is not None:
            yield f"missing-{split}", picture
    for split, measured in run.robustness.items():
        for task, part in measured["tasks"].items():
            for kind in DISTURBED:
                picture = robustness_figure(task, kind, part)
                if picture is not None:
                    yield f"robustness-{kind}-{file_name(task)}-{split}", picture


def task_figures(
    task: str, split: str, result: dict[str, Any] | None, rows: Sequence[dict[str, Any]]
) -> Iterator[tuple[str, Figure]]:
    """Confusion or scatter, and gates, of one task on one split."""
    end = f"{file_name(task)}-{split}"
    if result is not None and result.get("confusion") and result["n"]:
        yield f"confusion-{end}", confusion_figure(task, split, result)
    if result is not None and any(one["n"] for one in result.get("reliability") or ()):
        yield f"reliability-{end}", reliability_figure(task, split, result["reliability"])
    numbers = [r for r in rows if not isinstance(r["truth"], str)]
    if numbers:
        truth, predicted = [r["truth"] for r in numbers], [r["predicted"] for r in numbers]
        yield f"scatter-{end}", scatter_figure(task, split, result, truth, predicted)
    picture = gates_figure(task, split, rows, (result or {}).get("labels", ()))
    if picture is not None:
        yield f"gates-{end}", picture


def file_name(task: str) -> str:
    """The task's name without characters that a path or a shell would take for something else."""
    return re.sub(r"[^\w.-]+", "_", task)
