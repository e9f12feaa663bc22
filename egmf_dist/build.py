"""Build EGMF for a configuration, seeded so that every rank makes the same fusion weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from egmf_dist.config import Config
from egmf_dist.data.chat import read_chat
from egmf_dist.data.collate import Collator
from egmf_dist.data.run_data import RunData
from egmf_dist.errors import EgmfError
from egmf_dist.model.backbone import Capabilities, embedding_rms, load_backbone, load_tokenizer, read_capabilities
from egmf_dist.model.egmf import EGMF
from egmf_dist.model.precision import dtype_of
from egmf_dist.model.trained import trained_parameters
from egmf_dist.objectives.base import make_objective


def read_backbone(config: Config, data: RunData) -> tuple[Capabilities, Collator]:
    """What the backbone can do, and the collator that writes for it; no weights are loaded.

    Raises:
        EgmfError: the backbone is none, or cannot read this data's tasks.
    """
    tokenizer = load_tokenizer(config.backbone)
    capabilities = read_capabilities(config.backbone, tokenizer)
    limits = capabilities.limits(config.model)
    if config.prompt.chat_template == "auto":
        limits = limits.spoken_as(read_chat(tokenizer, capabilities.vocabulary, capabilities.eos))
    return capabilities, data.collator(tokenizer, config, limits)


def build_egmf(
    config: Config, capabilities: Capabilities, data: RunData, backbone: PreTrainedModel | None = None
) -> EGMF:
    """The model with fresh fusion and adapter weights.

    Args:
        config: the run's settings.
        capabilities: of its backbone.
        data: of the run.
        backbone: fitted already; None: it is loaded.

    Raises:
        EgmfError: the backbone cannot be loaded.
    """
    torch.manual_seed(config.training.seed)
    dtype = dtype_of(config.training.precision)
    backbone = backbone or load_backbone(config.backbone, dtype)
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
        data=data,
        objective=make_objective(config, data.tasks),
    )
    # ZeRO-3 flattens parameters together and wants one dtype; DeepSpeed keeps fp32 copies for its optimiser.
    for parameter in trained_parameters(model).values():
        parameter.data = parameter.data.to(dtype)
    return model
