"""Temperatures, lines and intervals that are fitted; the bootstrap; what an evaluation says beside its metrics."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import f1_score, mean_absolute_error

from egmf_dist.metrics import bootstrap
from egmf_dist.metrics.by_task import evaluate_task
from egmf_dist.metrics.calibration import Calibration, fit, negative_log_likelihood
from egmf_dist.metrics.detail import detail, readings
from egmf_shards import Task

EMOTION = Task("emotion", "classification", {"en": "Which?"}, labels=("a", "b", "c"), answers={"en": ("a", "b", "c")})
MOOD = Task("mood", "regression", {"en": "How much?"}, "sims", low=-1.0, high=1.0, step=0.5)
VALUES = np.array(MOOD.values)


def overconfident(n: int, temperature: float, seed: int = 0) -> tuple[list[float], np.ndarray]:
    """Truth drawn from softmax(logits); the model states softmax(temperature * logits)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 3)) * 1.5
    truth = [float(rng.choice(3, p=row)) for row in softmax(logits, -1)]
    return truth, softmax(logits * temperature, -1)


def timid(n: int, seed: int = 0) -> tuple[list[float], np.ndarray]:
    """Numbers whose distributions lean the right way but hardly leave the middle, as a language model's do."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(-1, 1, size=n)
    logits = np.outer(0.25 * (truth + rng.normal(size=n) * 0.3), VALUES) - np.abs(VALUES) * 0.2
    return truth.tolist(), softmax(logits, -1)


def test_a_temperature_is_found_again_and_calibrates_what_was_not_seen() -> None:
    truth, p = overconfident(4000, 3.0)
    found = fit(EMOTION, truth, p)
    assert found is not None
    assert found.temperature == pytest.approx(3.0, rel=0.1)
    unseen, q = overconfident(4000, 3.0, seed=1)
    before, after = (
        evaluate_task(EMOTION, unseen, own.argmax(-1).tolist(), own.tolist())["metrics"]
        for own in (q, found.probabilities(q))
    )
    for name in ("nll", "ece", "brier"):
        assert after[name] < before[name]
    assert after["accuracy"] == before["accuracy"]
    assert after["ece"] < 0.03


@pytest.mark.parametrize("seed", range(6))
def test_what_it_was_fitted_on_is_never_worse(seed: int) -> None:
    """Few samples and noise: whatever comes out, likelihood and error on them do not rise."""
    rng = np.random.default_rng(seed)
    p = softmax(rng.normal(size=(25, 5)) * 3, -1)
    truth = rng.choice(VALUES, size=25).tolist()
    found = fit(MOOD, truth, p)
    assert found is not None
    right = np.array([MOOD.nearest(t) for t in truth])
    assert negative_log_likelihood(found.probabilities(p), right) <= negative_log_likelihood(p, right) + 1e-12
    assert mean_absolute_error(truth, found.values(MOOD, p)) <= mean_absolute_error(truth, p @ VALUES) + 1e-9


def test_timid_numbers_are_stretched_and_keep_their_order() -> None:
    truth, p = timid(500)
    found = fit(MOOD, truth, p)
    unseen, q = timid(2000, seed=1)
    assert found is not None
    before, after = q @ VALUES, found.values(MOOD, q)
    assert np.std(before) < 0.2 * np.std(unseen)
    assert mean_absolute_error(unseen, after) < 0.6 * mean_absolute_error(unseen, before)
    assert np.corrcoef(unseen, after)[0, 1] > np.corrcoef(unseen, before)[0, 1] - 0.01
    ends = found.intervals(MOOD, q)
    inside = np.mean((ends[:, 0] <= unseen) & (unseen <= ends[:, 1]))
    assert inside == pytest.approx(0.8, abs=0.03)
    assert (ends[:, 0] <= ends[:, 1]).all()
    assert ends.min() >= -1
    assert ends.max() <= 1


def test_intervals_hold_four_fifths_of_exact_zeros_too() -> None:
    """A fifth of the truth is exactly 0, as in MOSI and SIMS."""
    rng = np.random.default_rng(3)

    def made(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.where(rng.random(n) < 0.22, 0.0, rng.uniform(-1, 1, n))
        return y, softmax(np.outer(y + rng.normal(size=n) * 0.3, VALUES) * 3, -1)

    truth, p = made(800)
    found = fit(MOOD, truth.tolist(), p)
    unseen, q = made(4000)
    assert found is not None
    ends = found.intervals(MOOD, q)
    assert np.mean((ends[:, 0] <= unseen) & (unseen <= ends[:, 1])) == pytest.approx(0.8, abs=0.03)


def test_nothing_is_fitted_to_a_handful_or_to_constant_numbers() -> None:
    truth, p = timid(19)
    assert fit(MOOD, truth, p) is None
    truth, p = timid(100)
    found = fit(MOOD, truth, np.tile(p[:1], (100, 1)))
    assert found is not None
    assert (found.slope, found.intercept) == (1.0, 0.0)


def test_it_is_kept_as_json_and_without_it_nothing_changes() -> None:
    made = Calibration(1.5, 2.0, -0.1, 0.05, 100)
    assert Calibration.from_json(made.to_json()) == made
    _, p = timid(50)
    assert np.array_equal(Calibration().values(MOOD, p), p @ VALUES)
    assert np.array_equal(Calibration().probabilities(p), p)
    certain = np.eye(5)[[2]]
    # All of a legal number's share lies within half a step of it.
    assert Calibration().intervals(MOOD, certain)[0] == pytest.approx([-0.2, 0.2], abs=0.25)


def test_a_draw_is_the_metric_of_the_samples_it_repeats() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 3, 60), rng.integers(0, 3, 60)
    y, p = rng.uniform(-1.2, 1.2, 60).round(1), rng.uniform(-1.2, 1.2, 60)
    drawn = np.concatenate([*bootstrap.draws([f"d{i // 4}" for i in range(60)])])
    assert drawn.shape == (bootstrap.RESAMPLES, 60)
    assert (drawn.reshape(-1, 15, 4) == drawn.reshape(-1, 15, 4)[:, :, :1]).all()  # whole dialogues
    classes = bootstrap.resampled(EMOTION, truth, predicted, drawn)
    numbers = bootstrap.resampled(MOOD, y, p, drawn)
    for draw in (0, 7):
        index = np.repeat(np.arange(60), drawn[draw].astype(int))
        for average in ("weighted", "macro"):
            wanted = f1_score(truth[index], predicted[index], average=average, zero_division=0.0)
            assert classes[f"{average}_f1"][draw] == pytest.approx(wanted)
        wanted = evaluate_task(MOOD, y[index].tolist(), p[index].tolist())["metrics"]
        for name, values in numbers.items():
            assert values[draw] == pytest.approx(wanted[name]), name


def test_blocks_of_draws_are_the_same_draws(monkeypatch) -> None:
    whole = np.concatenate([*bootstrap.draws(range(50))])
    monkeypatch.setattr(bootstrap, "_BLOCK", 50 * 64)
    blocks = [*bootstrap.draws(range(50))]
    assert len(blocks) == 16
    assert np.array_equal(np.concatenate(blocks), whole)


def test_intervals_hold_the_true_figure_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(60):
        truth = rng.integers(0, 3, 80)
        predicted = np.where(rng.random(80) < 0.7, truth, (truth + 1) % 3)
        low, high = bootstrap.intervals(EMOTION, truth, predicted, range(80))["accuracy"] or (1, 0)
        held += low <= 0.7 <= high
    assert 50 <= held <= 60


def test_two_runs_differ_or_do_not() -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, 300)
    good = np.where(rng.random(300) < 0.9, truth, (truth + 1) % 3)
    poor = np.where(rng.random(300) < 0.5, truth, (truth + 1) % 3)
    found = bootstrap.paired(EMOTION, truth, good, poor, range(300))["accuracy"]
    assert found["difference"] == pytest.approx((good == truth).mean() - (poor == truth).mean())
    assert found["interval"][0] > 0
    assert found["p"] < 0.01
    same = bootstrap.paired(EMOTION, truth, good, good, range(300))["accuracy"]
    assert (same["difference"], same["p"]) == (0.0, 1.0)


def test_three_numbers_of_one_distribution() -> None:
    p = np.array([[0.4, 0.0, 0.2, 0.3, 0.1], [0.0, 0.0, 0.0, 0.0, 1.0]])
    found = readings(MOOD, [0.0, 1.0], p)
    # Expected -0.15, median 0, likeliest -1 of the first; all 1 of the second.
    assert found["expected"]["mae"] == pytest.approx(0.075)
    assert found["median"]["mae"] == pytest.approx(0.0)
    assert found["likeliest"]["mae"] == pytest.approx(0.5)


def test_detail_groups_what_differs() -> None:
    truth, p = overconfident(90, 4.0)
    rows = [
        {
            "id": f"s{i}", "language": "en" if i < 60 else "zh", "probabilities": p[i], "words": i // 30 + 1,
            "dialogue": f"d{i // 9}", "turn": i % 9, "speaker": "Ada" if i < 85 else "Kurt", "modalities": ["text"],
        }
        for i in range(90)
    ]  # fmt: skip
    said = p.argmax(-1).tolist()
    found = detail(EMOTION, rows, truth, said, fit(EMOTION, truth, p))
    assert set(found["groups"]) == {"language", "length", "position"}  # one speaker has too few, one modality is all
    assert {name: g["n"] for name, g in found["groups"]["language"].items()} == {"en": 60, "zh": 30}
    assert list(found["groups"]["position"]) == ["first turn", "turns 2 to 4", "turns 5 to 9"]
    assert list(found["groups"]["length"]) == ["1 word", "2 words", "3 words and more"]
    own = evaluate_task(EMOTION, truth[60:], said[60:])["metrics"]["weighted_f1"]
    assert found["groups"]["language"]["zh"]["value"] == own
    assert sum(b["n"] for b in found["reliability"]) == 90
    low, high = found["intervals"]["weighted_f1"]
    assert low < evaluate_task(EMOTION, truth, said)["metrics"]["weighted_f1"] < high
    assert found["calibrated"]["metrics"]["nll"] < evaluate_task(EMOTION, truth, said, p.tolist())["metrics"]["nll"]


def test_intervals_of_a_truth_at_the_ends_of_the_range() -> None:
    """Half of the truth is -1 or 1: an interval that is kept within the range holds it although it lay outside."""
    rng = np.random.default_rng(5)

    def made(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.where(rng.random(n) < 0.5, rng.choice([-1.0, 1.0], n), rng.uniform(-1, 1, n))
        return y, softmax(-np.abs(VALUES - (y + rng.normal(size=n) * 0.4)[:, None]) * 5, -1)

    truth, p = made(800)
    found = fit(MOOD, truth.tolist(), p)
    unseen, q = made(4000)
    assert found is not None
    ends = found.intervals(MOOD, q)
    assert np.mean((ends[:, 0] - 1e-9 <= unseen) & (unseen <= ends[:, 1] + 1e-9)) == pytest.approx(0.8, abs=0.05)


def test_a_line_that_helps_by_chance_is_left_out() -> None:
    """The model states numbers rightly; lines fitted to 40 of them would be worse on others than none."""
    kept = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        y = rng.uniform(-1, 1, 40)
        p = np.stack(
            [np.interp(VALUES, [v - 0.5, v, v + 0.5], [0, 1, 0]) for v in np.clip(y + rng.normal(size=40) * 0.2, -1, 1)]
        )
        found = fit(MOOD, y.tolist(), p / p.sum(-1, keepdims=True))
        assert found is not None
        kept += (found.slope, found.intercept) == (1.0, 0.0)
    assert kept >= 15
