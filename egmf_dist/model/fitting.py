"""What makes a large backbone fit a GPU, or go faster there: each a setting, each asked of a library."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from egmf_dist import distributed
from egmf_dist.config import BackboneConfig
from egmf_dist.errors import EgmfError

# As it is imported (by PEFT, where it is installed) it looks for a package of the name `kernels`, finds this project's
# folder of that name, and warns.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def attention_named(config: BackboneConfig) -> Iterator[None]:
    """What transformers raises where it cannot compute attention as asked, as one line."""
    try:
        yield
    except ImportError as error:
        reason = str(error).splitlines()[0]
        asked = config.attn_implementation
        raise EgmfError(f"config: backbone.attn_implementation {asked!r} cannot be used here: {reason}") from error


def checkpoint_layers(model: PreTrainedModel, config: BackboneConfig) -> None:
    """Keep of each layer its input alone.

    Raises:
        EgmfError: the model cannot.
    """
    if not model.supports_gradient_checkpointing:
        raise EgmfError(
            f"config: backbone.gradient_checkpointing is true, but {model.config.model_type} in {config.path!r} cannot "
            "compute its layers again; leave it false"
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def quantised(config: BackboneConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What ``from_pretrained`` is told so that linear layers are loaded in four bits, as QLoRA does.

    Args:
        config: ``quantise``.
        dtype: in which they compute.

    Raises:
        EgmfError: bitsandbytes is not installed.
    """
    if config.quantise == "none":
        return {}
    try:
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise EgmfError(
            "config: backbone.quantise is '4bit', which needs bitsandbytes: pip install 'egmf-dist[cuda]'"
        ) from error
    return {"quantization_config": settings, "device_map": {"": distributed.device()}}


def keep_layout(model: PreTrainedModel) -> None:
    """Weights of four bits stay as they were loaded: on some CPUs bitsandbytes repacks them at the first scoring into a
    form through which no gradient passes."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def use_liger(model: PreTrainedModel, config: BackboneConfig) -> None:
    """Replace the model's RMSNorm, rotary positions and gated MLP by liger-kernel's; the loss stays ours.

    Raises:
        EgmfError: there is no GPU, the package is not installed, or it does not know the model.
    """
    if not torch.cuda.is_available():
        raise EgmfError("config: backbone.liger is true, but there is no GPU: its kernels run there alone")
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise EgmfError(
            "config: backbone.liger is true, which needs liger-kernel: pip install 'egmf-dist[cuda]'"
        ) from error
    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise EgmfError(f"config: backbone.liger is true, but liger-kernel has nothing for {kind} in {config.path!r}")
    _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
