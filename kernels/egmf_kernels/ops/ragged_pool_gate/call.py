"""Query pooling of segments, weighed by the gate of modalities."""

from __future__ import annotations

import torch

from egmf_kernels import select
from egmf_kernels.ops import reference
from egmf_kernels.ops.common import checks
from egmf_kernels.ops.common.calling import in_torch, operators


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
    checked: bool = False,
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
        checked: see :mod:`egmf_kernels.ops.common.calling`.
        implementation: see :mod:`egmf_kernels.ops.common.calling`.

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
    checks.boundaries(cu_segments, o_TD, logits_BM.numel(), checked=checked)
    checks.temperature(temperature)
    choice = select.choose("ragged_pool_gate", implementation, o_TD, queries=queries_KD.shape[0])
    if choice == "triton":
        pooled, beta, _, _ = operators().ragged_pool_gate(
            o_TD, queries_KD, logits_BM.contiguous(), cu_segments.contiguous(), temperature
        )
        return pooled, beta.detach()
    run = in_torch(reference.ragged_pool_gate, choice)
    return run(o_TD, queries_KD, logits_BM, cu_segments, temperature)
