"""The gate in plain torch: softmax over experts, the weighted sum with its residual, RMSNorm."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def gate_weights(
    x_TD: torch.Tensor,
    experts: int,
    gate_weight_ED: torch.Tensor | None,
    gate_context_BE: torch.Tensor | None,
    segment_T: torch.Tensor,
    modalities: int,
    temperature: float,
) -> torch.Tensor:
    """``alpha [T, E]``, the softmax over experts, in at least fp32."""
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    if gate_weight_ED is None or gate_context_BE is None:
        return x_TD.new_full((x_TD.shape[0], experts), 1.0 / experts, dtype=wide)
    logits_TE = x_TD @ gate_weight_ED.T + gate_context_BE[segment_T // modalities]
    return (logits_TE / temperature).softmax(-1, dtype=wide)


def mixed(
    x_TD: torch.Tensor,
    streams: Sequence[torch.Tensor],
    alpha_TE: torch.Tensor,
    modality_weight_BM: torch.Tensor | None,
    segment_T: torch.Tensor,
) -> torch.Tensor:
    weight_TE = alpha_TE.to(x_TD.dtype)
    if modality_weight_BM is not None:
        weight_TE = weight_TE * modality_weight_BM.reshape(-1)[segment_T][:, None]
    y_TD = x_TD
    for e, stream_TD in enumerate(streams):
        y_TD = y_TD + weight_TE[:, e : e + 1] * stream_TD
    return y_TD


def rms_norm(y_TD: torch.Tensor, norm_weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """``y / sqrt(mean(y^2) + eps) * gamma``, the mean in at least fp32."""
    wide_TD = y_TD.to(torch.promote_types(y_TD.dtype, torch.float32))
    wide_TD = wide_TD * torch.rsqrt(wide_TD.pow(2).mean(-1, keepdim=True) + eps)
    return wide_TD.to(y_TD.dtype) * norm_weight_D
