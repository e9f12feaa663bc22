"""Score samples: the probability of every legal answer, the answer, and what the gate weighed.

Validation during training, evaluation and prediction all come through :func:`score_samples`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
from torch import nn

from egmf_dist import distributed
from egmf_dist.errors import EgmfError
from egmf_dist.inference.predictions import Prediction, predictions
from egmf_dist.inference.scorer import Scorer, score
from egmf_dist.metrics.by_task import as_number, evaluate_task
from egmf_dist.metrics.calibration import Calibration, fit
from egmf_dist.metrics.detail import detail
from egmf_shards import Sample, ShardSet, Task, sequential

T = TypeVar("T")


def score_samples(
    model: nn.Module,
    shards: ShardSet,
    scorer: Scorer,
    batch_size: int,
    indices: Sequence[int] | None = None,
    remove: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
    change: Callable[[int, Sample], Sample] | None = None,
) -> list[Prediction]:
    """Score samples, shared out over the ranks; every rank must call this.

    Each sample is scored once: ranks run the same number of batches, and what fills the last ones has weight 0 and is
    dropped.

    Args:
        model: EGMF, or the module inside a DeepSpeed engine, in evaluation mode.
        shards: where the samples are.
        scorer: the run's.
        batch_size: samples per forward on one rank.
        indices: which samples; all by default.
        remove: modalities to take away from every sample.
        progress: called on every rank with batches done and their number.
        change: what becomes of each sample by its number, once modalities are taken away.

    Returns:
        On rank 0 one prediction per sample in the order of ``indices``; elsewhere an empty list.
    """

    def answered(samples: Sequence[Sample], weights: Sequence[float]) -> list[Prediction]:
        scores, cut = score(scorer, model, samples, weights)
        return predictions(samples, scorer.collator.tasks, scores, getattr(model, "diagnostics", {}), cut)

    def given(number: int, sample: Sample) -> Sample:
        left = without(sample, remove)
        return left if change is None else change(number, left)

    chosen = range(len(shards)) if indices is None else indices
    return share_out(shards, chosen, batch_size, given, answered, progress)


def without(sample: Sample, modalities: Sequence[str]) -> Sample:
    """The sample with several modalities absent."""
    for modality in modalities:
        sample = sample.without(modality)
    return sample


def share_out(
    shards: ShardSet,
    numbers: Sequence[int],
    batch_size: int,
    given: Callable[[int, Sample], Sample],
    answered: Callable[[Sequence[Sample], Sequence[float]], Sequence[T]],
    progress: Callable[[int, int], None] | None = None,
) -> list[T]:
    """Read samples and do something with each, batch by batch, shared out over the ranks; every rank must call this.

    Args:
        shards: where the samples are.
        numbers: which.
        batch_size: samples at once on one rank.
        given: what becomes of each sample by its number.
        answered: one result for each sample of a batch, with the samples' weights; what has weight 0 fills a batch and
            its result is dropped.
        progress: called with batches done and their number.

    Returns:
        On rank 0 one result a sample, in their order; elsewhere an empty list.
    """
    plan = sequential(len(numbers), distributed.rank(), distributed.world_size(), batch_size)
    mine: list[tuple[int, T]] = []
    for done, batch in enumerate(plan, start=1):
        with distributed.failing_together():
            own = [numbers[place] for place in batch.indices]
            samples = [given(*pair) for pair in zip(own, shards.read(own).samples, strict=True)]
        results = zip(batch.indices, answered(samples, batch.weights), batch.weights, strict=True)
        mine.extend((place, result) for place, result, weight in results if weight > 0)
        if progress is not None:
            progress(done, len(plan))
    gathered = distributed.gather_objects(mine)
    if gathered is None:
        return []
    return [result for _, result in sorted((pair for part in gathered for pair in part), key=itemgetter(0))]


def detailed(
    rows: Sequence[Prediction], tasks: Mapping[str, Task], calibrations: Mapping[str, Calibration]
) -> dict[str, Any]:
    """:func:`evaluate_predictions`, and :func:`egmf_dist.metrics.detail.detail` of each task."""
    results = evaluate_predictions(rows, tasks)
    for name, result in results.items():
        own = [r for r in rows if r["task"] == name]
        truth, predicted, _ = columns(tasks[name], own)
        result |= detail(tasks[name], own, truth, predicted, calibrations.get(name))
    return results


def fitted(rows: Sequence[Prediction], tasks: Mapping[str, Task]) -> dict[str, Any]:
    """The calibration of each task, as an adapter keeps it; tasks with too few predictions are left out."""
    found = {}
    for name, task in tasks.items():
        truth, _, probabilities = columns(task, [r for r in rows if r["task"] == name])
        calibration = fit(task, truth, probabilities)
        if calibration is not None:
            found[name] = calibration.to_json()
    return found


def columns(task: Task, rows: Sequence[Prediction]) -> tuple[list[float], list[float], list[Any]]:
    """Truth and prediction as numbers (a class is its index), and the probabilities, of one task's predictions."""
    truth, predicted = ([as_number(task, row[name]) for row in rows] for name in ("truth", "predicted"))
    return truth, predicted, [r["probabilities"] for r in rows]


def evaluate_predictions(rows: Sequence[Prediction], tasks: Mapping[str, Task]) -> dict[str, Any]:
    """Metrics of each task that has predictions.

    Raises:
        EgmfError: a sample's scores are not finite.
    """
    diverged = next((r["id"] for r in rows if not np.isfinite(r["probabilities"]).all()), None)
    if diverged is not None:
        raise EgmfError(
            f"sample {diverged}: its scores are not finite: the model has diverged; "
            "train again with a lower training.learning_rate"
        )
    results = {}
    for name, task in tasks.items():
        own = [r for r in rows if r["task"] == name]
        if not own:
            continue
        results[name] = evaluate_task(task, *columns(task, own))
    return results
