"""Score samples: the probability of every legal answer, the answer, and what the gate weighed.

Validation during training, evaluation and prediction all come through :func:`score_samples`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import nn

from egmf_dist import distributed
from egmf_dist.data.collate import Collator
from egmf_dist.errors import EgmfError
from egmf_dist.model.egmf import Scores
from egmf_dist.tasks.metrics import HEADLINE, LOWER_IS_BETTER, evaluate_task, metric_names
from egmf_shards import Sample, ShardSet, Task, sequential
from egmf_shards.sample import MODALITIES
from egmf_shards.task import CLASSIFICATION

Prediction = dict[str, Any]


def score_samples(
    model: nn.Module,
    shards: ShardSet,
    collator: Collator,
    batch_size: int,
    indices: Sequence[int] | None = None,
    remove: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Score samples, shared out over the ranks; every rank must call this.

    Each sample is scored once: ranks run the same number of batches, and what fills the last ones has weight 0 and is
    dropped.

    Args:
        model: EGMF, or the module inside a DeepSpeed engine, in evaluation mode.
        shards: where the samples are.
        collator: the run's.
        batch_size: samples per forward on one rank.
        indices: which samples; all by default.
        remove: modalities to take away from every sample.
        progress: called on every rank with batches done and their number.

    Returns:
        On rank 0 one prediction per sample in the order of ``indices``; elsewhere an empty list.
    """
    chosen = range(len(shards)) if indices is None else indices
    plan = sequential(len(chosen), distributed.rank(), distributed.world_size(), batch_size)
    device = distributed.device()
    mine: list[tuple[int, Prediction]] = []
    for done, batch_plan in enumerate(plan, start=1):
        with distributed.failing_together():
            samples = shards.read([chosen[place] for place in batch_plan.indices]).samples
            for modality in remove:
                samples = [s.without(modality) for s in samples]
            batch = collator(samples, batch_plan.weights, score=True)
        batch = batch.to(device)
        with torch.no_grad():
            scores = model(batch, mode="score")
        rows = predictions(samples, collator.tasks, scores, model_experts(model))
        mine.extend(
            (place, row) for place, row, w in zip(batch_plan.indices, rows, batch_plan.weights, strict=True) if w > 0
        )
        if progress is not None:
            progress(done, len(plan))
    gathered = distributed.gather_objects(mine)
    if gathered is None:
        return []
    together = sorted((pair for part in gathered for pair in part), key=itemgetter(0))
    return [row for _, row in together]


def model_experts(model: nn.Module) -> list[str]:
    """Names of the enabled experts, in the gate's order."""
    fusion = getattr(model, "fusion", None)
    return [] if fusion is None else list(fusion.experts)


def predictions(
    samples: Sequence[Sample], tasks: Mapping[str, Task], scores: Scores, experts: Sequence[str]
) -> list[Prediction]:
    """One JSON-able prediction per sample.

    A classification answers with the likeliest legal answer; a regression with the expected value over the legal
    numbers under their renormalised probabilities.
    """
    probability_BC = scores.log_p_BC.double().softmax(-1).cpu().numpy()
    rows = []
    for b, sample in enumerate(samples):
        task = tasks[sample.task]
        answers = task.legal_answers(sample.language)
        p = probability_BC[b, : len(answers)]
        likeliest = int(p.argmax())
        row: Prediction = {
            "id": sample.id,
            "task": sample.task,
            "language": sample.language,
            "truth": sample.label if task.kind == CLASSIFICATION else sample.value,
            "predicted": task.labels[likeliest] if task.kind == CLASSIFICATION else float(p @ np.array(task.values)),
            "answer": answers[likeliest],
            "probabilities": [round(float(v), 6) for v in p],
        }
        if scores.expert_weight_BE is not None and scores.modality_weight_BM is not None:
            row["gates"] = {
                "experts": dict(zip(experts, rounded(scores.expert_weight_BE[b]), strict=True)),
                "modalities": dict(zip(MODALITIES, rounded(scores.modality_weight_BM[b]), strict=True)),
            }
        rows.append(row)
    return rows


def rounded(row: torch.Tensor) -> list[float]:
    """Weights as JSON holds them."""
    return [round(float(v), 6) for v in row]


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
        probabilities = None
        if task.kind == CLASSIFICATION:
            probabilities = [r["probabilities"] for r in own]
            truth = [task.labels.index(r["truth"]) for r in own]
            predicted = [task.labels.index(r["predicted"]) for r in own]
        else:
            truth = [r["truth"] for r in own]
            predicted = [r["predicted"] for r in own]
        results[name] = evaluate_task(task, truth, predicted, probabilities)
    return results


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


def selection_score(results: Mapping[str, Any], select_by: str) -> float:
    """The number a validation is judged by, higher is better; an undefined metric counts as the worst.

    Args:
        results: of :func:`evaluate_predictions`.
        select_by: ``TASK.METRIC``, or empty for the mean of weighted F1 and Corr over tasks.
    """
    if select_by:
        name, metric = select_by.split(".")
        value = results[name]["metrics"][metric] if name in results else None
        if value is None:
            return -1e9
        return -float(value) if metric in LOWER_IS_BETTER else float(value)
    main = [result["metrics"][HEADLINE[result["kind"]]] for result in results.values()]
    return float(np.mean([-1.0 if value is None else value for value in main]))
