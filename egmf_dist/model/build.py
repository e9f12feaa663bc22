"""Build EGMF for a configuration, seeded so that every rank makes the same fusion weights; load what was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from egmf_dist.config import Config
from egmf_dist.errors import EgmfError
from egmf_dist.model.backbone import load_backbone, sequence_start
from egmf_dist.model.egmf import EGMF
from egmf_shards.task import Task

TRAINED_FILE = "trained.safetensors"


def build_egmf(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, Task],
    languages: Sequence[str],
    dims: Mapping[str, int],
) -> EGMF:
    """The model with fresh fusion and adapter weights.

    Raises:
        EgmfError: the backbone cannot be loaded.
    """
    torch.manual_seed(config.training.seed)
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    backbone = load_backbone(config.backbone, dtype)
    embedding = backbone.get_input_embeddings()
    model = EGMF(
        config.model,
        backbone,
        hidden=backbone.config.hidden_size,
        vocabulary=backbone.config.vocab_size,
        embedding_rms=embedding_rms(embedding) if config.model.pseudo_tokens else 1.0,
        tasks=tasks,
        languages=languages,
        dims=dims,
        eos=int(tokenizer.eos_token_id),
        start=sequence_start(tokenizer),
    )
    # ZeRO-3 flattens parameters together and wants one dtype; DeepSpeed keeps fp32 copies for its optimiser.
    for parameter in trained_parameters(model).values():
        parameter.data = parameter.data.to(dtype)
    return model


def embedding_rms(embedding: nn.Module) -> float:
    """Root mean square of an embedding table, gathered for the moment where ZeRO-3 has partitioned it."""
    weight: torch.Tensor = embedding.weight  # type: ignore[assignment]
    if hasattr(weight, "ds_id"):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([weight]):
            return float(weight.float().pow(2).mean().sqrt())
    return float(weight.float().pow(2).mean().sqrt())


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def load_trained(model: nn.Module, folder: Path) -> None:
    """Fill the trained parameters of a model (not yet given to DeepSpeed) from ``folder/trained.safetensors``.

    Raises:
        EgmfError: the file is missing, or its names or shapes are not this model's.
    """
    path = folder / TRAINED_FILE
    if not path.is_file():
        raise EgmfError(f"{path}: no such file; give the folder of a trained adapter")
    saved, own = load_file(path), trained_parameters(model)
    if saved.keys() != own.keys():
        odd = sorted(saved.keys() ^ own.keys())
        raise EgmfError(f"{path}: does not fit this model: {len(odd)} names differ, the first is {odd[0]}")
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != saved[name].shape:
                raise EgmfError(f"{path}: {name} is {list(saved[name].shape)}; this model's is {list(parameter.shape)}")
            parameter.copy_(saved[name])
