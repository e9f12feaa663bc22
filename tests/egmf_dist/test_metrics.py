"""Metrics against hand-computed values, boundary values, and scikit-learn called directly."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn.metrics import f1_score

from egmf_dist.errors import EgmfError
from egmf_dist.metrics.by_task import evaluate_task, score_classification, score_regression
from egmf_shards import Task

LABELS = ("neutral", "surprise", "joy")
EMOTION = Task(
    name="emotion", kind="classification", questions={"en": "Emotion?"}, labels=LABELS, answers={"en": LABELS}
)
SENTIMENT = Task(name="sentiment", kind="regression", questions={"en": "Sentiment?"}, low=-3, high=3, step=0.5)


def test_classification_by_hand() -> None:
    # class 0: precision 2/3, recall 2/2, F1 0.8; class 1: 1/1, 1/2, F1 2/3; class 2: 1/2, 1/2, F1 0.5.
    metrics = score_classification(LABELS, [0, 0, 1, 1, 2, 2], [0, 0, 1, 2, 2, 0])
    assert metrics == pytest.approx(
        {"accuracy": 4 / 6, "weighted_f1": (0.8 + 2 / 3 + 0.5) / 3, "macro_f1": (0.8 + 2 / 3 + 0.5) / 3}
    )


def test_weighted_f1_weighs_by_the_truth_not_the_predictions() -> None:
    truth, predicted = [0] * 9 + [1], [0] * 5 + [1] * 5
    weighted = score_classification(LABELS, truth, predicted)["weighted_f1"]
    # class 0: F1 10/14 with weight 0.9; class 1: F1 2/6 with weight 0.1. Swapped arguments would give 0.5 and 0.5.
    assert weighted == pytest.approx(0.9 * 10 / 14 + 0.1 * 2 / 6)
    assert weighted != pytest.approx(f1_score(predicted, truth, average="weighted"))


def test_always_neutral_on_meld_gives_the_known_figure() -> None:
    counts = [1256, 281, 50, 208, 402, 68, 345]
    truth = [c for c, n in enumerate(counts) for _ in range(n)]
    labels = ["neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"]
    metrics = score_classification(labels, truth, [0] * len(truth))
    assert metrics["accuracy"] == pytest.approx(0.4812, abs=5e-5)
    assert metrics["weighted_f1"] == pytest.approx(0.313, abs=5e-4)


def test_calibration_error_by_hand() -> None:
    # Two bins are used: confidence 0.9 twice (one right), confidence 0.6 twice (both right).
    probabilities = [[0.9, 0.1, 0.0], [0.9, 0.1, 0.0], [0.2, 0.6, 0.2], [0.2, 0.6, 0.2]]
    metrics = score_classification(LABELS, [0, 1, 1, 1], [0, 0, 1, 1], probabilities)
    assert metrics["ece"] == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * abs(1.0 - 0.6))
    assert "ece" not in score_classification(LABELS, [0, 1], [0, 0])


def test_mosei_by_hand() -> None:
    truth = [-3.0, -1.0, 0.0, 0.5, 2.0, 3.0]
    predicted = [-2.0, 0.0, -0.2, 1.5, 2.5, 4.0]
    metrics = score_regression("mosei", truth, predicted)
    assert metrics["mae"] == pytest.approx((1 + 1 + 0.2 + 1 + 0.5 + 1) / 6)  # 4.0 is not clipped
    assert metrics["corr"] == pytest.approx(np.corrcoef(truth, predicted)[0, 1])
    # round half to even: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2. Truth -3 -1 0 0 2 3, predicted -2 0 0 2 2 3.
    assert metrics["acc7"] == pytest.approx(3 / 6)
    assert metrics["acc5"] == pytest.approx(4 / 6)  # -2 -1 0 0 2 2 and -2 0 0 2 2 2
    assert metrics["acc3"] == pytest.approx(4 / 6)  # -1 -1 0 0 1 1 and -1 0 0 1 1 1
    # Has0: truth n n p p p p, predicted n p n p p p.
    assert metrics["has0_acc2"] == pytest.approx(4 / 6)
    assert metrics["has0_f1"] == pytest.approx((2 * 0.5 + 4 * 0.75) / 6)
    # Non0: the 0.0 is left out; a prediction of 0.0 is not positive. Truth n n p p p, predicted n n p p p.
    assert metrics["non0_acc2"] == 1.0
    assert metrics["non0_f1"] == 1.0


def test_rounding_is_half_to_even_on_both_sides() -> None:
    # 0.5 -> 0, 1.5 -> 2, 2.5 -> 2, -0.5 -> 0, -1.5 -> -2, -2.5 -> -2
    assert score_regression("mosei", [0, 2, 2, 0, -2, -2], [0.5, 1.5, 2.5, -0.5, -1.5, -2.5])["acc7"] == 1.0
    assert score_regression("mosei", [0.5, 1.5, 2.5], [1, 1, 3])["acc7"] == 0.0


@pytest.mark.parametrize(
    ("value", "negative", "three", "five"),
    [
        (-1.0, True, 0, 0),
        (-0.7, True, 0, 0),
        (-0.69, True, 0, 1),
        (-0.1, True, 0, 1),
        (-0.09, True, 1, 2),
        (0.0, True, 1, 2),
        (0.01, False, 1, 2),
        (0.1, False, 1, 2),
        (0.11, False, 2, 3),
        (0.7, False, 2, 3),
        (0.71, False, 2, 4),
        (1.0, False, 2, 4),
        (1.3, False, 2, 4),
        (-1.3, True, 0, 0),
    ],
)
def test_sims_bins_hold_their_upper_edge(value: float, negative: bool, three: int, five: int) -> None:
    """The bin of ``value`` is found by comparing it with one number that is safely inside each bin."""
    inside3, inside5 = [-0.5, 0.05, 0.5], [-0.9, -0.4, 0.05, 0.4, 0.9]
    acc2 = [score_regression("sims", [value], [p])["acc2"] for p in (-0.5, 0.5)]
    assert acc2 == [float(negative), float(not negative)]
    assert [score_regression("sims", [value], [p])["acc3"] for p in inside3] == [float(i == three) for i in range(3)]
    assert [score_regression("sims", [p], [value])["acc5"] for p in inside5] == [float(i == five) for i in range(5)]


def test_zero_is_negative_for_sims_and_not_for_has0() -> None:
    metrics = score_regression("sims", [0.0], [-0.4])
    assert (metrics["acc2"], metrics["has0_acc2"], metrics["non0_acc2"]) == (1.0, 0.0, None)


def test_sims_clips_truth_and_predictions_before_everything() -> None:
    clipped = score_regression("sims", [-1.0, 0.2, 1.0], [-1.0, 0.4, 1.0])
    assert score_regression("sims", [-1.4, 0.2, 1.0], [-3.0, 0.4, 2.0]) == clipped
    assert clipped["mae"] == pytest.approx(0.2 / 3)
    mean = 0.2 / 3
    assert clipped["r2"] == pytest.approx(1 - 0.04 / sum((y - mean) ** 2 for y in (-1.0, 0.2, 1.0)))
    assert score_regression("mosei", [-1.4, 0.2, 1.0], [-3.0, 0.4, 2.0])["mae"] == pytest.approx((1.6 + 0.2 + 1.0) / 3)


def test_sims_weak_samples_include_both_edges() -> None:
    truth, predicted = [-0.4, 0.4, -0.6, 0.6, 0.0], [-1.0, -1.0, 1.0, 1.0, -1.0]
    metrics = score_regression("sims", truth, predicted)
    assert metrics["acc2_weak"] == pytest.approx(2 / 3)
    assert metrics["acc2"] == pytest.approx(3 / 5)
    assert score_regression("sims", [0.6, -0.8], [0.6, 0.8])["acc2_weak"] is None


def test_sims_f1_is_of_acc2_and_truth_comes_first() -> None:
    truth, predicted = [-1.0] * 9 + [1.0], [-1.0] * 5 + [1.0] * 5
    metrics = score_regression("sims", truth, predicted)
    assert metrics["weighted_f1"] == pytest.approx(0.9 * 10 / 14 + 0.1 * 2 / 6)


def test_numbers_that_went_through_float32_stay_in_their_bins() -> None:
    grid = [-0.7, -0.4, -0.1, 0.1, 0.4, 0.7]
    as_float32 = [float(np.float32(v)) for v in grid]
    assert any(a != g for a, g in zip(as_float32, grid, strict=True))
    metrics = score_regression("sims", as_float32, grid)
    assert (metrics["acc5"], metrics["acc3"]) == (1.0, 1.0)
    predicted = [-0.4, 0.4, 0.0, 0.0, 0.0, 0.0]
    assert (
        score_regression("sims", as_float32, predicted)["acc2_weak"]
        == score_regression("sims", grid, predicted)["acc2_weak"]
    )


@pytest.mark.parametrize("convention", ["mosei", "sims"])
def test_undefined_is_none_and_never_nan(convention: str) -> None:
    constant = score_regression(convention, [-0.5, 0.5, 0.25], [0.1, 0.1, 0.1])
    assert constant["corr"] is None
    assert constant["mae"] is not None
    # The same constant with rounding noise is still constant.
    assert score_regression(convention, [-0.5, 0.5, 0.25], [0.1, 0.1 + 1e-16, 0.1])["corr"] is None
    zeros = score_regression(convention, [0.0, 0.0], [0.1, -0.3])
    assert zeros["non0_acc2"] is zeros["non0_f1"] is zeros["corr"] is zeros.get("r2") is None
    empty = score_regression(convention, [], [])
    assert set(empty.values()) == {None}
    for metrics in (constant, zeros, empty):
        assert not any(v is not None and math.isnan(v) for v in metrics.values())
    assert score_classification(LABELS, [], []) == {"accuracy": None, "weighted_f1": None, "macro_f1": None}


def test_conventions_hold_exactly_their_keys() -> None:
    zero = {"has0_acc2", "has0_f1", "non0_acc2", "non0_f1"}
    assert set(score_regression("mosei", [1.0], [1.0])) == {"mae", "corr", "acc3", "acc5", "acc7"} | zero
    sims = {"mae", "corr", "r2", "acc2", "acc3", "acc5", "acc2_weak", "weighted_f1"} | zero
    assert set(score_regression("sims", [1.0], [1.0])) == sims
    assert score_regression("classes", [1.0, -2.0], [1.0, 0.5]) == score_regression("mosei", [1.0, -2.0], [1.0, 0.5])


def test_evaluate_classification() -> None:
    result = evaluate_task(EMOTION, [0, 0, 1, 2], [0, 1, 1, 1])
    assert result["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]  # rows: truth
    assert result["labels"] == list(LABELS)
    assert (result["kind"], result["n"], result["distinct_predictions"], result["unparsed"]) == (
        "classification",
        4,
        2,
        0,
    )
    assert result["collapsed"] is None
    json.dumps(result, allow_nan=False)


def test_evaluate_regression() -> None:
    result = evaluate_task(SENTIMENT, [-1.0, 0.0, 2.0], [-1.0, 0.5, 0.5])
    assert result["distinct_predictions"] == 2
    assert "confusion" not in result
    assert result["metrics"] == score_regression("mosei", [-1.0, 0.0, 2.0], [-1.0, 0.5, 0.5]) | {"nll": None}
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("task", [EMOTION, SENTIMENT])
def test_evaluate_without_samples_does_not_fail(task: Task) -> None:
    result = evaluate_task(task, [], [])
    assert result["n"] == 0
    assert set(result["metrics"].values()) == {None}
    json.dumps(result, allow_nan=False)


def test_evaluate_reports_collapse() -> None:
    result = evaluate_task(EMOTION, [0, 1, 2] * 10, [1] * 30)
    assert result["collapsed"] == (
        "emotion: 30 of 30 answers are 'surprise' (the truth has 3 classes): the model has collapsed to one answer"
    )


@pytest.mark.parametrize(
    ("truth", "predicted", "probabilities", "message"),
    [
        ([0, 1], [0], None, "2 true and 1 predicted"),
        ([0, 3], [0, 0], None, "truth holds class 3"),
        ([0, 1], [0, -1], None, "predicted holds class -1"),
        ([0, 1], [0, 0], [[1.0, 0.0, 0.0]], "shape"),
        ([0], [0], [[0.5, 0.2, 0.1]], "do not sum to 1"),
    ],
)
def test_bad_classification_is_named(
    truth: list[int], predicted: list[int], probabilities: list[list[float]] | None, message: str
) -> None:
    with pytest.raises(EgmfError, match=message) as error:
        evaluate_task(EMOTION, truth, predicted, probabilities)
    assert "emotion" in str(error.value)


def test_bad_regression_is_named() -> None:
    with pytest.raises(EgmfError, match="predicted holds nan at sample 1"):
        score_regression("mosei", [0.0, 1.0, 2.0], [0.0, float("nan"), 1.0])
    with pytest.raises(EgmfError, match="convention is 'mosi'"):
        score_regression("mosi", [0.0], [0.0])
