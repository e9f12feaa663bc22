"""Build EGMF for a configuration, seeded so that every rank makes the same fusion weights; load what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from egmf_dist.config import Config
from egmf_dist.data.collate import Collator
from egmf_dist.data.run_data import RunData
from egmf_dist.errors import EgmfError
from egmf_dist.model.backbone import Capabilities, embedding_rms, load_backbone, load_tokenizer, read_capabilities
from egmf_dist.model.egmf import EGMF

TRAINED_FILE = "trained.safetensors"


def read_backbone(config: Config, data: RunData) -> tuple[Capabilities, Collator]:
    """What the backbone can do, and the collator that writes for it; no weights are loaded.

    Raises:
        EgmfError: the backbone is none, or cannot read this data's tasks.
    """
    tokenizer = load_tokenizer(config.backbone)
    capabilities = read_capabilities(config.backbone, tokenizer)
    return capabilities, data.collator(tokenizer, config.data, capabilities.limits(config.model.pseudo_tokens))


def build_egmf(config: Config, capabilities: Capabilities, data: RunData) -> EGMF:
    """The model with fresh fusion and adapter weights.

    Raises:
        EgmfError: the backbone cannot be loaded.
    """
    torch.manual_seed(config.training.seed)
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    backbone = load_backbone(config.backbone, dtype)
    embedding = backbone.get_input_embeddings()
    weight: Any = embedding.weight
    shape = getattr(weight, "ds_shape", weight.shape)
    if shape[-1] != capabilities.width:
        raise EgmfError(
            f"backbone {config.backbone.path!r}: its embeddings are {shape[-1]} wide, its config.json says "
            f"{capabilities.width}; the folder mixes two models"
        )
    model = EGMF(
        config.model,
        backbone,
        capabilities,
        embedding_rms=embedding_rms(embedding, capabilities.vocabulary) if config.model.pseudo_tokens else 1.0,
        tasks=data.tasks,
        languages=data.languages,
        dims=data.dims,
    )
    # ZeRO-3 flattens parameters together and wants one dtype; DeepSpeed keeps fp32 copies for its optimiser.
    for parameter in trained_parameters(model).values():
        parameter.data = parameter.data.to(dtype)
    return model


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def load_trained(model: nn.Module, folder: Path) -> None:
    """Fill the trained parameters of a model (not yet given to DeepSpeed) from ``folder/trained.safetensors``.

    Raises:
        EgmfError: the file is missing or damaged, or its names or shapes are not this model's.
    """
    path = folder / TRAINED_FILE
    if not path.is_file():
        raise EgmfError(f"{path}: no such file; give the folder of a trained adapter")
    try:
        saved, own = load_file(path), trained_parameters(model)
    except (OSError, SafetensorError) as error:
        raise EgmfError(f"{path}: cannot be read: {error}; put it back from a copy") from error
    if saved.keys() != own.keys():
        odd = sorted(saved.keys() ^ own.keys())
        raise EgmfError(f"{path}: does not fit this model: {len(odd)} names differ, the first is {odd[0]}")
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != saved[name].shape:
                raise EgmfError(f"{path}: {name} is {list(saved[name].shape)}; this model's is {list(parameter.shape)}")
            parameter.copy_(saved[name])
