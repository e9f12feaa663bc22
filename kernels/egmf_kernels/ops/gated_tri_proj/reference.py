"""The gated projections in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from egmf_kernels.ops.common.gate import gate_weights, mixed
from egmf_kernels.ops.common.segments import segment_ids


def gated_tri_proj(
    x_TD: torch.Tensor,
    experts: Sequence[torch.Tensor],
    weight_EDD: torch.Tensor,
    bias_ED: torch.Tensor,
    gate_weight_ED: torch.Tensor | None,
    gate_context_BE: torch.Tensor | None,
    cu_segments: torch.Tensor,
    modalities: int,
    temperature: float,
    modality_weight_BM: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`egmf_kernels.gated_tri_proj`."""
    segment_T = segment_ids(cu_segments, x_TD.shape[0])
    alpha_TE = gate_weights(x_TD, len(experts), gate_weight_ED, gate_context_BE, segment_T, modalities, temperature)
    streams = [expert_TD @ weight_EDD[e].T + bias_ED[e] for e, expert_TD in enumerate(experts)]
    return mixed(x_TD, streams, alpha_TE, modality_weight_BM, segment_T), alpha_TE.detach()
