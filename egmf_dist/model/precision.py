"""``training.precision`` as a dtype, and a model put into it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn


def dtype_of(precision: Literal["fp32", "bf16"]) -> torch.dtype:
    """In which a run's weights compute."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Put a model's weights into a dtype as DeepSpeed does for training: parameters and not buffers (a rotary table in
    bf16 is off by up to 0.4 %), so that what is scored is what was selected. Weights of four bits stay as they are."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
