"""What a regression's answer costs by its distance from the truth, where ``objective.number`` says so.

All legal numbers v_1 < ... < v_C of the task stand behind the prompt, so the model's probability p_c of each is known.
The truth y need not be one of them. Ordered labels (``objective.ordered``) are the numbers 0, ..., C - 1.

* ``soft``: ``-sum_c q_c log p_c`` with ``q_c`` in proportion to ``exp(-(v_c - y)^2 / (2 sigma^2))`` over the legal
  numbers: the soft labels of Diaz and Marathe (Soft Labels for Ordinal Regression, CVPR 2019) under the squared
  distance. p is the model's probability among all texts, so this makes the legal numbers likely as well, and for a
  sigma that goes to 0 it is ``tokens``.
* ``expected``: the continuous ranked probability score ``integral (F(x) - [x >= y])^2 dx`` (Gneiting and Raftery,
  Strictly Proper Scoring Rules, JASA 2007, section 4.2) of p renormalised over the legal numbers. It is strictly
  proper, and for a prediction of one number alone it is the absolute error. It is counted in guesses, so that it weighs
  against other tasks as ``tokens`` do: the uniform distribution over the legal numbers, averaged over each of them as
  the truth, costs log C. Beside it stands a part of -log p of the legal number nearest to the truth.

Shape legend: B samples, C legal answers, E log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from egmf_dist.config import Config, ObjectiveConfig
from egmf_dist.data.answers import has_distances, most_answers
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.data.collate import Collator
from egmf_dist.errors import EgmfError
from egmf_dist.model.backbone import Capabilities
from egmf_shards import REGRESSION, Task

LOGITS = 2**30
"""The most logits of a micro-batch's legal numbers, which are kept for the backward pass: 4 GiB in fp32."""


class NumberLoss:
    """Each sample's cost: of a regression or of ordered labels the distance, of other classes -log p of the right one.

    Args:
        settings: the section ``objective``.
        tasks: the run's, in order.
    """

    def __init__(self, settings: ObjectiveConfig, tasks: Sequence[Task]) -> None:
        self.settings = settings
        self.tasks = list(tasks)
        self.answers = most_answers(tasks)

    def __call__(self, log_p_E: torch.Tensor, batch: RaggedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """What is minimised, and -log p of the right answer; both fp32 ``[B]``.

        Every task's cost is computed of every sample and the others' are masked away, so that nothing depends on which
        tasks a batch has.

        Args:
            log_p_E: of what ``batch.rows`` ask for.
            batch: of a collator with the same settings.
        """
        samples, device = len(batch.weight_B), log_p_E.device
        log_p_BC = log_p_E.new_zeros(samples * self.answers).index_add(0, batch.rows.owner_E, log_p_E)
        log_p_BC = log_p_BC.view(samples, self.answers)
        answer_B = -log_p_BC.gather(1, batch.answer_B[:, None])[:, 0]
        cost_B = answer_B
        for number, task in enumerate(self.tasks):
            if not has_distances(task, self.settings):
                continue
            numbers = _Numbers.of(task)
            # Made on the device: copying the numbers there would make the host wait.
            value_C = torch.linspace(numbers.low, numbers.high, numbers.answers, device=device)
            truth_B = batch.value_B if task.kind == REGRESSION else batch.answer_B.to(value_C)
            own_BC = log_p_BC[:, : len(value_C)]
            if self.settings.number == "soft":
                own_B = soft_cross_entropy(own_BC, value_C, truth_B, self.settings.width)
            else:
                own_B = crps(own_BC, value_C, truth_B) * numbers.in_guesses
                own_B = own_B + self.settings.answer_weight * answer_B
            cost_B = torch.where(batch.task_B == number, own_B, cost_B)
        return cost_B, answer_B


def soft_cross_entropy(
    log_p_BC: torch.Tensor, value_C: torch.Tensor, truth_B: torch.Tensor, width: float
) -> torch.Tensor:
    """``[B]``: cross-entropy with a bell around the truth; see the module's text.

    Args:
        log_p_BC: of the legal numbers, not renormalised.
        value_C: the legal numbers, ascending.
        truth_B: the targets.
        width: sigma, as a part of the range.
    """
    deviation_BC = (value_C - truth_B[:, None]) / (width * (value_C[-1] - value_C[0]))
    target_BC = (-deviation_BC.square() / 2).softmax(1)
    return -(target_BC * log_p_BC).sum(1)


def crps(log_p_BC: torch.Tensor, value_C: torch.Tensor, truth_B: torch.Tensor) -> torch.Tensor:
    """``[B]``: the continuous ranked probability score in the numbers' units; see the module's text.

    Between two legal numbers F is constant, and where the truth lies between them the integral has two parts.

    Args:
        log_p_BC: of the legal numbers; renormalised here.
        value_C: the legal numbers, ascending.
        truth_B: the targets, inside the range.
    """
    gap_C = value_C.diff()
    below_BC = log_p_BC.softmax(1).cumsum(1)[:, :-1]
    reached_BC = ((value_C[1:] - truth_B[:, None]) / gap_C).clamp(0.0, 1.0)
    """The part of each gap that is not below the truth."""
    score_BC = (1 - reached_BC) * below_BC.square() + reached_BC * (1 - below_BC).square()
    return (gap_C * score_BC).sum(1)


class _Numbers(NamedTuple):
    """Legal answers as numbers."""

    low: float
    high: float
    answers: int

    @classmethod
    def of(cls, task: Task) -> _Numbers:
        """A regression's own; the places of ordered labels."""
        if task.kind == REGRESSION:
            return cls(task.low, task.high, len(task.values))
        return cls(0.0, len(task.labels) - 1.0, len(task.labels))

    @property
    def in_guesses(self) -> float:
        """By what the score is multiplied so that a guess, averaged over every legal number as the truth, costs log C.

        The guess's score is half the mean distance of two numbers of the grid: ``range * (C + 1) / (6 C)``.
        """
        return math.log(self.answers) / ((self.high - self.low) * (self.answers + 1) / (6 * self.answers))


def reads_trees(config: Config, capabilities: Capabilities) -> bool:
    """Whether legal numbers stand behind a prompt as a tree, as far as it is known before weights are; else each of
    them has a row of its own."""
    takes = config.evaluation.scoring != "sequence" and config.backbone.attn_implementation != "flash_attention_2"
    return takes and config.training.packing == "auto" and not capabilities.sequence_only


def check_numbers(config: Config, collator: Collator, capabilities: Capabilities, ranks: int) -> None:
    """Refuse settings of ``objective`` that no task reads, or whose logits would not fit.

    Args:
        config: the run's settings.
        collator: the run's.
        capabilities: its backbone's.
        ranks: how many will train.

    Raises:
        EgmfError: says what would be right.
    """
    number, training = config.objective.number, config.training
    for name in config.objective.ordered:
        task = collator.tasks.get(name)
        if task is None or task.kind == REGRESSION:
            known = [other.name for other in collator.tasks.values() if other.kind != REGRESSION]
            what = "no task of this run" if task is None else "a regression, whose numbers have distances of their own"
            raise EgmfError(
                f"config: objective.ordered names {name!r}, which is {what}; "
                f"its classifications are: {', '.join(known) or 'none'}"
            )
    if number == "tokens":
        return
    if not collator.numbers:
        raise EgmfError(
            f"config: objective.number is {number!r}, and no task of this run is a regression "
            f"({', '.join(collator.tasks)}); it must be tokens, or objective.ordered name one with ordered labels"
        )
    trees = reads_trees(config, capabilities)
    # Cut by tokens a micro-batch is bounded by what was asked for; one sample it holds at least.
    samples = 1 if training.micro_tokens else min(training.micro_batch, -(-training.global_batch // ranks))
    for (name, language), tree in collator.numbers.items():
        columns = len(tree.tokens) + 1 if trees else len(tree.steps.node)
        most = LOGITS // (columns * capabilities.vocabulary)
        if samples > most:
            fewer = f"lower training.micro_batch to {most}, " if most else ""
            raise EgmfError(
                f"config: objective.number is {number!r}: the {len(tree.paths)} legal answers of task {name!r} in "
                f"{language!r} take {columns} columns of {capabilities.vocabulary} logits a sample, and {samples} "
                f"samples at once {samples * columns * capabilities.vocabulary:.1e} logits of at most {LOGITS:.1e}; "
                f"{fewer}give the task a larger step, or take tokens"
            )
