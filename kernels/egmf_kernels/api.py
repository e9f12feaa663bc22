"""The public operators: every argument is checked here, once, before any implementation runs.

Symbols: T packed tokens, D width, B samples, M modalities, E experts, K queries, S scales of the convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from egmf_kernels import reference


def _shape(name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) == expected:
        return
    hint = ""
    if tensor.numel() == 0 and 0 not in expected:
        hint = "; it has 0 elements: a ZeRO-3 parameter is partitioned outside the forward of the module that owns it"
    raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {list(expected)}{hint}")


def _packed(x_TD: torch.Tensor, cu_segments: torch.Tensor) -> None:
    if x_TD.dim() != 2 or x_TD.shape[1] % 16:
        raise ValueError(f"x has shape {list(x_TD.shape)}; it must be [tokens, width] with a width divisible by 16")
    if cu_segments.dim() != 1 or cu_segments.numel() < 1 or cu_segments.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"cu_segments is {cu_segments.dtype} of shape {list(cu_segments.shape)}; "
            "it must be one row of int32 or int64 boundaries"
        )


def ms_dwconv(
    x_TD: torch.Tensor,
    weights: Sequence[torch.Tensor],
    bias_SD: torch.Tensor,
    mu_S: torch.Tensor,
    cu_segments: torch.Tensor,
) -> torch.Tensor:
    """Multi-scale depthwise convolution that never crosses a segment: ``sum_s mu_s GELU(dwconv_{k_s}(x) + b_s)``.

    Args:
        x_TD: packed tokens ``[T, D]``.
        weights: for each scale ``[D, k_s]``, k_s odd.
        bias_SD: ``[S, D]``.
        mu_S: weight of each scale ``[S]``.
        cu_segments: boundaries ``[segments + 1]``, int32 or int64, ascending from 0 to T.

    Returns:
        ``[T, D]`` in the dtype of ``x_TD``.

    Raises:
        ValueError: a shape or dtype is wrong; names the argument.
    """
    _packed(x_TD, cu_segments)
    width = x_TD.shape[1]
    for scale, weight in enumerate(weights):
        if weight.dim() != 2 or weight.shape[1] % 2 != 1:
            raise ValueError(f"weights[{scale}] has shape {list(weight.shape)}; it must be [{width}, odd kernel size]")
        _shape(f"weights[{scale}]", weight, (width, weight.shape[1]))
    _shape("bias", bias_SD, (len(weights), width))
    _shape("mu", mu_S, (len(weights),))
    return reference.ms_dwconv(x_TD, weights, bias_SD, mu_S, cu_segments)


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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix the experts: ``o = RMSNorm(x + sum_e w[t,e] (W_e a_e + b_e))``, ``w = softmax_e((W_g x_t + c_b) / tau)``.

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

    Returns:
        ``o [T, D]`` and the gate's weights ``alpha [T, E]``.

    Raises:
        ValueError: a shape or dtype is wrong; names the argument.
    """
    _packed(x_TD, cu_segments)
    tokens, width = x_TD.shape
    count = len(experts)
    for e, expert in enumerate(experts):
        _shape(f"experts[{e}]", expert, (tokens, width))
    _shape("weight", weight_EDD, (count, width, width))
    _shape("bias", bias_ED, (count, width))
    _shape("norm_weight", norm_weight_D, (width,))
    batch = (cu_segments.numel() - 1) // modalities
    if (gate_weight_ED is None) != (gate_context_BE is None):
        raise ValueError("gate_weight and gate_context must be given together or both be None")
    if gate_weight_ED is not None and gate_context_BE is not None:
        _shape("gate_weight", gate_weight_ED, (count, width))
        _shape("gate_context", gate_context_BE, (batch, count))
    if modality_weight_BM is not None:
        _shape("modality_weight", modality_weight_BM, (batch, modalities))
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    return reference.gated_expert_mix(
        x_TD,
        experts,
        weight_EDD,
        bias_ED,
        gate_weight_ED,
        gate_context_BE,
        cu_segments,
        modalities,
        norm_weight_D,
        temperature,
        modality_weight_BM,
        eps,
    )


def modality_gate(logits_BM: torch.Tensor, presence_BM: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """``softmax_m(logits / tau + log presence)``; an absent modality weighs 0, all absent gives zeros.

    Args:
        logits_BM: ``[B, M]``.
        presence_BM: bool ``[B, M]``.
        temperature: tau.
    """
    _shape("presence", presence_BM, tuple(logits_BM.shape))
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    return reference.modality_gate(logits_BM, presence_BM, temperature)


def ragged_pool_gate(
    o_TD: torch.Tensor,
    queries_KD: torch.Tensor,
    logits_BM: torch.Tensor,
    cu_segments: torch.Tensor,
    temperature: float = 1.0,
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

    Returns:
        ``P [B, K, D]`` (zeros where everything is absent) and ``beta [B, M]``.

    Raises:
        ValueError: a shape or dtype is wrong; names the argument.
    """
    _packed(o_TD, cu_segments)
    _shape("queries", queries_KD, (queries_KD.shape[0], o_TD.shape[1]))
    _shape("logits", logits_BM, (logits_BM.shape[0], logits_BM.shape[1]))
    _shape("cu_segments", cu_segments, (logits_BM.numel() + 1,))
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    return reference.ragged_pool_gate(o_TD, queries_KD, logits_BM, cu_segments, temperature)
