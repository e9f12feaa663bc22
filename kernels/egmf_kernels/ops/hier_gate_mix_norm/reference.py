"""The gated mix in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from egmf_kernels.ops.common.gate import gate_weights, mixed, rms_norm
from egmf_kernels.ops.common.segments import segment_ids


def hier_gate_mix_norm(
    x_TD: torch.Tensor,
    streams: Sequence[torch.Tensor],
    gate_weight_ED: torch.Tensor | None,
    gate_context_BE: torch.Tensor | None,
    cu_segments: torch.Tensor,
    modalities: int,
    norm_weight_D: torch.Tensor,
    temperature: float,
    modality_weight_BM: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`egmf_kernels.hier_gate_mix_norm`."""
    segment_T = segment_ids(cu_segments, x_TD.shape[0])
    alpha_TE = gate_weights(x_TD, len(streams), gate_weight_ED, gate_context_BE, segment_T, modalities, temperature)
    y_TD = mixed(x_TD, streams, alpha_TE, modality_weight_BM, segment_T)
    return rms_norm(y_TD, norm_weight_D, eps), alpha_TE.detach()
