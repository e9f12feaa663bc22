"""K pooled vectors to K pseudo tokens at the scale of the LLM's embeddings."""

from __future__ import annotations

import torch
from torch import nn

from egmf_dist.config import ModelConfig


class PseudoTokens(nn.Module):
    """Project each pooled vector into the LLM's embedding space.

    Every pseudo token has a learned vector of its own added before the projection, so the K of them span K dimensions
    even where the pooled vectors coincide (one-token utterances, nothing present); the predecessor's were scaled copies
    of one vector. Their root mean square starts at that of the LLM's embeddings and is learnt from there.

    Args:
        config: K and the width.
        hidden: the backbone's width H.
        embedding_rms: root mean square of the backbone's input embeddings.
    """

    def __init__(self, config: ModelConfig, hidden: int, embedding_rms: float) -> None:
        super().__init__()
        self.slot = nn.Parameter(torch.empty(config.pseudo_tokens, config.width))
        nn.init.orthogonal_(self.slot, gain=config.width**0.5)
        self.up = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, hidden)
        self.scale = nn.Parameter(torch.full((1,), float(embedding_rms)))

    def forward(self, pooled_BKD: torch.Tensor) -> torch.Tensor:
        """``[B, K, D]`` to ``[B, K, H]``."""
        hidden = self.out(nn.functional.gelu(self.up(pooled_BKD + self.slot)))
        return nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=1e-6) * self.scale
