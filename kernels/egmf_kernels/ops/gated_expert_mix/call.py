"""Projections, gate, residual and norm: one function, two fused ways."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from egmf_kernels import select
from egmf_kernels.ops import reference
from egmf_kernels.ops.common import checks
from egmf_kernels.ops.common.arguments import Gate
from egmf_kernels.ops.common.calling import gate, in_torch, operators


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
    temperature: float = 1.0,
    modality_weight_BM: torch.Tensor | None = None,
    eps: float = 1e-6,
    *,
    segment_T: torch.Tensor | None = None,
    checked: bool = False,
    implementation: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix the experts: ``o = RMSNorm(x + sum_e w[t,e] (W_e a_e + b_e))``, w as in :func:`gated_tri_proj`.

    One function, two fused implementations: up to D = 512 the projections run inside gated_tri_proj and its output is
    normed; above that cuBLAS projects (where it is at its best) and hier_gate_mix_norm does the rest in one pass.

    Args:
        x_TD: packed tokens, also the residual ``[T, D]``.
        experts: E streams ``a_e [T, D]`` before their output projection.
        weight_EDD: output projections ``[E, D, D]`` (out, in).
        bias_ED: ``[E, D]``.
        gate_weight_ED: ``[E, D]``, or None for equal weights.
        gate_context_BE: the gate's per-sample logits ``U c_b [B, E]``, or None with ``gate_weight_ED``.
        cu_segments: boundaries ``[B * M + 1]``.
        modalities: M.
        norm_weight_D: gain of the RMSNorm ``[D]``.
        temperature: tau of the softmax over experts.
        modality_weight_BM: the second level's weights where they act on the mix, or None.
        eps: added to the mean square.
        segment_T: see :mod:`egmf_kernels.ops.common.calling`.
        checked: see :mod:`egmf_kernels.ops.common.calling`.
        implementation: see :mod:`egmf_kernels.ops.common.calling`.

    Returns:
        ``o [T, D]`` and, for reading only, the gate's weights ``alpha [T, E]`` in fp32 (fp64 for fp64).

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
    checks.parameter("norm_weight", norm_weight_D, x_TD, (width,))
    choice = select.choose("gated_expert_mix", implementation, x_TD, experts=count)
    if choice == "triton":
        fused = mix_in_projection if select.projects_inside(x_TD) else mix_after_projection
        told = gate(x_TD, gate_weight_ED, gate_context_BE, modality_weight_BM, segment_T, cu_segments, modalities)
        return fused(x_TD, list(experts), weight_EDD, bias_ED, told, norm_weight_D, temperature, eps)
    run = in_torch(reference.gated_expert_mix, choice)
    return run(
        x_TD, experts, weight_EDD, bias_ED, gate_weight_ED, gate_context_BE, cu_segments, modalities, norm_weight_D,
        temperature, modality_weight_BM, eps,
    )  # fmt: skip


def mix_in_projection(
    x_TD: torch.Tensor,
    experts: list[torch.Tensor],
    weight_EDD: torch.Tensor,
    bias_ED: torch.Tensor,
    told: Gate,
    norm_weight_D: torch.Tensor,
    temperature: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`gated_expert_mix` as gated_tri_proj and a norm; its arguments, checked."""
    registered = operators()
    y, alpha, _ = registered.gated_tri_proj(x_TD, experts, weight_EDD, bias_ED, *told, temperature)
    out, _, _ = registered.hier_gate_mix_norm(y, [], *told.norm_alone(), norm_weight_D, 1.0, eps)
    return out, alpha.detach()


def mix_after_projection(
    x_TD: torch.Tensor,
    experts: list[torch.Tensor],
    weight_EDD: torch.Tensor,
    bias_ED: torch.Tensor,
    told: Gate,
    norm_weight_D: torch.Tensor,
    temperature: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`gated_expert_mix` as cuBLAS projections and hier_gate_mix_norm; its arguments, checked."""
    weights = zip(weight_EDD.unbind(0), bias_ED.unbind(0), strict=True)
    streams = [F.linear(a, weight, bias) for a, (weight, bias) in zip(experts, weights, strict=True)]
    out, alpha, _ = operators().hier_gate_mix_norm(x_TD, streams, *told, norm_weight_D, temperature, eps)
    return out, alpha.detach()
