"""Gated projections and RMSNorm in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from egmf_kernels.ops.common.gate import rms_norm
from egmf_kernels.ops.gated_tri_proj.reference import gated_tri_proj


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
    y_TD, alpha_TE = gated_tri_proj(
        x_TD,
        experts,
        weight_EDD,
        bias_ED,
        gate_weight_ED,
        gate_context_BE,
        cu_segments,
        modalities,
        temperature,
        modality_weight_BM,
    )
    return rms_norm(y_TD, norm_weight_D, eps), alpha_TE
