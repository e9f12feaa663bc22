"""The large language model: any Hugging Face causal LM, its tokenizer, and a PEFT LoRA adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from egmf_dist.config import BackboneConfig
from egmf_dist.errors import EgmfError


def _check_path(config: BackboneConfig) -> None:
    if not config.path:
        raise EgmfError("config: backbone.path is empty; give a folder or hub id of a Hugging Face causal LM")
    # A hub id is `name` or `owner/name`; where the first part is a folder here, a folder is what was meant.
    first = Path(config.path).parts[0]
    looks_local = config.path.startswith((".", "/", "~")) or config.path.count("/") > 1 or Path(first).is_dir()
    if looks_local and not (Path(config.path) / "config.json").is_file():
        raise EgmfError(
            f"config: backbone.path {config.path!r} holds no config.json; give a folder in Hugging Face format, "
            "or make a small one with: egmf backbone tiny --text SHARDS --out DIR"
        )


def _load(what: str, loader: Any, config: BackboneConfig, **options: Any) -> Any:
    _check_path(config)
    try:
        return loader.from_pretrained(
            config.path, revision=config.revision, trust_remote_code=config.trust_remote_code, **options
        )
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise EgmfError(f"backbone {config.path!r}: its {what} cannot be loaded: {reason}") from error


def load_tokenizer(config: BackboneConfig) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer.

    Raises:
        EgmfError: the path is empty or holds no tokenizer.
    """
    tokenizer: PreTrainedTokenizerBase = _load("tokenizer", AutoTokenizer, config)
    return tokenizer


def load_backbone_config(config: BackboneConfig) -> Any:
    """The backbone's own configuration (width, layers, vocabulary)."""
    return _load("configuration", AutoConfig, config)


def load_backbone(config: BackboneConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The frozen causal LM with the LoRA adapter around it.

    Under ZeRO-3 an ``HfDeepSpeedConfig`` must be alive: transformers then partitions each weight as it is loaded.

    Args:
        config: where the model is and how its adapter looks.
        dtype: of the frozen weights; the adapter's are fp32 until DeepSpeed casts them.

    Raises:
        EgmfError: the model cannot be loaded or LoRA's targets are not in it.
    """
    disable_progress_bar()  # one bar per rank would drown the run's own
    model = _load("weights", AutoModelForCausalLM, config, dtype=dtype)
    model.config.use_cache = False
    model.requires_grad_(False)
    if config.lora_rank == 0:
        return model
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
    )
    try:
        adapted: Any = get_peft_model(model, settings, autocast_adapter_dtype=False)
    except ValueError as error:
        raise EgmfError(
            f"config: backbone.lora_targets {config.lora_targets!r}: {str(error).splitlines()[0]}"
        ) from error
    return adapted


def sequence_start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that the tokenizer puts before any text (a beginning-of-sequence token), or none."""
    bos = tokenizer.bos_token_id
    with_special = tokenizer("a", add_special_tokens=True)["input_ids"]
    return [int(bos)] if bos is not None and with_special and with_special[0] == bos else []
