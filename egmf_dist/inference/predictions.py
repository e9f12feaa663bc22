"""A sample's answer out of the probabilities of all legal ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from egmf_dist.data.words import words
from egmf_dist.errors import EgmfError
from egmf_dist.inference.scorer import Scores
from egmf_dist.metrics.calibration import Calibration
from egmf_shards import CLASSIFICATION, Sample, Task

Prediction = dict[str, Any]
"""One sample's answer, its ``probabilities`` as a float64 array over the legal answers; :func:`written` rounds them."""
DECIMALS = 6
"""Of the numbers in written predictions."""


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
            **_facts(sample),
        }
        if cut[b]:
            row["prompt_tokens_cut"] = cut[b]
        if diagnostics:
            row["gates"] = {
                name: dict(zip(columns[name], value[b].tolist(), strict=True)) for name, value in diagnostics.items()
            }
        rows.append(row)
    return rows


def _facts(sample: Sample) -> dict[str, Any]:
    """What a result is grouped by, and shown with."""
    facts: dict[str, Any] = {
        "text": sample.text,
        "words": len(words(sample.text)),
        "modalities": list(sample.modalities),
        "turn": sample.turn,
    }
    facts |= {name: value for name, value in (("speaker", sample.speaker), ("dialogue", sample.dialogue)) if value}
    return facts


def calibrations_of(description: Mapping[str, Any]) -> dict[str, Calibration]:
    """By task what was fitted on validation; empty for an adapter of before."""
    return {name: Calibration.from_json(data) for name, data in (description.get("calibration") or {}).items()}


def note_without(rows: Sequence[Prediction], without_each: Mapping[str, Sequence[Prediction]]) -> None:
    """Put under ``without`` of each row what is answered where one modality is taken away, by its name.

    Args:
        rows: the predictions, to be changed.
        without_each: by modality the predictions without it, of the same samples in the same order.
    """
    for modality, scored in without_each.items():
        for row, other in zip(rows, scored, strict=True):
            row.setdefault("without", {})[modality] = other["predicted"]


def written(row: Prediction, task: Task, calibration: Calibration | None) -> dict[str, Any]:
    """A prediction as its JSON line: metrics are computed from the numbers themselves, and only this rounds them.

    With a calibration a number has its ``calibrated`` value and ``interval`` as well, a class its ``calibrated``
    probability.
    """
    p = row["probabilities"]
    out = row | {"probabilities": np.round(p, DECIMALS).tolist()}
    if calibration is not None and task.kind == CLASSIFICATION:
        out["calibrated"] = round(float(calibration.probabilities(p).max()), DECIMALS)
    elif calibration is not None:
        out["calibrated"] = round(float(calibration.values(task, p)), DECIMALS)
        out["interval"] = np.round(calibration.intervals(task, p), DECIMALS).tolist()
    if "gates" in row:
        out["gates"] = {
            level: {name: round(weight, DECIMALS) for name, weight in weights.items()}
            for level, weights in row["gates"].items()
        }
    return out
