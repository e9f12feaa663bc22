"""How answers are judged: exactly the conventions that published figures use; nothing undefined passes as a number.

* **Classes** (MELD, CHERMA): accuracy, weighted F1 (the headline), macro F1, expected calibration error, Brier score.
* **mosei** (MOSI, MOSEI): MAE and Corr on the numbers as they are; Acc-7/5/3 after clipping to +-3/2/1 and rounding
  half to even; ``has0`` (negative or not, every sample) and ``non0`` (negative or positive, where the truth is not 0).
* **Every task**: the mean negative log-likelihood of the right legal answer (of a number: the nearest), in nats.
* **sims** (CH-SIMS, SIMS-V2): truth and prediction are clipped to [-1, 1] before everything. Half-open bins with the
  upper edge inside, so 0 is *negative* in Acc-2, the opposite of ``has0``. ``acc2_weak`` is Acc-2 where
  abs(truth) <= 0.4. ``weighted_f1`` is the F1 of Acc-2. ``has0`` and ``non0`` are given as well: both zero conventions
  stand in every result.

Invariants: a metric that is undefined (Corr of constant predictions, a score of an empty subset) is None, never NaN
and never 0. The truth is always scikit-learn's first argument; an older MMSA swapped them, so some published SIMS F1
are too high.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, mean_absolute_error, r2_score

from egmf_dist.errors import EgmfError
from egmf_dist.metrics.calibration import negative_log_likelihood, right_answer
from egmf_dist.metrics.collapse import collapse
from egmf_shards import CLASSIFICATION, CONVENTIONS, REGRESSION, Task

Metrics = dict[str, float | None]

HEADLINE = {CLASSIFICATION: "weighted_f1", REGRESSION: "corr"}
"""The one metric of each kind of task that tables show and that selects an adapter by default."""
LOWER_IS_BETTER = ("mae", "ece", "nll", "brier")

CALIBRATION_BINS = 15
SIMS_WEAK = 0.4
# Upper edges of the SIMS bins but the last; a number on an edge belongs to the bin below it.
SIMS_EDGES = {"acc2": [0.0], "acc3": [-0.1, 0.1], "acc5": [-0.7, -0.1, 0.1, 0.7]}
# Numbers are snapped to this many decimals before they are put into bins: a 0.1 that has been through float32 is
# 0.10000000149 and would land above the edge it stands on. MAE, Corr and R2 use the numbers as they are.
_DECIMALS = 6
# Predictions closer together than this are constant: their correlation would be that of rounding errors.
_CONSTANT = 1e-9


def evaluate_task(
    task: Task,
    truth: Sequence[float],
    predicted: Sequence[float],
    probabilities: Sequence[Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Everything a result reports about one task.

    Args:
        task: what was asked.
        truth: one class index into ``task.labels`` (classification) or one number (regression) per sample.
        predicted: the model's, in the same order.
        probabilities: for every sample one probability per legal answer.

    Returns:
        ``kind``, ``n``, ``metrics``, ``distinct_predictions``, ``unparsed`` (0: answers are scored, not parsed),
        ``collapsed`` (a sentence, or None) and for a classification ``labels`` and ``confusion`` (rows: truth,
        columns: predicted).

    Raises:
        EgmfError: lengths differ, a class index is outside the labels, a number is not finite.
    """
    result: dict[str, Any] = {"kind": task.kind, "n": len(truth)}
    try:
        if task.kind == CLASSIFICATION:
            true_classes, classes = [int(t) for t in truth], [int(p) for p in predicted]
            result["metrics"] = score_classification(task.labels, true_classes, classes, probabilities) | _likelihood(
                task, truth, probabilities
            )
        else:
            # A regression whose manifest leaves the convention at its default is scored as MOSEI's.
            result["metrics"] = score_regression(task.convention, truth, predicted) | _likelihood(
                task, truth, probabilities
            )
    except EgmfError as error:
        raise EgmfError(f"task {task.name!r}: {error}") from error
    result["distinct_predictions"] = len(set(_snapped(predicted).tolist()))
    result["unparsed"] = 0
    result["collapsed"] = collapse(task, truth, predicted)
    if task.kind == CLASSIFICATION:
        indices = range(len(task.labels))
        result["labels"] = list(task.labels)
        # scikit-learn refuses an empty truth here.
        empty = np.zeros((len(indices), len(indices)), dtype=int)
        matrix = confusion_matrix(true_classes, classes, labels=indices) if len(true_classes) else empty
        result["confusion"] = matrix.tolist()
    return result


def as_number(task: Task, answer: str | float) -> float:
    """A truth or a prediction as metrics take it: a label by its index, a number as it is.

    Raises:
        EgmfError: it is no label of the task.
    """
    if task.kind != CLASSIFICATION:
        return float(answer)
    if answer not in task.labels:
        raise EgmfError(f"task {task.name!r} has no label {answer!r}; it has {', '.join(task.labels)}")
    return float(task.labels.index(str(answer)))


def metric_names(task: Task) -> tuple[str, ...]:
    """The metrics a task is reported with."""
    if task.kind == CLASSIFICATION:
        return (*score_classification(task.labels, [], [], []), "nll")
    return (*score_regression(task.convention, [], []), "nll")


def score_classification(
    labels: Sequence[str],
    truth: Sequence[int],
    predicted: Sequence[int],
    probabilities: Sequence[Sequence[float]] | None = None,
) -> Metrics:
    """``accuracy``, ``weighted_f1``, ``macro_f1`` and, given probabilities, ``ece`` and ``brier``.

    ``brier`` is the mean over samples of the squared distance between the probabilities and the truth as a one-hot
    vector, summed over labels (Brier 1950): from 0 to 2.

    Macro F1 is the mean over the classes that occur in the truth or the predictions (scikit-learn's own rule).

    Args:
        labels: the label keys; a class is its index here.
        truth: one class index per sample.
        predicted: one class index per sample.
        probabilities: [samples, labels], each row summing to 1.

    Raises:
        EgmfError: lengths differ, a class index is outside the labels, a probability is not one.
    """
    _check_lengths(truth, predicted)
    for name, classes in (("truth", truth), ("predicted", predicted)):
        wrong = next((c for c in classes if not 0 <= c < len(labels)), None)
        if wrong is not None:
            raise EgmfError(f"{name} holds class {wrong}; with {len(labels)} labels it must be 0 to {len(labels) - 1}")
    keys = ("accuracy", "weighted_f1", "macro_f1") + (() if probabilities is None else ("ece", "brier"))
    if len(truth) == 0:
        return dict.fromkeys(keys)
    metrics: Metrics = {
        "accuracy": float(accuracy_score(truth, predicted)),
        "weighted_f1": float(f1_score(truth, predicted, average="weighted", zero_division=0.0)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0.0)),
    }
    if probabilities is not None:
        bins = reliability(len(labels), truth, predicted, probabilities)
        metrics["ece"] = sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / len(truth)
        metrics["brier"] = float(
            np.square(np.asarray(probabilities) - np.eye(len(labels))[np.asarray(truth)]).sum(1).mean()
        )
    return metrics


def score_regression(convention: str, truth: Sequence[float], predicted: Sequence[float]) -> Metrics:
    """The metrics of a convention, for one number per sample.

    Args:
        convention: ``mosei`` (also what ``classes`` means for a regression) or ``sims``.
        truth: the data set's numbers.
        predicted: the model's, in the same order.

    Raises:
        EgmfError: the convention is unknown, lengths differ, a number is not finite.
    """
    if convention not in CONVENTIONS:
        raise EgmfError(f"convention is {convention!r}; it must be one of {', '.join(CONVENTIONS)}")
    _check_lengths(truth, predicted)
    y, p = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    for name, numbers in (("truth", y), ("predicted", p)):
        finite = np.isfinite(numbers)
        if not finite.all():
            first = int(np.argmin(finite))
            raise EgmfError(f"{name} holds {numbers[first]} at sample {first}; finite numbers are needed")
    return _score_sims(y, p) if convention == "sims" else _score_mosei(y, p)


def _score_mosei(y: np.ndarray, p: np.ndarray) -> Metrics:
    metrics: Metrics = {"mae": _mae(y, p), "corr": _corr(y, p)}
    for name, bound in (("acc3", 1.0), ("acc5", 2.0), ("acc7", 3.0)):
        # np.round rounds half to even, as the published figures' code does.
        true_grade, grade = (np.round(np.clip(_snapped(numbers), -bound, bound)) for numbers in (y, p))
        metrics[name] = _accuracy(true_grade, grade)
    return metrics | _both_zero_conventions(y, p)


def _score_sims(y: np.ndarray, p: np.ndarray) -> Metrics:
    y, p = np.clip(y, -1.0, 1.0), np.clip(p, -1.0, 1.0)
    metrics: Metrics = {"mae": _mae(y, p), "corr": _corr(y, p), "r2": _r2(y, p)}
    bins = {name: (_bins(y, edges), _bins(p, edges)) for name, edges in SIMS_EDGES.items()}
    metrics |= {name: _accuracy(true_bins, predicted_bins) for name, (true_bins, predicted_bins) in bins.items()}
    weak = np.abs(_snapped(y)) <= SIMS_WEAK
    metrics["acc2_weak"] = _accuracy(bins["acc2"][0][weak], bins["acc2"][1][weak])
    metrics["weighted_f1"] = _weighted_f1(*bins["acc2"])
    return metrics | _both_zero_conventions(y, p)


def _both_zero_conventions(y: np.ndarray, p: np.ndarray) -> Metrics:
    y, p = _snapped(y), _snapped(p)
    signed = y != 0
    true_sign, predicted_sign = y[signed] > 0, p[signed] > 0
    return {
        "has0_acc2": _accuracy(y >= 0, p >= 0),
        "has0_f1": _weighted_f1(y >= 0, p >= 0),
        "non0_acc2": _accuracy(true_sign, predicted_sign),
        "non0_f1": _weighted_f1(true_sign, predicted_sign),
    }


def _bins(numbers: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """The bin of each number: bin i is (edge i-1, edge i]."""
    return np.digitize(_snapped(numbers), edges, right=True)


def _snapped(numbers: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.round(np.asarray(numbers, dtype=np.float64), _DECIMALS)


def _mae(y: np.ndarray, p: np.ndarray) -> float | None:
    return float(mean_absolute_error(y, p)) if len(y) else None


def _r2(y: np.ndarray, p: np.ndarray) -> float | None:
    """Coefficient of determination; undefined where the truth is constant."""
    return float(r2_score(y, p)) if len(y) > 1 and np.ptp(y) > _CONSTANT else None


def _corr(y: np.ndarray, p: np.ndarray) -> float | None:
    """Pearson correlation; undefined where either side is constant."""
    if len(y) < 2 or np.ptp(y) <= _CONSTANT or np.ptp(p) <= _CONSTANT:
        return None
    return float(np.corrcoef(y, p)[0, 1])


def _accuracy(truth: np.ndarray, predicted: np.ndarray) -> float | None:
    return float(np.mean(truth == predicted)) if len(truth) else None


def _weighted_f1(truth: np.ndarray, predicted: np.ndarray) -> float | None:
    return float(f1_score(truth, predicted, average="weighted", zero_division=0.0)) if len(truth) else None


def _likelihood(task: Task, truth: Sequence[float], probabilities: Sequence[Sequence[float]] | None) -> Metrics:
    if probabilities is None or not len(truth):
        return {"nll": None}
    right = np.array([right_answer(task, t) for t in truth])
    return {"nll": negative_log_likelihood(np.asarray(probabilities, dtype=np.float64), right)}


def reliability(
    label_count: int, truth: Sequence[int], predicted: Sequence[int], probabilities: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """How often answers of a confidence are right, in bins (i/15, (i+1)/15]; their mean gap, weighted by their samples,
    is the expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3).

    Returns:
        For each bin with samples ``low``, ``high``, ``n``, ``confidence`` (mean) and ``accuracy``.

    Raises:
        EgmfError: a probability is not one, or they are not samples by labels.
    """
    table = np.asarray(probabilities, dtype=np.float64)
    if table.shape != (len(truth), label_count):
        raise EgmfError(
            f"probabilities have the shape {table.shape}; it must be ({len(truth)}, {label_count}), samples by labels"
        )
    if not np.isfinite(table).all() or np.abs(table.sum(axis=1) - 1).max() > 1e-3:
        raise EgmfError("the probabilities of a sample do not sum to 1")
    confidence = table[np.arange(len(truth)), np.asarray(predicted)]
    right = np.asarray(truth) == np.asarray(predicted)
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    place = np.digitize(_snapped(confidence), edges, right=True)
    return [
        {
            "low": number / CALIBRATION_BINS,
            "high": (number + 1) / CALIBRATION_BINS,
            "n": int((place == number).sum()),
            "confidence": float(confidence[place == number].mean()),
            "accuracy": float(right[place == number].mean()),
        }
        for number in np.unique(place).tolist()
    ]


def _check_lengths(truth: Sequence[float], predicted: Sequence[float]) -> None:
    if len(truth) != len(predicted):
        raise EgmfError(f"{len(truth)} true and {len(predicted)} predicted answers; one of each per sample is needed")
