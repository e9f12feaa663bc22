"""The loss of the right answers: -log p of their tokens, or a number's distance; and the auxiliary heads' part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from egmf_dist.config import Config
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.model.sequence import log_probabilities
from egmf_dist.objectives.base import LossSums
from egmf_dist.objectives.numbers import NumberLoss
from egmf_shards import CLASSIFICATION, Task

if TYPE_CHECKING:
    from egmf_dist.model.egmf import EGMF


class AnswerLoss:
    """For each sample the sum of -log p over its answer and end-of-sequence tokens, plus the weighted auxiliary loss.

    Where ``objective.number`` says so a regression is asked for its distance in place (:class:`NumberLoss`).

    Args:
        config: ``model.auxiliary_weight``, and the width of the fused representation; the section ``objective``.
        tasks: the run's, in order.
    """

    def __init__(self, config: Config, tasks: Mapping[str, Task]) -> None:
        self.weight = config.model.auxiliary_weight if config.model.pseudo_tokens else 0.0
        self.inputs = config.model.pseudo_tokens * config.model.width
        self.tasks = list(tasks.values())
        self.numbers = NumberLoss(config.objective, self.tasks) if config.objective.number != "tokens" else None

    def head(self) -> nn.Module | None:
        """The auxiliary heads; None where their weight is 0 or nothing is fused."""
        return AuxiliaryHeads(self.inputs, self.tasks) if self.weight else None

    def __call__(self, model: EGMF, batch: RaggedBatch) -> LossSums:
        """The loss of a batch."""
        fused = model.fuse(batch)
        log_p_E = log_probabilities(model.read(batch.rows, model.speak(fused)), batch.rows)
        if self.numbers is None:
            answer_B = torch.zeros_like(batch.weight_B).index_add(0, batch.rows.owner_E, -log_p_E)
            asked_B = answer_B
        else:
            asked_B, answer_B = self.numbers(log_p_E, batch)
        auxiliary_B = torch.zeros_like(answer_B)
        if fused is not None and model.auxiliary is not None:
            auxiliary_B = model.auxiliary(fused.pooled_BKD, batch)
        asked, answer, auxiliary = ((each_B * batch.weight_B).sum() for each_B in (asked_B, answer_B, auxiliary_B))
        total = asked + self.weight * auxiliary
        return LossSums(total, answer.detach(), auxiliary.detach(), batch.weight_B.sum())


class AuxiliaryHeads(nn.Module):
    """One linear head per task on the fused representation: classes, or the value in units of the range's spread."""

    def __init__(self, inputs: int, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self.heads = nn.ModuleList(
            [nn.Linear(inputs, len(t.labels) if t.kind == CLASSIFICATION else 1) for t in self.tasks]
        )

    def forward(self, pooled_BKD: torch.Tensor, batch: RaggedBatch) -> torch.Tensor:
        """Each sample's auxiliary loss ``[B]`` (cross-entropy, or squared error), fp32.

        Every head runs on every sample and the others' are masked away: which tasks a rank's samples have must not
        change which parameters it touches.
        """
        flat = pooled_BKD.flatten(1)
        loss_B = torch.zeros(len(flat), device=flat.device)
        for number, (task, head) in enumerate(zip(self.tasks, self.heads, strict=True)):
            out = head(flat).float()
            if task.kind == CLASSIFICATION:
                label_B = torch.where(batch.task_B == number, batch.answer_B, 0)
                per_sample = F.cross_entropy(out, label_B, reduction="none")
            else:
                # A uniform distribution over the range has this standard deviation; it puts every task on one scale.
                spread = (task.high - task.low) / 12**0.5
                target_B = (batch.value_B - (task.high + task.low) / 2) / spread
                per_sample = (out[:, 0] - target_B).pow(2)
            loss_B = loss_B + torch.where(batch.task_B == number, per_sample, 0.0)
        return loss_B
