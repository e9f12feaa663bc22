"""The public operators: every argument is checked here, once, before any implementation runs.

Symbols: T packed tokens, D width, B samples, M modalities, E experts, K queries, S scales of the convolution.
Every operator takes ``implementation`` (``auto``, ``reference``, ``triton``; None for the surrounding
:func:`egmf_kernels.using`) and ``segment_T`` (int32 segment of each token; computed where it is not given).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from egmf_kernels import checks, reference, select
from egmf_kernels.reference.segments import segment_ids


def _ops() -> Any:
    """``torch.ops.egmf``; importing the library registers it, and only a process that uses it pays for Triton."""
    from egmf_kernels import library  # noqa: F401

    return torch.ops.egmf


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _torch(function: Callable[..., Any], choice: select.Choice) -> Callable[..., Any]:
    """The reference, compiled where that was chosen."""
    return _compiled(function) if choice == "compile" else function


def _segments(cu_segments: torch.Tensor, tokens: int, segment_T: torch.Tensor | None) -> torch.Tensor:
    if segment_T is None:
        return segment_ids(cu_segments, tokens).int()
    checks.segment_numbers(segment_T, tokens, cu_segments)
    return segment_T.int().contiguous()


def ms_dwconv(
    x_TD: torch.Tensor,
    weights: Sequence[torch.Tensor],
    bias_SD: torch.Tensor,
    mu_S: torch.Tensor,
    cu_segments: torch.Tensor,
    *,
    segment_T: torch.Tensor | None = None,
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
        segment_T: see the module.
        implementation: see the module.

    Returns:
        ``[T, D]`` in the dtype of ``x_TD``.

    Raises:
        ValueError: a shape, dtype, stride, device or boundary is wrong; names the argument.
    """
    checks.tokens("x", x_TD)
    checks.boundaries(cu_segments, x_TD)
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
        segment_T = _segments(cu_segments, len(x_TD), segment_T)
        out: torch.Tensor = _ops().ms_dwconv(x_TD, list(weights), bias_SD, mu_S, segment_T)
        return out
    run = _torch(reference.ms_dwconv, choice)
    return run(x_TD, weights, bias_SD, mu_S, cu_segments)


def hier_gate_mix_norm(
    x_TD: torch.Tensor,
    streams: Sequence[torch.Tensor],
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
    implementation: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix streams by the gate: ``o = RMSNorm(x + sum_e w[t,e] h_e)``, ``w = beta * softmax_e((W_g x_t + c_b) / tau)``.

    Args:
        x_TD: packed tokens, also the residual ``[T, D]``.
        streams: E streams ``h_e [T, D]``.
        gate_weight_ED: ``[E, D]``, or None for equal weights.
        gate_context_BE: the gate's per-sample logits ``U c_b [B, E]``, or None with ``gate_weight_ED``.
        cu_segments: boundaries ``[B * M + 1]``.
        modalities: M.
        norm_weight_D: gain of the RMSNorm ``[D]``.
        temperature: tau of the softmax over experts.
        modality_weight_BM: the second level's weights beta where they act on the mix, or None.
        eps: added to the mean square.
        segment_T: see the module.
        implementation: see the module.

    Returns:
        ``o [T, D]`` and, for reading only (no gradient), the gate's ``alpha [T, E]`` in fp32 (fp64 for fp64).

    Raises:
        ValueError: a shape, dtype, stride, device or boundary is wrong; names the argument.
    """
    checks.gate(
        x_TD, streams, gate_weight_ED, gate_context_BE, modality_weight_BM, cu_segments, modalities, temperature,
        "streams",
    )  # fmt: skip
    checks.parameter("norm_weight", norm_weight_D, x_TD, (x_TD.shape[1],))
    choice = select.choose("hier_gate_mix_norm", implementation, x_TD, experts=len(streams))
    if choice == "triton":
        out, alpha, _ = _ops().hier_gate_mix_norm(
            x_TD, list(streams), gate_weight_ED, _rows(gate_context_BE), _rows(modality_weight_BM),
            _segments(cu_segments, len(x_TD), segment_T), cu_segments, modalities, norm_weight_D, temperature, eps,
        )  # fmt: skip
        return out, alpha.detach()
    run = _torch(reference.hier_gate_mix_norm, choice)
    return run(
        x_TD, streams, gate_weight_ED, gate_context_BE, cu_segments, modalities, norm_weight_D, temperature,
        modality_weight_BM, eps,
    )  # fmt: skip


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
        segment_T: see the module.
        implementation: see the module.

    Returns:
        ``y [T, D]`` and, for reading only, ``alpha [T, E]`` in fp32 (fp64 for fp64).

    Raises:
        ValueError: a shape, dtype, stride, device or boundary is wrong; names the argument.
    """
    checks.gate(
        x_TD, experts, gate_weight_ED, gate_context_BE, modality_weight_BM, cu_segments, modalities, temperature,
        "experts",
    )  # fmt: skip
    count, width = len(experts), x_TD.shape[1]
    checks.parameter("weight", weight_EDD, x_TD, (count, width, width))
    checks.parameter("bias", bias_ED, x_TD, (count, width))
    choice = select.choose("gated_tri_proj", implementation, x_TD, experts=count)
    if choice == "triton":
        out, alpha = _ops().gated_tri_proj(
            x_TD, list(experts), weight_EDD, bias_ED, gate_weight_ED, _rows(gate_context_BE),
            _rows(modality_weight_BM), _segments(cu_segments, len(x_TD), segment_T), cu_segments, modalities,
            temperature,
        )  # fmt: skip
        return out, alpha.detach()
    run = _torch(reference.gated_tri_proj, choice)
    return run(
        x_TD, experts, weight_EDD, bias_ED, gate_weight_ED, gate_context_BE, cu_segments, modalities, temperature,
        modality_weight_BM,
    )  # fmt: skip


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
    implementation: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix the experts: ``o = RMSNorm(x + sum_e w[t,e] (W_e a_e + b_e))``, w as in :func:`gated_tri_proj`.

    One function, two fused implementations: up to D = 512 the projections run inside K4 and its output is normed; above
    that cuBLAS projects (where it is at its best) and K2 does the rest in one pass.

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
        segment_T: see the module.
        implementation: see the module.

    Returns:
        ``o [T, D]`` and, for reading only, the gate's weights ``alpha [T, E]`` in fp32 (fp64 for fp64).

    Raises:
        ValueError: a shape, dtype, stride, device or boundary is wrong; names the argument.
    """
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
        fused = mix_in_projection if width <= select.PROJECTION_WIDTH else mix_after_projection
        return fused(
            x_TD, list(experts), weight_EDD, bias_ED, gate_weight_ED, _rows(gate_context_BE),
            _rows(modality_weight_BM), _segments(cu_segments, len(x_TD), segment_T), cu_segments, modalities,
            norm_weight_D, temperature, eps,
        )  # fmt: skip
    run = _torch(reference.gated_expert_mix, choice)
    return run(
        x_TD, experts, weight_EDD, bias_ED, gate_weight_ED, gate_context_BE, cu_segments, modalities, norm_weight_D,
        temperature, modality_weight_BM, eps,
    )  # fmt: skip


def mix_in_projection(
    x_TD: torch.Tensor,
    experts: list[torch.Tensor],
    weight_EDD: torch.Tensor,
    bias_ED: torch.Tensor,
    gate_ED: torch.Tensor | None,
    context_BE: torch.Tensor | None,
    beta_BM: torch.Tensor | None,
    segment_T: torch.Tensor,
    cu_segments: torch.Tensor,
    modalities: int,
    norm_weight_D: torch.Tensor,
    temperature: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`gated_expert_mix` as K4 and a norm; its arguments, checked."""
    operators = _ops()
    y, alpha = operators.gated_tri_proj(
        x_TD, experts, weight_EDD, bias_ED, gate_ED, context_BE, beta_BM, segment_T, cu_segments, modalities,
        temperature,
    )  # fmt: skip
    out, _, _ = operators.hier_gate_mix_norm(
        y, [], None, None, None, segment_T, cu_segments, modalities, norm_weight_D, 1.0, eps
    )
    return out, alpha.detach()


def mix_after_projection(
    x_TD: torch.Tensor,
    experts: list[torch.Tensor],
    weight_EDD: torch.Tensor,
    bias_ED: torch.Tensor,
    gate_ED: torch.Tensor | None,
    context_BE: torch.Tensor | None,
    beta_BM: torch.Tensor | None,
    segment_T: torch.Tensor,
    cu_segments: torch.Tensor,
    modalities: int,
    norm_weight_D: torch.Tensor,
    temperature: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`gated_expert_mix` as cuBLAS projections and K2; its arguments, checked."""
    weights = zip(weight_EDD.unbind(0), bias_ED.unbind(0), strict=True)
    streams = [F.linear(a, weight, bias) for a, (weight, bias) in zip(experts, weights, strict=True)]
    out, alpha, _ = _ops().hier_gate_mix_norm(
        x_TD, streams, gate_ED, context_BE, beta_BM, segment_T, cu_segments, modalities, norm_weight_D, temperature,
        eps,
    )  # fmt: skip
    return out, alpha.detach()


def modality_gate(logits_BM: torch.Tensor, presence_BM: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """``softmax_m(logits / tau + log presence)``; an absent modality weighs 0, all absent gives zeros.

    Args:
        logits_BM: ``[B, M]``.
        presence_BM: bool ``[B, M]``.
        temperature: tau.
    """
    checks.shape("presence", presence_BM, tuple(logits_BM.shape))
    checks.temperature(temperature)
    return reference.modality_gate(logits_BM, presence_BM, temperature)


def ragged_pool_gate(
    o_TD: torch.Tensor,
    queries_KD: torch.Tensor,
    logits_BM: torch.Tensor,
    cu_segments: torch.Tensor,
    temperature: float = 1.0,
    *,
    implementation: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pool with K queries inside each (sample, modality) segment and mix the modalities by their gate.

    ``a_tk = softmax_t(q_k . o_t / sqrt(D))``, ``P[b,k] = sum_m beta_bm sum_t a_tk o_t``,
    ``beta_b = softmax_m(logits_b / tau + log presence_b)``; a modality is present where its segment is not empty.

    Args:
        o_TD: packed tokens ``[T, D]``.
        queries_KD: ``[K, D]``.
        logits_BM: the second level's logits ``[B, M]``.
        cu_segments: boundaries ``[B * M + 1]``.
        temperature: tau of the modality softmax.
        implementation: see the module.

    Returns:
        ``P [B, K, D]`` (zeros where everything is absent) and, for reading only, ``beta [B, M]`` in fp32 (fp64 for
        fp64).

    Raises:
        ValueError: a shape, dtype, stride, device or boundary is wrong; names the argument.
    """
    checks.tokens("o", o_TD)
    width = o_TD.shape[1]
    if queries_KD.dim() != 2 or not queries_KD.shape[0]:
        checks.shape("queries", queries_KD, (max(1, queries_KD.numel() // width), width))
    checks.parameter("queries", queries_KD, o_TD, (queries_KD.shape[0], width))
    if logits_BM.dim() != 2 or not logits_BM.shape[1]:
        raise ValueError(f"logits has shape {list(logits_BM.shape)}; it must be [batch, modalities], one or more")
    checks.like("logits", logits_BM, o_TD, tuple(logits_BM.shape))
    checks.boundaries(cu_segments, o_TD, logits_BM.numel())
    checks.temperature(temperature)
    choice = select.choose("ragged_pool_gate", implementation, o_TD, queries=queries_KD.shape[0])
    if choice == "triton":
        pooled, beta, _, _ = _ops().ragged_pool_gate(
            o_TD, queries_KD, logits_BM.contiguous(), cu_segments.contiguous(), temperature
        )
        return pooled, beta.detach()
    run = _torch(reference.ragged_pool_gate, choice)
    return run(o_TD, queries_KD, logits_BM, cu_segments, temperature)


def _rows(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()
