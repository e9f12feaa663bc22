"""Collapse to one answer is said; non-finite steps stop the run after the limit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from egmf_dist.errors import EgmfError
from egmf_dist.training.checkpoint import Progress
from egmf_dist.training.health import collapse
from egmf_dist.training.loop import note_non_finite
from egmf_shards.task import Task

LABELS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
MELD = Task(
    name="meld-emotion", kind="classification", questions={"en": "Emotion?"}, labels=LABELS, answers={"en": LABELS}
)
SIMS = Task(name="sims", kind="regression", questions={"zh": "情感？"}, convention="sims", low=-1.0, high=1.0, step=0.2)


def test_always_neutral_on_meld_is_a_collapse() -> None:
    truth = [c for c, n in enumerate([1256, 281, 50, 208, 402, 68, 345]) for _ in range(n)]
    assert collapse(MELD, truth, [0] * 2610) == (
        "meld-emotion: 2610 of 2610 answers are 'neutral' (the truth has 7 classes): "
        "the model has collapsed to one answer"
    )


def test_classes_need_more_than_99_percent() -> None:
    truth = [i % 7 for i in range(1000)]
    assert collapse(MELD, truth, [4] * 991 + [0] * 9) is not None
    assert collapse(MELD, truth, [4] * 990 + [0] * 10) is None


def test_a_lopsided_truth_is_no_collapse() -> None:
    assert collapse(MELD, [3] * 1000, [3] * 1000) is None
    assert collapse(MELD, [3] * 992 + [0] * 8, [3] * 1000) is None


def test_regression_needs_less_than_2_percent_of_the_spread() -> None:
    truth = np.linspace(-1, 1, 200)
    message = collapse(SIMS, truth.tolist(), (0.12 + 0.015 * truth).tolist())
    assert message is not None
    assert "sims: all 200 answers are about 0.12" in message
    assert collapse(SIMS, truth.tolist(), (0.12 + 0.025 * truth).tolist()) is None
    assert collapse(SIMS, [0.5] * 200, [0.5] * 200) is None


def test_nothing_is_claimed_from_a_handful_or_from_nothing() -> None:
    assert collapse(MELD, [0, 1, 2], [0, 0, 0]) is None
    assert collapse(SIMS, [], []) is None


class Lines(list[dict[str, Any]]):
    """Stands in for the run's records."""

    def write(self, record: dict[str, Any]) -> None:
        self.append(record)


def test_non_finite_steps_are_counted_named_and_end_the_run() -> None:
    progress, lines = Progress(), Lines()

    def step(answer: float, grad_norm: float = 1.0) -> None:
        progress.step += 1
        progress.position += 32
        note_non_finite(progress, {"answer": answer, "auxiliary": 0.0}, grad_norm, "s-7", 3, lines)  # type: ignore[arg-type]

    step(math.nan)
    step(1.0, math.inf)
    step(1.0)
    step(1.0, -1.0)
    step(math.inf)
    assert (progress.skipped, progress.skipped_in_a_row) == (4, 2)
    assert [line["step"] for line in lines] == [1, 2, 4, 5]
    assert "position 160" in lines[-1]["message"]
    assert "sample s-7" in lines[-1]["message"]
    with pytest.raises(EgmfError, match="3 steps in a row up to step 6"):
        step(math.nan)
