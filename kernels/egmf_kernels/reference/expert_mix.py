"""The three-expert mix: gate softmax, expert output projections, residual and RMSNorm as one function."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from egmf_kernels.reference.segments import segment_ids


def gated_expert_mix(
    x_TD: torch.Tensor,
    experts: Sequence[torch.Tensor],
    weight_EDD: torch.Tensor,
    bias_ED: torch.Tensor,
    gate_weight_ED: torch.Tensor | None,
    gate_context_BE: torch.Tensor | None,
    cu_segments: torch.Tensor,
    modalities: int,
    norm_weight_D: torch.Tensor,
    temperature: float,
    modality_weight_BM: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`egmf_kernels.gated_expert_mix`."""
    tokens = x_TD.shape[0]
    segment_T = segment_ids(cu_segments, tokens)
    if gate_weight_ED is None or gate_context_BE is None:
        alpha_TE = x_TD.new_full((tokens, len(experts)), 1.0 / len(experts))
    else:
        logits_TE = x_TD @ gate_weight_ED.T + gate_context_BE[segment_T // modalities]
        alpha_TE = (
            (logits_TE / temperature).softmax(-1, dtype=torch.promote_types(x_TD.dtype, torch.float32)).to(x_TD.dtype)
        )
    weight_TE = alpha_TE
    if modality_weight_BM is not None:
        weight_TE = alpha_TE * modality_weight_BM.reshape(-1)[segment_T][:, None]
    y_TD = x_TD
    for e, expert_TD in enumerate(experts):
        y_TD = y_TD + weight_TE[:, e : e + 1] * (expert_TD @ weight_EDD[e].T + bias_ED[e])
    y_TD = y_TD.to(torch.promote_types(y_TD.dtype, torch.float32))
    y_TD = y_TD * torch.rsqrt(y_TD.pow(2).mean(-1, keepdim=True) + eps)
    return y_TD.to(x_TD.dtype) * norm_weight_D, alpha_TE
