"""DeepSpeed: the part of its engine that is used, its settings, and how a model is given to it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from egmf_dist import distributed
from egmf_dist.config import Config
from egmf_dist.model.precision import cast, dtype_of


class Engine(Protocol):
    """What is used of DeepSpeed's engine."""

    module: nn.Module
    """The model."""
    optimizer: Any
    """With ``param_groups``."""
    basic_optimizer: Any
    """The AdamW that was given to it, inside ``optimizer``."""

    def __call__(self, *inputs: Any) -> Any:
        """The model's forward, with ZeRO-3's parameters at hand."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Put the model into training mode."""
        ...

    def eval(self) -> Any:
        """Put the model into evaluation mode."""
        ...

    def backward(self, loss: torch.Tensor) -> Any:
        """Accumulate gradients."""
        ...

    def step(self) -> Any:
        """The optimiser's step, once a global batch is accumulated."""
        ...

    def get_global_grad_norm(self) -> torch.Tensor | float | None:
        """Of the last step, before clipping."""
        ...

    def zero_optimization_stage(self) -> int:
        """1, 2 or 3."""
        ...

    def destroy(self) -> None:
        """Give back what it holds."""
        ...


def deepspeed_settings(config: Config, micro_batches: int) -> dict[str, Any]:
    """What DeepSpeed is told. Gradient clipping is written out because its default is 1.0 where it is absent.

    Args:
        config: the run's settings.
        micro_batches: how many micro-batches one rank accumulates in a step.
    """
    training = config.training
    bf16 = training.precision == "bf16"
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    offload: dict[str, Any] = {} if training.offload == "none" else {"offload_optimizer": host}
    if training.offload == "weights":
        offload["offload_param"] = host
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
            **offload,
            **_zero_options(training.zero_options),
        },
        # Its own Adam for hosts is C++ that is compiled at the first start; ours is torch's, fused into one pass.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
    }


def _zero_options(options: Mapping[str, int]) -> dict[str, Any]:
    """A switch among DeepSpeed's settings is true or false there."""
    return {name: bool(value) if "quantized" in name else value for name, value in options.items()}


@contextlib.contextmanager
def partitioned_loading(config: Config, settings: dict[str, Any]) -> Iterator[None]:
    """Inside, a backbone's weights are partitioned over the ranks as they are loaded (ZeRO stage 3 only)."""
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


def initialise(model: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> Engine:
    """Give a model and its optimiser to DeepSpeed for training."""
    import deepspeed

    quiet()
    place_buffers(model, distributed.device())
    engine: Any
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    register_lists(engine.module)
    return engine


def place_buffers(model: nn.Module, device: torch.device) -> None:
    """Put a model's buffers on the device.

    DeepSpeed takes the whole model there, but not one that was loaded partitioned: of that it moves the parameters.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


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
        cast(model, dtype_of(config.training.precision))
        return model.to(distributed.device()).eval()
    import deepspeed

    quiet()
    place_buffers(model, distributed.device())
    engine, *_ = deepspeed.initialize(model=model, config=settings)
    module: nn.Module = engine.module.eval()
    return module


def quiet() -> None:
    """Keep DeepSpeed's information lines out of the run's output; its warnings stay."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
