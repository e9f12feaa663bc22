"""What an evaluation says of a task beside its metrics: how sure they are, where they hold, what calibration does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from egmf_dist.metrics.bootstrap import intervals, units_of
from egmf_dist.metrics.by_task import HEADLINE, evaluate_task, reliability, score_regression
from egmf_dist.metrics.calibration import Calibration, covered
from egmf_shards import CLASSIFICATION, Task

SMALLEST_GROUP = 10
"""A group of fewer samples is not reported: its figure would be chance."""
SPEAKERS = 12
"""The most speakers reported: those with the most samples."""
_POSITIONS = ((0, "first turn"), (1, "turns 2 to 4"), (4, "turns 5 to 9"), (9, "turn 10 and later"))


def detail(
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    truth: Sequence[float],
    predicted: Sequence[float],
    calibration: Calibration | None,
) -> dict[str, Any]:
    """Everything beside :func:`evaluate_task`'s result.

    Args:
        task: what was asked.
        rows: the task's predictions, with ``probabilities`` as arrays and the facts that they are grouped by.
        truth: a class index or a number for each.
        predicted: the model's.
        calibration: the adapter's; None where it has none.

    Returns:
        ``intervals`` (95 %, :mod:`.bootstrap`), ``groups``, of a classification ``reliability``, of a regression
        ``readings`` (metrics of the expected value, the median and the likeliest number) and ``coverage`` (how much of
        the truth lies in the uncalibrated 80 % intervals); with a calibration ``calibration`` and ``calibrated``, too.
    """
    p = np.array([row["probabilities"] for row in rows], dtype=np.float64)
    units = units_of(rows)
    found: dict[str, Any] = {
        "intervals": intervals(task, truth, predicted, units),
        "groups": _groups(task, rows, truth, predicted),
    }
    plain = Calibration()
    if task.kind == CLASSIFICATION:
        found["reliability"] = reliability(len(task.labels), [*map(int, truth)], [*map(int, predicted)], p.tolist())
    else:
        found["readings"] = readings(task, truth, p)
        found["coverage"] = _coverage(plain.intervals(task, p), truth)
    if calibration is None:
        return found
    found["calibration"] = calibration.to_json()
    scaled = calibration.probabilities(p)
    if task.kind == CLASSIFICATION:
        result = evaluate_task(task, truth, predicted, scaled.tolist())
        after: dict[str, Any] = {"metrics": result["metrics"]}
        after["reliability"] = reliability(
            len(task.labels), [*map(int, truth)], [*map(int, predicted)], scaled.tolist()
        )
    else:
        values = calibration.values(task, p)
        after = {"metrics": evaluate_task(task, truth, values.tolist(), scaled.tolist())["metrics"]}
        after["intervals"] = intervals(task, truth, values.tolist(), units)
        after["coverage"] = _coverage(calibration.intervals(task, p), truth)
    return found | {"calibrated": after}


def readings(task: Task, truth: Sequence[float], p: np.ndarray) -> dict[str, Any]:
    """The metrics of three numbers that one distribution over the legal numbers gives: its expected value, its median
    (the least legal number that half of the probability does not exceed), and the likeliest legal number."""
    values = np.asarray(task.values)
    half = (np.cumsum(p, -1) < 0.5 - 1e-12).sum(-1).clip(max=len(values) - 1)
    numbers = {"expected": p @ values, "median": values[half], "likeliest": values[p.argmax(-1)]}
    return {name: score_regression(task.convention, truth, own.tolist()) for name, own in numbers.items()}


def _coverage(ends: np.ndarray, truth: Sequence[float]) -> float | None:
    """The share of the truth that lies inside."""
    return float(covered(ends, np.asarray(truth)).mean()) if len(truth) else None


def _groups(
    task: Task, rows: Sequence[Mapping[str, Any]], truth: Sequence[float], predicted: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """The headline metric by language, speaker, length, modalities and place in the dialogue, where groups differ."""
    metric = HEADLINE[task.kind]
    lengths = [int(row.get("words", 0)) for row in rows]
    speakers = [str(row.get("speaker", "")) for row in rows]
    counts = Counter(filter(None, speakers))
    often = sorted(counts, key=lambda s: (-counts[s], s))[:SPEAKERS]
    name_of: dict[str, Callable[[int], str | None]] = {
        "language": lambda i: str(rows[i]["language"]),
        "speaker": lambda i: speakers[i] if speakers[i] in often else None,
        "length": _thirds(lengths),
        "modalities": lambda i: "+".join(rows[i].get("modalities", ())) or None,
        "position": lambda i: _position(rows[i]),
    }
    found: dict[str, dict[str, Any]] = {}
    for by, name in name_of.items():
        members: dict[str, list[int]] = {}
        for i in range(len(rows)):
            group = name(i)
            if group is not None:
                members.setdefault(group, []).append(i)
        kept = {group: own for group, own in members.items() if len(own) >= SMALLEST_GROUP}
        if len(kept) < 2:
            continue
        found[by] = {
            group: {
                "n": len(own),
                "metric": metric,
                "value": evaluate_task(task, [truth[i] for i in own], [predicted[i] for i in own])["metrics"][metric],
            }
            for group, own in sorted(kept.items(), key=lambda pair: min(_rank(by, rows[i], i) for i in pair[1]))
        }
    return found


def _rank(by: str, row: Mapping[str, Any], place: int) -> int:
    """Groups with an order stand in it, others as they first occur."""
    return {"length": int(row.get("words", 0)), "position": int(row.get("turn") or 0)}.get(by, place)


def _thirds(lengths: Sequence[int]) -> Callable[[int], str | None]:
    """Short, middle and long utterances, about a third each."""
    if not lengths:
        return lambda i: None
    shortest = min(lengths)
    low, high = (int(edge) for edge in np.quantile(lengths, [1 / 3, 2 / 3], method="lower"))

    def third(i: int) -> str | None:
        if lengths[i] > high:
            return f"{high + 1} words and more"
        first, last = (shortest, low) if lengths[i] <= low else (low + 1, high)
        return f"{first} to {last} words" if first < last else f"{last} word{'s' if last != 1 else ''}"

    return third


def _position(row: Mapping[str, Any]) -> str | None:
    turn = row.get("turn")
    if turn is None or not row.get("dialogue"):
        return None
    return next(name for first, name in reversed(_POSITIONS) if turn >= first)
