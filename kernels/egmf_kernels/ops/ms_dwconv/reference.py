"""Multi-scale depthwise convolution inside segments: ``a = sum_s mu_s * GELU(dwconv_{k_s}(x))``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from egmf_kernels.ops.common.segments import segment_ids


def ms_dwconv(
    x_TD: torch.Tensor,
    weights: Sequence[torch.Tensor],
    bias_SD: torch.Tensor,
    mu_S: torch.Tensor,
    cu_segments: torch.Tensor,
) -> torch.Tensor:
    """See :func:`egmf_kernels.ms_dwconv`."""
    tokens = x_TD.shape[0]
    segment_T = segment_ids(cu_segments, tokens)
    reach = max(weight.shape[1] for weight in weights) // 2
    padded = F.pad(x_TD, (0, 0, reach, reach))
    # -1 is no segment: the padding at both ends never equals a token's own.
    padded_segment = F.pad(segment_T, (reach, reach), value=-1)
    taps = []
    for shift in range(2 * reach + 1):
        inside = padded_segment[shift : shift + tokens] == segment_T
        taps.append(padded[shift : shift + tokens] * inside[:, None])
    out = torch.zeros_like(x_TD)
    for scale, weight_DK in enumerate(weights):
        half = weight_DK.shape[1] // 2
        convolved = bias_SD[scale].expand_as(x_TD)
        for tap in range(weight_DK.shape[1]):
            convolved = convolved + taps[reach - half + tap] * weight_DK[:, tap]
        out = out + mu_S[scale] * F.gelu(convolved, approximate="tanh")
    return out
