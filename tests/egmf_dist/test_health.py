"""Collapse to one answer is said; non-finite steps stop the run after the limit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from egmf_dist.errors import EgmfError
from egmf_dist.metrics.collapse import collapse
from egmf_dist.run.checkpoints import Progress
from egmf_dist.training import supervision
from egmf_shards import Task

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


class Steps:
    """Steps of 32 samples on one rank, as the loop gives them to its supervision."""

    def __init__(self, limit: int) -> None:
        self.progress, self.lines = Progress(), Lines()
        self.supervision = supervision.Supervision(self.progress, limit, self.lines)  # type: ignore[arg-type]

    def add(self, answer: float, grad_norm: float | torch.Tensor = 1.0) -> None:
        self.progress.step += 1
        self.progress.position += 32
        sums = torch.tensor([answer, 0.0, answer], dtype=torch.float64)
        self.supervision.add(sums, grad_norm, f"s-{self.progress.step}")


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A world of one; how many steps each sum over ranks was for."""
    sums: list[int] = []
    monkeypatch.setattr(supervision.distributed, "sum_on_device", lambda tensor: sums.append(len(tensor)))
    return sums


@pytest.mark.usefixtures("one_rank")
def test_non_finite_steps_are_counted_named_and_end_the_run() -> None:
    steps = Steps(3)
    for answer, norm in ((math.nan, 1.0), (1.0, math.inf), (1.0, 1.0), (1.0, -1.0), (math.inf, 1.0)):
        steps.add(answer, norm)
        assert steps.supervision.read().step == steps.progress.step
    assert (steps.progress.skipped, steps.progress.skipped_in_a_row) == (4, 2)
    assert [line["step"] for line in steps.lines] == [1, 2, 4, 5]
    assert "position 160" in steps.lines[-1]["message"]
    assert "sample s-5" in steps.lines[-1]["message"]
    steps.add(math.nan)
    with pytest.raises(EgmfError, match="3 steps in a row up to step 6"):
        steps.supervision.read()


def test_steps_that_are_read_together_are_judged_one_by_one(one_rank: list[int]) -> None:
    """What is read late has the number it had; no more than the limit's steps stay unread."""
    steps = Steps(4)
    for answer in (1.0, math.nan, 2.5):
        steps.add(answer, torch.tensor(0.5))  # as stage 3 gives it
        assert not steps.supervision.full
    losses = steps.supervision.read()
    assert (losses.step, losses.position, losses.answer, losses.grad_norm) == (3, 96, 2.5, 0.5)
    assert [line["step"] for line in steps.lines] == [2]
    assert "position 64" in steps.lines[0]["message"]
    assert steps.supervision.read() == losses  # nothing new, and nothing is asked of the other ranks
    assert one_rank == [3]
    for _ in range(4):
        steps.add(math.nan)
    assert steps.supervision.full
    with pytest.raises(EgmfError, match="4 steps in a row up to step 7"):
        steps.supervision.read()
