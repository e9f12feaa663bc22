"""The three experts' streams, before their output projections (those belong to the gated mix).

Shape legend: T packed tokens, D width, H heads, C channels of a head.
"""

from __future__ import annotations

import math

import torch
from torch import nn

import egmf_kernels
from egmf_dist.config import ModelConfig
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.model.fusion import attention


class LocalExpert(nn.Module):
    """Fine-grained local expert: convolutions of several sizes inside one modality of one sample."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kernels = config.kernels
        self.weights = nn.ParameterList([nn.Parameter(torch.empty(config.width, size)) for size in config.kernel_sizes])
        for weight in self.weights:
            nn.init.uniform_(weight, -1 / math.sqrt(weight.shape[1]), 1 / math.sqrt(weight.shape[1]))
        self.bias = nn.Parameter(torch.zeros(len(config.kernel_sizes), config.width))
        self.scale = nn.Parameter(torch.ones(len(config.kernel_sizes)))

    def forward(
        self, x_TD: torch.Tensor, cu_segments: torch.Tensor, segment_T: torch.Tensor, checked: bool
    ) -> torch.Tensor:
        """``[T, D]``; ``checked``: the boundaries were looked at."""
        return egmf_kernels.ms_dwconv(
            x_TD,
            list(self.weights),
            self.bias,
            self.scale,
            cu_segments,
            segment_T=segment_T,
            checked=checked,
            implementation=self.kernels,
        )


class AttentionExperts(nn.Module):
    """Semantic-correlation and global-context experts: attention over a sample's joint sequence.

    The semantic expert's queries see the other modalities' tokens only (a token with no other modality gets zeros);
    the global expert's see every token of the sample. Both read one wide projection of x
    (:mod:`egmf_dist.model.fusion.attention`).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kinds = [k for k, on in (("semantic", config.semantic_expert), ("global", config.global_expert)) if on]
        self.heads, self.kernels = config.heads, config.kernels
        self.qkv = nn.Linear(config.width, 3 * config.width * len(self.kinds))

    def forward(self, x_TD: torch.Tensor, segment_T: torch.Tensor, batch: RaggedBatch) -> list[torch.Tensor]:
        """One ``[T, D]`` stream per enabled expert, semantic before global."""
        tokens, width = x_TD.shape
        heads = self.qkv(x_TD).view(tokens, len(self.kinds), 3, self.heads, width // self.heads)
        way = attention.packed if tokens and self.packs(heads) else attention.padded
        return [stream.reshape(tokens, width) for stream in way(heads, self.kinds, segment_T, batch)]

    def packs(self, heads: torch.Tensor) -> bool:
        """Whether heads ``[..., H, C]`` like these are attended over packed tokens; the reference pads."""
        return self.kernels != "reference" and attention.packs(heads)
