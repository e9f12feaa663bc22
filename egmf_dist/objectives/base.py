"""What an objective is: a batch's loss by the model's parts.

It is called inside the model's own forward, ``engine(batch, objective)``, where ZeRO-3's hooks see to it that each
module it calls has its parameters. It may leave parts out, the language model among them, and have a module of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import nn

from egmf_dist.config import Config
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.registry import Registry
from egmf_shards import Task

if TYPE_CHECKING:
    from egmf_dist.model.egmf import EGMF


class LossSums(NamedTuple):
    """Sums over the batch's valid samples; the caller divides by the global batch's count."""

    total: torch.Tensor
    """What is minimised, with gradient: answer (or a number's distance) + auxiliary_weight * auxiliary."""
    answer: torch.Tensor
    """Sum of -log p over answer and end-of-sequence tokens (detached)."""
    auxiliary: torch.Tensor
    """Sum of the auxiliary heads' losses (detached)."""
    valid: torch.Tensor
    """How many samples count."""


class Objective(Protocol):
    """Made by ``Objective(config, tasks)`` once for a run; chosen by ``training.objective``.

    A sample's loss must not depend on what shares its batch, and fillers (weight 0) must not count.
    """

    def __init__(self, config: Config, tasks: Mapping[str, Task]) -> None: ...

    def head(self) -> nn.Module | None:
        """What is trained for this objective alone; the model keeps it as ``auxiliary``. None for nothing."""
        ...

    def __call__(self, model: EGMF, batch: RaggedBatch) -> LossSums:
        """The loss of a batch."""
        ...


OBJECTIVES: Registry[type[Objective]] = Registry(
    "training.objective", {"answers": "egmf_dist.objectives.answers:AnswerLoss"}
)


def make_objective(config: Config, tasks: Mapping[str, Task]) -> Objective:
    """The run's objective.

    Raises:
        EgmfError: ``training.objective`` names none.
    """
    return OBJECTIVES.find(config.training.objective)(config, tasks)
