"""K learned queries pool each modality's tokens; a presence-masked softmax over modalities mixes the pooled vectors."""

from __future__ import annotations

import math

import torch

from egmf_kernels.ops.common.segments import segment_ids, segment_softmax


def modality_gate(logits_BM: torch.Tensor, presence_BM: torch.Tensor, temperature: float) -> torch.Tensor:
    """See :func:`egmf_kernels.modality_gate`."""
    scores = (logits_BM / temperature).masked_fill(~presence_BM, float("-inf"))
    nothing = ~presence_BM.any(-1, keepdim=True)
    # A row of -inf alone would be NaN, forward and backward: give it zeros, then weight 0.
    return scores.masked_fill(nothing, 0.0).softmax(-1).masked_fill(~presence_BM, 0.0)


def ragged_pool_gate(
    o_TD: torch.Tensor,
    queries_KD: torch.Tensor,
    logits_BM: torch.Tensor,
    cu_segments: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`egmf_kernels.ragged_pool_gate`."""
    tokens, width = o_TD.shape
    batch, modalities = logits_BM.shape
    dtype = o_TD.dtype
    # Sums over hundreds of tokens in 8 bits of mantissa would lose most of them.
    o_TD, queries_KD, logits_BM = (
        t.to(torch.promote_types(t.dtype, torch.float32)) for t in (o_TD, queries_KD, logits_BM)
    )
    segment_T = segment_ids(cu_segments, tokens)
    attention_TK = segment_softmax(o_TD @ queries_KD.T / math.sqrt(width), segment_T, batch * modalities)
    presence_BM = (cu_segments.diff() > 0).reshape(batch, modalities)
    beta_BM = modality_gate(logits_BM, presence_BM, temperature)
    weighted_TK = attention_TK * beta_BM.reshape(-1)[segment_T][:, None]
    pooled_BKD = o_TD.new_zeros(batch, queries_KD.shape[0], width).index_add(
        0, segment_T // modalities, weighted_TK[:, :, None] * o_TD[:, None, :]
    )
    return pooled_BKD.to(dtype), beta_BM.detach()
