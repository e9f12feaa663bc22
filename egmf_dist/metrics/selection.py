"""Which validation samples are scored, and by which number the best adapter is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from egmf_dist.errors import EgmfError
from egmf_dist.metrics.by_task import HEADLINE, LOWER_IS_BETTER, evaluate_task, metric_names
from egmf_shards import CLASSIFICATION, Order, Sample, ShardSet, Task

UNDEFINED = -1e9
"""The score of a validation whose metric is undefined: the worst."""
_READ = 64


def chosen_for_validation(task_of: Sequence[int] | np.ndarray, wanted: int) -> list[int]:
    """Which validation samples are scored: the same random ones every time, each task by its share.

    Every task that the split has gets at least one, however rare it is: a subset without the task that selects the
    adapter would be without it in every validation of the run.

    Args:
        task_of: for each sample of the split, which task asks about it.
        wanted: how many; 0 for all. With fewer than there are tasks, one for each task.

    Returns:
        Sample numbers, ascending.
    """
    tasks = np.asarray(task_of)
    if not 0 < wanted < len(tasks):
        return list(range(len(tasks)))
    _, number, counts = np.unique(tasks, return_inverse=True, return_counts=True)
    # One of each task; the rest by largest remainders: whole shares first, then one more for those that lost most.
    left = max(0, wanted - len(counts))
    share = (counts - 1) * left / max(1, len(tasks) - len(counts))
    quota = 1 + np.floor(share).astype(int)
    lost = np.argsort(np.floor(share) - share, kind="stable")
    quota[lost[: max(0, wanted - quota.sum())]] += 1
    order = Order(len(tasks), 0, "validation").indices(0, len(tasks))
    chosen = [order[number[order] == task][: quota[task]] for task in range(len(counts))]
    return sorted(np.concatenate(chosen).tolist())


def check_selection(select_by: str, tasks: Mapping[str, Task]) -> None:
    """Refuse a selection metric that the run does not have.

    Raises:
        EgmfError: names the task or the metric, and those there are.
    """
    if not select_by:
        return
    name, metric = select_by.split(".")
    where = f"config: training.select_by is {select_by!r}"
    if name not in tasks:
        raise EgmfError(f"{where}; this run's tasks are {', '.join(tasks)}")
    if metric not in metric_names(tasks[name]):
        raise EgmfError(f"{where}; the metrics of {name} are {', '.join(metric_names(tasks[name]))}")


def check_definable(select_by: str, shards: ShardSet, chosen: Sequence[int]) -> str | None:
    """Refuse a selection that no model could define on the validation samples, however good it were.

    The metric of a perfect model is computed; where even that is undefined (no sample of the task, one value
    everywhere), every validation would count as the worst and patience would end the run. Reads samples until the
    metric is defined, as a rule a few.

    Args:
        select_by: ``training.select_by``.
        shards: the validation split.
        chosen: which of its samples are scored.

    Returns:
        A sentence where the selection is a mean over tasks and one of them can add nothing to it.

    Raises:
        EgmfError: names the metric and what the validation samples hold.
        ShardError: a sample is damaged.
    """
    samples: list[Sample] = []
    while len(samples) < len(chosen):
        # Twice as many each time: a long split without the task is judged a few times, not once a batch.
        more = chosen[len(samples) : len(samples) + max(_READ, len(samples))]
        samples += shards.read(more).samples
        best = _perfect(samples, shards.tasks)
        undefined = [] if select_by else _without_headline(best, shards.tasks)
        if selection_score(best, select_by) > UNDEFINED and not undefined:
            return None
    if samples and selection_score(best, select_by) > UNDEFINED:
        return (
            f"{', '.join(undefined)} can be judged by no model on the {len(samples)} validation samples that are "
            "scored (too few of them, or one value everywhere), so the adapter is selected by the other tasks; raise "
            "training.validation_samples, or choose training.select_by"
        )
    held = {name: sum(s.task == name for s in samples) for name in shards.tasks}
    what = f"training.select_by {select_by!r}" if select_by else "weighted F1 and Corr of every task"
    raise EgmfError(
        f"config: {what} is undefined for any model on the {len(samples)} validation samples that would be scored "
        f"({', '.join(f'{name}: {n}' for name, n in held.items())}, or one value everywhere); choose another "
        "training.select_by, or raise training.validation_samples"
    )


def _without_headline(results: Mapping[str, Any], tasks: Mapping[str, Task]) -> list[str]:
    """The tasks whose headline metric is undefined."""
    return [
        name
        for name in tasks
        if name not in results or results[name]["metrics"][HEADLINE[results[name]["kind"]]] is None
    ]


def _perfect(samples: Sequence[Sample], tasks: Mapping[str, Task]) -> dict[str, Any]:
    """The metrics of a model that is always right."""
    results = {}
    for name, task in tasks.items():
        own = [s for s in samples if s.task == name]
        if not own:
            continue
        if task.kind == CLASSIFICATION:
            truth: list[float] = [task.labels.index(str(s.label)) for s in own]
            certain = np.eye(len(task.labels))[np.array(truth, dtype=int)]
            results[name] = evaluate_task(task, truth, truth, certain.tolist())
        else:
            truth = [float(s.value or 0.0) for s in own]
            certain = np.eye(len(task.values))[[task.nearest(value) for value in truth]]
            results[name] = evaluate_task(task, truth, truth, certain.tolist())
    return results


def selection_score(results: Mapping[str, Any], select_by: str) -> float:
    """The number a validation is judged by, higher is better; an undefined metric counts as the worst.

    Args:
        results: of :func:`egmf_dist.inference.score.evaluate_predictions`.
        select_by: ``TASK.METRIC``, or empty for the mean of weighted F1 and Corr over tasks.
    """
    if select_by:
        name, metric = select_by.split(".")
        value = results[name]["metrics"][metric] if name in results else None
        if value is None:
            return UNDEFINED
        return -float(value) if metric in LOWER_IS_BETTER else float(value)
    main = [result["metrics"][HEADLINE[result["kind"]]] for result in results.values()]
    if all(value is None for value in main):
        return UNDEFINED
    return float(np.mean([-1.0 if value is None else value for value in main]))
