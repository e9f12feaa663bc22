"""LoRA (Hu et al. 2021) by PEFT."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from egmf_dist.config import BackboneConfig
from egmf_dist.errors import EgmfError


def lora(backbone: PreTrainedModel, config: BackboneConfig) -> PreTrainedModel:
    """Low-rank matrices beside linear layers; the rest stays frozen. Rank 0 is no adapter at all.

    Args:
        backbone: frozen.
        config: rank, alpha, dropout, targets.

    Raises:
        EgmfError: its targets are not in the model.
    """
    if config.lora_rank == 0:
        return backbone
    from peft import LoraConfig, get_peft_model

    targets: Any = config.lora_targets
    if targets != "all-linear":
        targets = [name.strip() for name in targets.split(",")]
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        exclude_modules=_excluded(backbone),
    )
    try:
        adapted: Any = get_peft_model(backbone, settings, autocast_adapter_dtype=False)
    except ValueError as error:
        raise EgmfError(
            f"config: backbone.lora_targets {config.lora_targets!r}: {str(error).splitlines()[0]}"
        ) from error
    return adapted


def _excluded(model: PreTrainedModel) -> str | None:
    """A pattern of the modules that get no adapter; None for none.

    Those beside the language model (a vision tower), which no prompt reaches, and linear layers whose own forward gives
    something else than one tensor (Llama 4's routers).
    """
    patterns = {
        rf".*\.{re.escape(name.rpartition('.')[2])}"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and type(module).__module__.startswith("transformers.models.")
        and type(module).forward is not nn.Linear.forward
    }
    if model.config is not model.config.get_text_config():
        decoder = model.get_decoder()
        beside = next((name for name, module in model.named_modules() if module is decoder and name), None)
        patterns |= set() if beside is None else {rf"(?!{re.escape(beside)}\.).*"}
    return "|".join(sorted(patterns)) or None
