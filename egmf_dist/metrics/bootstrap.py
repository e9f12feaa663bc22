"""How sure a figure is: 95 % intervals by the bootstrap, and whether two runs differ.

Whole dialogues are drawn, because the utterances of one are alike (cluster bootstrap, Davison & Hinkley 1997, section
3.8); a sample without a dialogue is drawn alone. Each of :data:`RESAMPLES` draws is a weight a sample, so that a metric
is computed for all draws by a few matrix products.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from egmf_dist.errors import EgmfError
from egmf_dist.metrics.by_task import as_number
from egmf_shards import CLASSIFICATION, Task

RESAMPLES = 1000
COVERAGE = 0.95
_SEED = 20260
_CONSTANT = 1e-12
_BLOCK = 2**23
"""Weights in memory at once: 64 MiB."""


FEWEST_UNITS = 2
"""With fewer units every draw is the sample itself, and says nothing of how sure a figure is."""


def units_of(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What each prediction is drawn with: its dialogue, or itself alone. Languages name theirs alike now and then."""
    return [
        (row.get("language"), "dialogue", row["dialogue"])
        if row.get("dialogue")
        else (row.get("language"), "id", row["id"])
        for row in rows
    ]


def draws(units: Sequence[Any], seed: int = _SEED) -> Iterator[np.ndarray]:
    """How often each sample is drawn, float64 ``[draws, samples]``: :data:`RESAMPLES` draws, a block of them at a time.

    Args:
        units: for each sample what is drawn with it: its dialogue, or a name of its own.
        seed: of the draws.
    """
    _, number = np.unique(np.array([str(unit) for unit in units]), return_inverse=True)
    count, rng = int(number.max()) + 1, np.random.default_rng(seed)
    size = max(1, min(RESAMPLES, _BLOCK // len(units)))
    for first in range(0, RESAMPLES, size):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(size, RESAMPLES - first))
        yield drawn[:, number].astype(np.float64)


def resampled(task: Task, truth: np.ndarray, predicted: np.ndarray, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """The headline metrics of every draw, ``[draws]`` each; NaN where one is undefined.

    Args:
        task: what was asked.
        truth: class indices or numbers ``[samples]``.
        predicted: the model's.
        drawn: a block of :func:`draws`.

    Returns:
        ``accuracy``, ``weighted_f1``, ``macro_f1``; of a regression ``mae``, ``corr``, ``has0_acc2``, ``non0_acc2``; as
        :mod:`.by_task` defines them.
    """
    if task.kind == CLASSIFICATION:
        return _classes(len(task.labels), truth.astype(int), predicted.astype(int), drawn)
    if task.convention == "sims":
        truth, predicted = np.clip(truth, -1, 1), np.clip(predicted, -1, 1)
    return _numbers(truth, predicted, drawn)


def intervals(
    task: Task, truth: Sequence[float], predicted: Sequence[float], units: Sequence[Any]
) -> dict[str, list[float] | None]:
    """For each headline metric the interval that holds :data:`COVERAGE` of its draws; None where it is undefined, and
    where there are fewer than :data:`FEWEST_UNITS` units."""
    if not len(truth):
        return {}
    y, p = np.asarray(truth, float), np.asarray(predicted, float)
    if len(set(map(str, units))) < FEWEST_UNITS:
        return dict.fromkeys(resampled(task, y, p, np.ones((1, len(y)))))
    found = _joined([resampled(task, y, p, drawn) for drawn in draws(units)])
    return {name: between(values) for name, values in found.items()}


def _joined(blocks: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def between(values: np.ndarray) -> list[float] | None:
    """The percentile interval; draws in which the metric is undefined are left out."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return [float(low), float(high)]


def paired(
    task: Task, truth: Sequence[float], first: Sequence[float], second: Sequence[float], units: Sequence[Any]
) -> dict[str, dict[str, Any]]:
    """The difference of two models on the same samples, first minus second, metric by metric.

    Returns:
        For each metric ``difference`` (on the samples as they are), ``interval``, and ``p``: twice the share of the
        draws that lie on the other side of zero, at most 1. Both are None with fewer than :data:`FEWEST_UNITS` units.
    """
    y, answers = np.asarray(truth, float), [np.asarray(p, float) for p in (first, second)]
    blocks = [[resampled(task, y, p, drawn) for p in answers] for drawn in draws(units)]
    both = [_joined([block[model] for block in blocks]) for model in (0, 1)]
    here = [resampled(task, y, p, np.ones((1, len(y)))) for p in answers]
    few = len(set(map(str, units))) < FEWEST_UNITS
    result: dict[str, dict[str, Any]] = {}
    for name, own in both[0].items():
        difference = own - both[1][name]
        known = difference[np.isfinite(difference)]
        if not len(known):
            continue
        rarer = min((known <= 0).sum(), (known >= 0).sum())
        result[name] = {
            "difference": float(here[0][name][0] - here[1][name][0]),
            "interval": None if few else between(known),
            "p": None if few else float(min(1.0, 2 * (rarer + 1) / (len(known) + 1))),
        }
    return result


def _classes(labels: int, truth: np.ndarray, predicted: np.ndarray, drawn: np.ndarray) -> dict[str, np.ndarray]:
    whole = drawn.sum(1)
    true_LR = np.stack([drawn @ (truth == label) for label in range(labels)])
    said_LR = np.stack([drawn @ (predicted == label) for label in range(labels)])
    both_LR = np.stack([drawn @ ((truth == label) & (predicted == label)) for label in range(labels)])
    sums = true_LR + said_LR
    f1_LR = np.divide(2 * both_LR, sums, out=np.zeros_like(sums), where=sums > 0)
    return {
        "accuracy": both_LR.sum(0) / whole,
        "weighted_f1": (f1_LR * true_LR).sum(0) / whole,
        "macro_f1": f1_LR.sum(0) / (sums > 0).sum(0),
    }


def _numbers(y: np.ndarray, p: np.ndarray, drawn: np.ndarray) -> dict[str, np.ndarray]:
    whole = drawn.sum(1)
    mean_y, mean_p = drawn @ y / whole, drawn @ p / whole
    # About the samples' own means: sums of squares of numbers far from zero would lose their digits.
    yc, pc = y - y.mean(), p - p.mean()
    shift_y, shift_p = mean_y - y.mean(), mean_p - p.mean()
    var_y = drawn @ (yc * yc) / whole - shift_y**2
    var_p = drawn @ (pc * pc) / whole - shift_p**2
    cov = drawn @ (yc * pc) / whole - shift_y * shift_p
    defined = (var_y > _CONSTANT) & (var_p > _CONSTANT)
    corr = np.full(len(drawn), np.nan)
    np.divide(cov, np.sqrt(np.maximum(var_y * var_p, 0)), out=corr, where=defined)
    mae = drawn @ np.abs(y - p) / whole
    y, p = np.round(y, 6), np.round(p, 6)
    signed = y != 0
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "mae": mae,
            "corr": corr,
            "has0_acc2": drawn @ ((y >= 0) == (p >= 0)) / whole,
            "non0_acc2": drawn @ (signed & ((y > 0) == (p > 0))) / (drawn @ signed),
        }


def compare(task: Task, first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Two runs' predictions of one task: what :func:`paired` says of the samples that both have.

    Args:
        task: what was asked.
        first: rows of ``predictions-SPLIT.jsonl``.
        second: the other run's.

    Returns:
        ``n`` and ``metrics``.

    Raises:
        EgmfError: the two say different things of what is right, or one answers with what is no label of the task.
    """
    theirs = _by_sample(task, second)
    pairs = [(row, theirs[key]) for key, row in _by_sample(task, first).items() if key in theirs]
    for ours, other in pairs:
        if ours["truth"] != other["truth"]:
            raise EgmfError(
                f"task {task.name!r}, sample {ours['id']}: one run's predictions hold the truth {ours['truth']!r}, the "
                f"other's {other['truth']!r}; evaluate both on the same data to compare them"
            )
    if not pairs:
        return {"n": 0, "metrics": {}}
    truth = [as_number(task, ours["truth"]) for ours, _ in pairs]
    mine, others = ([as_number(task, row["predicted"]) for row in rows] for rows in zip(*pairs, strict=True))
    return {"n": len(pairs), "metrics": paired(task, truth, mine, others, units_of([ours for ours, _ in pairs]))}


def _by_sample(task: Task, rows: Sequence[Mapping[str, Any]]) -> dict[Any, Mapping[str, Any]]:
    """A task's predictions by what a sample is told by; of one id in several folders the n-th is the n-th."""
    found: dict[Any, Mapping[str, Any]] = {}
    seen: Counter[Any] = Counter()
    for row in rows:
        if row["task"] == task.name:
            key = row.get("language"), row["id"]
            found[*key, seen[key]] = row
            seen[key] += 1
    return found
