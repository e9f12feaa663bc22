"""What the optimiser is given: parameter groups, and the learning rate of a step."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from egmf_dist.config import TrainingConfig
from egmf_dist.model.trained import trained_parameters


def parameter_groups(model: nn.Module, training: TrainingConfig) -> list[dict[str, Any]]:
    """AdamW's groups: adapter and fusion apart (learning rate), matrices and the rest apart (weight decay)."""
    fusion_rate = training.fusion_learning_rate
    if fusion_rate is None:
        fusion_rate = training.learning_rate
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained_parameters(model).items():
        rate = training.learning_rate if name.startswith("backbone.") else fusion_rate
        # Under ZeRO-3 a partitioned parameter is flat; ds_shape is its real shape.
        shape = getattr(parameter, "ds_shape", parameter.shape)
        decay = training.weight_decay if len(shape) > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


def learning_rate_factor(step: int, training: TrainingConfig) -> float:
    """Linear warm-up, then a cosine to zero at ``training.steps``; ``step`` counts from 0. In (0, 1]."""
    if step < training.warmup_steps:
        return (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))
