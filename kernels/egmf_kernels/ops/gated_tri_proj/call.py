"""The gated output projections with their residual."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from egmf_kernels import select
from egmf_kernels.ops import reference
from egmf_kernels.ops.common import checks
from egmf_kernels.ops.common.calling import gate, in_torch, operators


def gated_tri_proj(
    x_TD: torch.Tensor,
    experts: Sequence[torch.Tensor],
    weight_EDD: torch.Tensor,
    bias_ED: torch.Tensor,
    gate_weight_ED: torch.Tensor | None,
    gate_context_BE: torch.Tensor | None,
    cu_segments: torch.Tensor,
    modalities: int,
    temperature: float = 1.0,
    modality_weight_BM: torch.Tensor | None = None,
    *,
    segment_T: torch.Tensor | None = None,
    checked: bool = False,
    implementation: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts' output projections, gated, with the residual: ``y = x + sum_e w[t,e] (W_e a_e + b_e)``.

    ``w[t,e] = beta_b,m(t) * softmax_e((W_g x_t + c_b) / tau)``.

    Args:
        x_TD: packed tokens, also the residual ``[T, D]``.
        experts: E streams ``a_e [T, D]`` before their output projection.
        weight_EDD: output projections ``[E, D, D]`` (out, in).
        bias_ED: ``[E, D]``.
        gate_weight_ED: see :func:`hier_gate_mix_norm`, as the rest.
        gate_context_BE: ``[B, E]`` or None.
        cu_segments: boundaries ``[B * M + 1]``.
        modalities: M.
        temperature: tau of the softmax over experts.
        modality_weight_BM: beta, or None.
        segment_T: see :mod:`egmf_kernels.ops.common.calling`.
        checked: see :mod:`egmf_kernels.ops.common.calling`.
        implementation: see :mod:`egmf_kernels.ops.common.calling`.

    Returns:
        ``y [T, D]`` and, for reading only, ``alpha [T, E]`` in fp32 (fp64 for fp64).

    Raises:
        ValueError: a shape, dtype, stride, device or boundary is wrong; names the argument.
    """
    checks.tokens("x", x_TD)
    checks.boundaries(cu_segments, x_TD, checked=checked)
    checks.gate(
        x_TD, experts, gate_weight_ED, gate_context_BE, modality_weight_BM, cu_segments, modalities, temperature,
        "experts",
    )  # fmt: skip
    count, width = len(experts), x_TD.shape[1]
    checks.parameter("weight", weight_EDD, x_TD, (count, width, width))
    checks.parameter("bias", bias_ED, x_TD, (count, width))
    choice = select.choose("gated_tri_proj", implementation, x_TD, experts=count)
    if choice == "triton":
        told = gate(x_TD, gate_weight_ED, gate_context_BE, modality_weight_BM, segment_T, cu_segments, modalities)
        out, alpha, _ = operators().gated_tri_proj(x_TD, list(experts), weight_EDD, bias_ED, *told, temperature)
        return out, alpha.detach()
    run = in_torch(reference.gated_tri_proj, choice)
    return run(
        x_TD, experts, weight_EDD, bias_ED, gate_weight_ED, gate_context_BE, cu_segments, modalities, temperature,
        modality_weight_BM,
    )  # fmt: skip
