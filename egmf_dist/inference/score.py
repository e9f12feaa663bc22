"""Score samples: the probability of every legal answer, the answer, and what the gate weighed.

Validation during training, evaluation and prediction all come through :func:`score_samples`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from torch import nn

from egmf_dist import distributed
from egmf_dist.errors import EgmfError
from egmf_dist.inference.scorer import Scorer, Scores, score
from egmf_dist.metrics.by_task import evaluate_task
from egmf_shards import CLASSIFICATION, Sample, ShardSet, Task, sequential

Prediction = dict[str, Any]
"""One sample's answer, its ``probabilities`` as a float64 array over the legal answers; :func:`written` rounds them."""
DECIMALS = 6
"""Of the numbers in written predictions."""


def score_samples(
    model: nn.Module,
    shards: ShardSet,
    scorer: Scorer,
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
        scorer: the run's.
        batch_size: samples per forward on one rank.
        indices: which samples; all by default.
        remove: modalities to take away from every sample.
        progress: called on every rank with batches done and their number.

    Returns:
        On rank 0 one prediction per sample in the order of ``indices``; elsewhere an empty list.
    """
    chosen = range(len(shards)) if indices is None else indices
    plan = sequential(len(chosen), distributed.rank(), distributed.world_size(), batch_size)
    mine: list[tuple[int, Prediction]] = []
    for done, batch_plan in enumerate(plan, start=1):
        with distributed.failing_together():
            samples = shards.read([chosen[place] for place in batch_plan.indices]).samples
            for modality in remove:
                samples = [s.without(modality) for s in samples]
        scores, cut = score(scorer, model, samples, batch_plan.weights)
        rows = predictions(samples, scorer.collator.tasks, scores, getattr(model, "diagnostics", {}), cut)
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


def predictions(
    samples: Sequence[Sample],
    tasks: Mapping[str, Task],
    scores: Scores,
    columns: Mapping[str, Sequence[str]],
    cut: Sequence[int],
) -> list[Prediction]:
    """One prediction per sample.

    A classification answers with the likeliest legal answer; a regression with the expected value over the legal
    numbers under their renormalised probabilities.

    Args:
        samples: what was scored.
        tasks: the run's.
        scores: of the samples.
        columns: for each of the fusion's diagnostics the names of its columns.
        cut: per sample, how many tokens its prompt lost to the budget.
    """
    probability_BC = scores.log_p_BC.double().softmax(-1).cpu().numpy()
    diagnostics = {name: value.double().cpu().numpy() for name, value in scores.diagnostics.items()}
    for name, value in diagnostics.items():
        named = len(columns.get(name, ()))
        if value.shape[1:] != (named,):
            raise EgmfError(
                f"config: model.fusion gives the diagnostic {name!r} of shape {list(value.shape)}; its `diagnostics` "
                f"name {named} columns of it, and it must be [samples, columns]"
            )
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
            "probabilities": p,
        }
        if cut[b]:
            row["prompt_tokens_cut"] = cut[b]
        if diagnostics:
            row["gates"] = {
                name: dict(zip(columns[name], value[b].tolist(), strict=True)) for name, value in diagnostics.items()
            }
        rows.append(row)
    return rows


def written(row: Prediction) -> dict[str, Any]:
    """A prediction as its JSON line: metrics are computed from the numbers themselves, and only this rounds them."""
    out = row | {"probabilities": np.round(row["probabilities"], DECIMALS).tolist()}
    if "gates" in row:
        out["gates"] = {
            level: {name: round(weight, DECIMALS) for name, weight in weights.items()}
            for level, weights in row["gates"].items()
        }
    return out


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
