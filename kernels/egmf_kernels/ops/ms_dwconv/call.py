"""Multi-scale depthwise convolution inside segments."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from egmf_kernels import select
from egmf_kernels.ops import reference
from egmf_kernels.ops.common import checks
from egmf_kernels.ops.common.calling import in_torch, operators, segments


def ms_dwconv(
    x_TD: torch.Tensor,
    weights: Sequence[torch.Tensor],
    bias_SD: torch.Tensor,
    mu_S: torch.Tensor,
    cu_segments: torch.Tensor,
    *,
    segment_T: torch.Tensor | None = None,
    checked: bool = False,
    implementation: str | None = None,
) -> torch.Tensor:
    """Multi-scale depthwise convolution that never crosses a segment: ``sum_s mu_s gelu(dwconv_{k_s}(x) + b_s)``.

    ``gelu`` is the tanh form.

    Args:
        x_TD: packed tokens ``[T, D]``.
        weights: for each scale ``[D, k_s]``, k_s odd.
        bias_SD: ``[S, D]``.
        mu_S: weight of each scale ``[S]``.
        cu_segments: boundaries ``[segments + 1]``, int32 or int64, ascending from 0 to T.
        segment_T: see :mod:`egmf_kernels.ops.common.calling`.
        checked: see :mod:`egmf_kernels.ops.common.calling`.
        implementation: see :mod:`egmf_kernels.ops.common.calling`.

    Returns:
        ``[T, D]`` in the dtype of ``x_TD``.

    Raises:
        ValueError: a shape, dtype, stride, device or boundary is wrong; names the argument.
    """
    checks.tokens("x", x_TD)
    checks.boundaries(cu_segments, x_TD, checked=checked)
    width = x_TD.shape[1]
    if not weights:
        raise ValueError(f"weights is empty; it must hold one [{width}, odd kernel size] tensor per scale")
    for scale, weight in enumerate(weights):
        if weight.dim() != 2 or weight.shape[1] % 2 != 1:
            if not weight.numel():
                checks.shape(f"weights[{scale}]", weight, (width, 1))
            raise ValueError(f"weights[{scale}] has shape {list(weight.shape)}; it must be [{width}, odd kernel size]")
        checks.parameter(f"weights[{scale}]", weight, x_TD, (width, weight.shape[1]))
    checks.parameter("bias", bias_SD, x_TD, (len(weights), width))
    checks.parameter("mu", mu_S, x_TD, (len(weights),))
    largest = max(weight.shape[1] for weight in weights)
    choice = select.choose("ms_dwconv", implementation, x_TD, kernel_size=largest)
    if choice == "triton":
        segment_T = segments(cu_segments, len(x_TD), segment_T)
        out: torch.Tensor = operators().ms_dwconv(x_TD, list(weights), bias_SD, mu_S, segment_T)
        return out
    run = in_torch(reference.ms_dwconv, choice)
    return run(x_TD, weights, bias_SD, mu_S, cu_segments)
