"""DeepSpeed's settings, parameter groups and learning rate for a configuration."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from egmf_dist.config import Config, TrainingConfig
from egmf_dist.model.build import trained_parameters


def deepspeed_settings(config: Config, micro_batches: int) -> dict[str, Any]:
    """What DeepSpeed is told. Gradient clipping is written out because its default is 1.0 where it is absent.

    Args:
        config: the run's settings.
        micro_batches: how many micro-batches one rank accumulates in a step.
    """
    training = config.training
    bf16 = training.precision == "bf16"
    return {
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": training.gradient_clipping,
        "steps_per_print": 10**9,
        "bf16": {"enabled": bf16},
        # Accumulating micro-batches in bf16 loses what is smaller than 1/256 of the sum.
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": training.zero_stage,
            "overlap_comm": torch.cuda.is_available(),
            "contiguous_gradients": True,
            # Stages 1 and 2 lay parameters end to end; a bias of 3 numbers would leave every later weight at an odd
            # address, and kernels load 16 bytes at a time.
            "parameter_alignment": True,
        },
        "zero_allow_untested_optimizer": True,
    }


@contextlib.contextmanager
def partitioned_loading(config: Config, settings: dict[str, Any]) -> Iterator[None]:
    """Inside, transformers partitions a model's weights over the ranks as it loads them (ZeRO stage 3 only)."""
    if config.training.zero_stage != 3:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    alive = HfDeepSpeedConfig(settings)
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del alive


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


def initialise(config: Config, model: nn.Module, settings: dict[str, Any]) -> tuple[Any, list[float]]:
    """Give the model to DeepSpeed for training.

    Returns:
        The engine, and the peak learning rate of each of its parameter groups.
    """
    import deepspeed

    quiet()
    groups = parameter_groups(model, config.training)
    peaks = [float(g["lr"]) for g in groups]
    optimizer = torch.optim.AdamW(groups)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    register_lists(engine.module)
    return engine, peaks


def register_lists(model: nn.Module) -> None:
    """Tell ZeRO-3 which module uses the parameters of a list: a list runs no forward of its own.

    DeepSpeed finds out by itself where it meets such a parameter partitioned. In a resumed run it does not, because
    loading gathers small ones; the first gathering of the adapter partitions them, and the next step would then find a
    parameter that is not in the order it has recorded, and die.
    """
    from deepspeed.runtime.zero import register_external_parameter

    for module in model.modules():
        for child in module.children():
            if isinstance(child, nn.ParameterList | nn.ParameterDict):
                for parameter in child.parameters():
                    if hasattr(parameter, "ds_id"):
                        register_external_parameter(module, parameter)


def initialise_for_scoring(config: Config, model: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """The model ready to score: partitioned by DeepSpeed under ZeRO-3, else whole on this rank's device."""
    from egmf_dist import distributed

    if config.training.zero_stage != 3:
        # As DeepSpeed casts it for training, parameters and not buffers (a rotary table in bf16 is off by up to 0.4 %):
        # what is scored must be what was selected.
        dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        return model.to(distributed.device()).eval()
    import deepspeed

    quiet()
    engine, *_ = deepspeed.initialize(model=model, config=settings)
    module: nn.Module = engine.module.eval()
    return module


def quiet() -> None:
    """Keep DeepSpeed's information lines out of the run's output; its warnings stay."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
