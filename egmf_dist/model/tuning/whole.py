"""The backbone as it is: nothing of it is trained, or all."""

from __future__ import annotations

from transformers import PreTrainedModel

from egmf_dist.config import BackboneConfig


def frozen(backbone: PreTrainedModel, config: BackboneConfig) -> PreTrainedModel:
    """Train nothing of it: the fusion alone learns to speak to it."""
    return backbone


def full(backbone: PreTrainedModel, config: BackboneConfig) -> PreTrainedModel:
    """Train every parameter of the language model that a prompt reaches; a vision tower beside it stays frozen."""
    whole = backbone.config is not backbone.config.get_text_config()
    reached = [backbone.get_decoder(), backbone.get_input_embeddings(), backbone.get_output_embeddings()]
    for module in reached if whole else [backbone]:
        if module is not None:
            module.requires_grad_(True)
    return backbone
