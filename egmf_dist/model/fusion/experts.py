"""The three experts' streams, before their output projections (those belong to the gated mix).

Shape legend: T packed tokens, D width, H heads, C channels of a head, B samples, J longest joint sequence.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

import egmf_kernels
from egmf_dist.config import ModelConfig
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.model.fusion import packed_attention
from egmf_shards import MODALITIES


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
    """Semantic-correlation and global-context experts: attention over a sample's joint sequence, with different masks.

    The semantic expert's queries see the other modalities' tokens only (a token with no other modality gets zeros);
    the global expert's see every token of the sample. Both read one wide projection of x. On a GPU, in 16 bits,
    both run over packed tokens (:mod:`egmf_dist.model.fusion.packed_attention`). Elsewhere the joint sequences are
    padded for torch's attention alone; the mask keeps padding out, and the result is packed again.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kinds = [k for k, on in (("semantic", config.semantic_expert), ("global", config.global_expert)) if on]
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width * len(self.kinds))

    def forward(self, x_TD: torch.Tensor, segment_T: torch.Tensor, batch: RaggedBatch) -> list[torch.Tensor]:
        """One ``[T, D]`` stream per enabled expert, semantic before global."""
        tokens, width = x_TD.shape
        heads = self.qkv(x_TD).view(tokens, len(self.kinds), 3, self.heads, width // self.heads)
        packed = packed_attention.serves(heads, heads.shape[-1])
        streams = self._packed(heads, segment_T, batch) if packed else self._padded(heads, segment_T, batch)
        return [stream.reshape(tokens, width) for stream in streams]

    def _packed(self, heads: torch.Tensor, segment_T: torch.Tensor, batch: RaggedBatch) -> list[torch.Tensor]:
        """Of ``[T, kinds, 3, H, C]`` one ``[T, H, C]`` a kind."""
        streams = []
        for i, kind in enumerate(self.kinds):
            query, key_value = heads[:, i, 0], heads[:, i, 1:]
            if kind == "semantic":
                streams.append(packed_attention.semantic_attention(query, key_value, batch, segment_T))
            else:
                streams.append(packed_attention.global_attention(query, key_value, batch, len(MODALITIES)))
        return streams

    def _padded(self, heads: torch.Tensor, segment_T: torch.Tensor, batch: RaggedBatch) -> list[torch.Tensor]:
        """The same, under masks ``[B, J, J]``."""
        samples, longest = (batch.cu_segments.numel() - 1) // len(MODALITIES), batch.joint_length
        sample_T = segment_T // len(MODALITIES)
        sample_start_B = batch.cu_segments[:-1].long()[:: len(MODALITIES)]
        column_T = torch.arange(len(heads), device=heads.device) - sample_start_B[sample_T]
        # -1 marks padding, which is of no modality.
        kind_BJ = torch.full((samples, longest), -1, device=heads.device, dtype=torch.long)
        kind_BJ = kind_BJ.index_put((sample_T, column_T), segment_T % len(MODALITIES))
        real_BJ = kind_BJ >= 0
        padded = heads.new_zeros(samples, longest, *heads.shape[1:]).index_put((sample_T, column_T), heads)
        streams = []
        for i, kind in enumerate(self.kinds):
            query, key, value = (padded[:, :, i, j].transpose(1, 2) for j in range(3))
            sees_BJJ = real_BJ[:, None, :].expand(-1, longest, -1)
            if kind == "semantic":
                sees_BJJ = sees_BJJ & (kind_BJ[:, None, :] != kind_BJ[:, :, None])
            # A row that sees nothing would be NaN, forward and backward: let it see everything, then zero it.
            blind_BJ = ~sees_BJJ.any(-1)
            mask = (sees_BJJ | blind_BJ[:, :, None])[:, None]
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
            streams.append(out.masked_fill(blind_BJ[:, :, None, None], 0.0)[sample_T, column_T])
        return streams
