"""Attention over packed tokens, without padding: torch's variable-length kernel on a GPU.

Shape legend: T packed tokens, R rows of keys, H heads, C channels of a head, S sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from egmf_dist.data.batch import RaggedBatch

try:  # torch 2.10 and newer
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # pragma: no cover
    varlen_attn: Callable[..., Any] | None = None  # type: ignore[no-redef]


def serves(tokens: torch.Tensor, head_width: int) -> bool:
    """Whether the kernel takes such tokens: 16 bits, on a GPU, heads of a multiple of 8 channels up to 256."""
    fits = tokens.element_size() == 2 and head_width % 8 == 0 and head_width <= 256
    return varlen_attn is not None and tokens.is_cuda and fits


class KeyRows(torch.autograd.Function):
    """Packed tokens as rows of keys, each as often as it is looked at.

    Backward adds a token's rows in a fixed order; indexing's own backward sorts, or adds atomically.
    """

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, row_R: torch.Tensor, place_TN: torch.Tensor) -> torch.Tensor:
        """``[R, ...]``."""
        ctx.save_for_backward(place_TN)
        return tokens[row_R]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """The gradient of the tokens."""
        (place_TN,) = ctx.saved_tensors
        gradient = gradients[0]
        padded = torch.cat([gradient, gradient.new_zeros(1, *gradient.shape[1:])])
        total = padded[place_TN[:, 0]]
        for n in range(1, place_TN.shape[1]):
            total = total + padded[place_TN[:, n]]
        return total, None, None


def global_attention(query: torch.Tensor, key_value: torch.Tensor, batch: RaggedBatch, modalities: int) -> torch.Tensor:
    """Every token over all tokens of its sample: ``[T, H, C]`` from queries and ``[T, 2, H, C]`` keys and values."""
    cu_samples = batch.cu_segments[::modalities].contiguous()
    key, value = key_value.unbind(1)
    return _attend(query, key, value, cu_samples, cu_samples, batch.joint_length, batch.joint_length)


def semantic_attention(
    query: torch.Tensor, key_value: torch.Tensor, batch: RaggedBatch, segment_T: torch.Tensor
) -> torch.Tensor:
    """Every token over its sample's tokens of other modalities, zeros where there are none: shapes as above."""
    others = batch.others
    if not len(others.row_R):
        return query * 0.0
    key, value = KeyRows.apply(key_value, others.row_R, others.place_TN).unbind(1)
    out = _attend(query, key, value, batch.cu_segments, others.cu_segments, batch.joint_length, others.longest)
    blind_T = (others.cu_segments.diff() == 0)[segment_T.long()]
    return out.masked_fill(blind_T[:, None, None], 0.0)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_query: torch.Tensor, cu_key: torch.Tensor,
    longest_query: int, longest_key: int,
) -> torch.Tensor:  # fmt: skip
    assert varlen_attn is not None
    out = varlen_attn(query, key, value, cu_query, cu_key, longest_query, longest_key)
    assert isinstance(out, torch.Tensor)
    return out
