"""Probabilities and numbers that mean what they say: fitted on validation, kept with the adapter, applied afterwards.

* **Probabilities**: one temperature T a task, p ** (1 / T) renormalised, by the least negative log-likelihood (Guo et
  al. 2017, arXiv 1706.04599). The likeliest answer stays the same.
* **Numbers**: a line through the expected value, by the least mean absolute error. A language model ranks numbers well
  and states them badly: its expected values keep too close to their mean. The order of the numbers stays the same, and
  their correlation but for those that are cut off at the ends of the range; therefore the temperature has no part in
  it.
* **Intervals**: the quantiles of the model's distribution, put through the same line and widened by one number, so that
  on validation :data:`INTERVAL` of the truth lies inside (conformalised quantiles, Romano et al. 2019, arXiv
  1905.03222).

What does not surely help, by two standard errors, is left out: T is 1, the line is the identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from egmf_shards import REGRESSION, Task

INTERVAL = 0.8
"""How much of the truth a number's interval is to hold."""
FEWEST = 20
"""With fewer samples of a task nothing is fitted."""
_LOG_TEMPERATURE = (-3.0, 3.0)
_TINY = np.finfo(np.float64).tiny
_GAIN = 1e-9
_LINE = 5000
_FOLDS = 5
_DECIMALS = 9


@dataclass(frozen=True)
class Calibration:
    """What was fitted of one task. ``Calibration()`` changes no probability and no number."""

    temperature: float = 1.0
    slope: float = 1.0
    """Numbers alone: ``value = intercept + slope * expected value``, kept within the range."""
    intercept: float = 0.0
    widening: float = 0.0
    """Numbers alone: what an interval is moved outwards by at both ends, in units of the task; below 0 inwards."""
    samples: int = 0
    """On how many it was fitted."""
    split: str = "valid"

    def probabilities(self, p: np.ndarray) -> np.ndarray:
        """``[..., answers]`` float64 under the temperature."""
        if self.temperature == 1.0:
            return p
        scaled = np.log(np.maximum(p, _TINY)) / self.temperature
        scaled = np.exp(scaled - scaled.max(-1, keepdims=True))
        result: np.ndarray = scaled / scaled.sum(-1, keepdims=True)
        return result

    def values(self, task: Task, p: np.ndarray) -> np.ndarray:
        """Numbers ``[...]`` of a regression for the probabilities ``[..., answers]`` as the model gave them."""
        expected = p @ np.asarray(task.values)
        if (self.slope, self.intercept) == (1.0, 0.0):
            return expected
        return np.clip(self.intercept + self.slope * expected, task.low, task.high)

    def intervals(self, task: Task, p: np.ndarray) -> np.ndarray:
        """``[..., 2]``: lower and upper end for the probabilities as the model gave them, within the range."""
        ends = self._quantiles(task, p) + np.array([-self.widening, self.widening])
        middle = ends.mean(-1, keepdims=True)
        # Ends that were moved inwards past each other meet in the middle.
        ends = np.concatenate([np.minimum(ends[..., :1], middle), np.maximum(ends[..., 1:], middle)], -1)
        return np.clip(ends, task.low, task.high)

    def _quantiles(self, task: Task, p: np.ndarray) -> np.ndarray:
        levels = np.array([(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
        # A legal number stands for its share of the probability around it: half below, half above.
        middle = np.cumsum(p, -1) - p / 2
        flat = middle.reshape(-1, middle.shape[-1])
        ends = np.array([np.interp(levels, own, task.values) for own in flat]).reshape(*p.shape[:-1], 2)
        result: np.ndarray = self.intercept + self.slope * ends
        return result

    def to_json(self) -> dict[str, Any]:
        """As it is kept with an adapter."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """The inverse of :meth:`to_json`."""
        return cls(**{name: data[name] for name in cls.__dataclass_fields__ if name in data})


def fit(task: Task, truth: Sequence[float], probabilities: Sequence[np.ndarray] | np.ndarray) -> Calibration | None:
    """Fit one task.

    Args:
        task: what was asked.
        truth: a class index or a number per sample.
        probabilities: ``[samples, answers]`` float64, as the model gave them.

    Returns:
        None where there are fewer than :data:`FEWEST` samples.
    """
    if len(truth) < FEWEST:
        return None
    p = np.asarray(probabilities, dtype=np.float64)
    right = np.array([right_answer(task, t) for t in truth])
    temperature = _temperature(p, right)
    if task.kind != REGRESSION:
        return Calibration(temperature, samples=len(truth))
    y = np.asarray(truth, dtype=np.float64)
    slope, intercept = _line(task, y, p @ np.asarray(task.values))
    widening = _widening(Calibration(temperature, slope, intercept), task, p, y)
    return Calibration(temperature, slope, intercept, widening, len(truth))


def right_answer(task: Task, truth: float) -> int:
    """The index of the legal answer that is right."""
    return task.nearest(truth) if task.kind == REGRESSION else int(truth)


def negative_log_likelihood(p: np.ndarray, right: np.ndarray) -> float:
    """Mean of -log p of the right answers, nats; ``p`` is ``[samples, answers]``."""
    return float(-np.log(np.maximum(p[np.arange(len(right)), right], _TINY)).mean())


def _temperature(p: np.ndarray, right: np.ndarray) -> float:
    from scipy.optimize import minimize_scalar  # here: who only applies a calibration needs neither package

    def scaled(log_t: float) -> np.ndarray:
        return Calibration(float(np.exp(log_t))).probabilities(p)

    def loss(log_t: float) -> float:
        return negative_log_likelihood(scaled(log_t), right)

    found = minimize_scalar(loss, bounds=_LOG_TEMPERATURE, method="bounded")
    before, after = (np.log(np.maximum(q[np.arange(len(right)), right], _TINY)) for q in (p, scaled(found.x)))
    return float(np.exp(found.x)) if found.fun < loss(0.0) - _GAIN and _is_sure(after - before) else 1.0


def _is_sure(gain: np.ndarray) -> bool:
    """Whether a gain a sample is more than chance: by two standard errors of its mean."""
    return bool(gain.mean() > 2 * gain.std(ddof=1) / np.sqrt(len(gain)))


def _widening(straight: Calibration, task: Task, p: np.ndarray, y: np.ndarray) -> float:
    """By what intervals must be widened to hold as near to :data:`INTERVAL` of the truth as can be, at the level of
    n + 1 exchangeable samples; they are judged as they are given, kept within the range.

    A truth on a grid, or at the range's ends, comes in by many samples at once: the next narrower interval is taken
    where that is nearer.
    """
    ends = straight._quantiles(task, p)
    # Of each sample the signed distance of the truth outside its interval: between two of them nothing changes.
    candidates = np.unique(np.round(np.maximum(ends[:, 0] - y, y - ends[:, 1]), _DECIMALS))
    wanted = min(1.0, np.ceil((len(y) + 1) * INTERVAL) / len(y))

    def held(number: int) -> float:
        given = replace(straight, widening=float(candidates[number])).intervals(task, p)
        return float(covered(given, y).mean())

    first, last = 0, len(candidates) - 1
    while first < last:
        middle = (first + last) // 2
        first, last = (first, middle) if held(middle) >= wanted else (middle + 1, last)
    nearer = first > 0 and wanted - held(first - 1) < held(first) - wanted
    return float(candidates[first - 1 if nearer else first])


def covered(ends: np.ndarray, y: np.ndarray) -> np.ndarray:
    """bool ``[samples]``: whether the truth lies inside, but for rounding."""
    inside: np.ndarray = (ends[:, 0] - 1e-9 <= y) & (y <= ends[:, 1] + 1e-9)
    return inside


def _line(task: Task, y: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the least mean absolute error; the identity where no rising line is surely better on
    samples that it was not fitted on."""
    from sklearn.linear_model import QuantileRegressor

    identity = 1.0, 0.0
    if np.ptp(expected) < _GAIN:
        return identity

    def through(rows: np.ndarray) -> tuple[float, float]:
        # A linear programme: of very many samples so many, evenly spread, are enough for two numbers.
        some = rows[np.linspace(0, len(rows) - 1, min(len(rows), _LINE)).astype(int)]
        line = QuantileRegressor(quantile=0.5, alpha=0.0, solver="highs").fit(expected[some, None], y[some])
        return float(line.coef_[0]), float(line.intercept_)

    def bent(slope: float, intercept: float, rows: np.ndarray) -> np.ndarray:
        kept: np.ndarray = np.clip(intercept + slope * expected[rows], task.low, task.high)
        return kept

    # On samples that the line has not seen: what a few hundred gain by chance is lost on the next ones.
    everyone, gain = np.arange(len(y)), np.zeros(len(y))
    for fold in range(_FOLDS):
        unseen = everyone[fold::_FOLDS]
        line = through(np.setdiff1d(everyone, unseen))
        gain[unseen] = np.abs(y[unseen] - expected[unseen]) - np.abs(y[unseen] - bent(*line, unseen))
    slope, intercept = through(everyone)
    fits = np.abs(y - bent(slope, intercept, everyone)).mean() < np.abs(y - expected).mean() - _GAIN
    sure = _is_sure(gain)
    return (slope, intercept) if slope > 0 and fits and sure else identity
