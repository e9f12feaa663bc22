"""LoRA (Hu et al. 2021) by PEFT."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from egmf_dist.config import BackboneConfig
from egmf_dist.errors import EgmfError


def lora(backbone: PreTrainedModel, config: BackboneConfig) -> PreTrainedModel:
    """Low-rank matrices beside linear layers; the rest stays frozen. Rank 0 is no adapter at all.

    Args:
        backbone: frozen.
        config: rank, alpha, dropout, targets and their variants.

    Raises:
        EgmfError: its targets or layers are not in the model.
    """
    if config.lora_rank == 0:
        return backbone
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    targets: Any = config.lora_targets
    if targets != "all-linear":
        targets = [name.strip() for name in targets.split(",")]
        _check_targets(backbone, targets)
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        exclude_modules=_excluded(backbone, config),
        use_rslora=config.lora_rslora,
        use_dora=config.lora_dora,
    )
    try:
        adapted: Any = get_peft_model(backbone, settings, autocast_adapter_dtype=False)
    except ValueError as error:
        raise EgmfError(
            f"config: backbone.lora_targets {config.lora_targets!r}: {str(error).splitlines()[0]}"
        ) from error
    if isinstance(adapted.get_output_embeddings(), BaseTunerLayer):
        raise EgmfError(
            f"config: backbone.lora_targets {config.lora_targets!r} names the output layer, which is often the table "
            "of the input embeddings, too; name layers below it, or all-linear"
        )
    return adapted


def _check_targets(model: PreTrainedModel, targets: list[str]) -> None:
    """Every name is some module's last part: PEFT passes over one that is not where another one is."""
    known = [name for name, _ in model.named_modules() if name]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in known):
            found = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
            out = model.get_output_embeddings()
            linear = sorted(found - {name for name, m in model.named_modules() if m is out})
            raise EgmfError(
                f"config: backbone.lora_targets names {target!r}, which this backbone does not have; its linear layers "
                f"are {', '.join(linear) or 'none'}, and all-linear takes those of every kind but the output layer"
            )


def _other_layers(model: PreTrainedModel, config: BackboneConfig) -> str | None:
    """A pattern of the modules in layers that get no adapter; None for none.

    PEFT's own ``layers_to_transform`` does not go with ``all-linear``, and passes over a layer that is not there.
    """
    if not config.lora_layers:
        return None
    count = model.config.get_text_config().num_hidden_layers
    beyond = [n for n in config.lora_layers if n >= count]
    if beyond:
        raise EgmfError(f"config: backbone.lora_layers names {beyond[0]}; this backbone has layers 0 to {count - 1}")
    lists = (
        name for name, m in model.get_decoder().named_modules() if isinstance(m, nn.ModuleList) and len(m) == count
    )
    chosen = "|".join(map(str, config.lora_layers))
    return rf"(?:.*\.)?{re.escape(next(lists))}\.(?!(?:{chosen})\.)\d+\..*"


def _excluded(model: PreTrainedModel, config: BackboneConfig) -> str | None:
    """A pattern of the modules that get no adapter; None for none.

    Those beside the language model (a vision tower), which no prompt reaches, linear layers whose own forward gives
    something else than one tensor (Llama 4's routers), and those of layers that were not chosen.
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
    others = _other_layers(model, config)
    patterns |= set() if others is None else {others}
    return "|".join(sorted(patterns)) or None
