"""The gated mix of streams, normed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from egmf_kernels import select
from egmf_kernels.ops import reference
from egmf_kernels.ops.common import checks
from egmf_kernels.ops.common.calling import gate, in_torch, operators


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
    checked: bool = False,
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
        segment_T: see :mod:`egmf_kernels.ops.common.calling`.
        checked: see :mod:`egmf_kernels.ops.common.calling`.
        implementation: see :mod:`egmf_kernels.ops.common.calling`.

    Returns:
        ``o [T, D]`` and, for reading only (no gradient), the gate's ``alpha [T, E]`` in fp32 (fp64 for fp64).

    Raises:
        ValueError: a shape, dtype, stride, device or boundary is wrong; names the argument.
    """
    checks.tokens("x", x_TD)
    checks.boundaries(cu_segments, x_TD, checked=checked)
    checks.gate(
        x_TD, streams, gate_weight_ED, gate_context_BE, modality_weight_BM, cu_segments, modalities, temperature,
        "streams",
    )  # fmt: skip
    checks.parameter("norm_weight", norm_weight_D, x_TD, (x_TD.shape[1],))
    choice = select.choose("hier_gate_mix_norm", implementation, x_TD, experts=len(streams))
    if choice == "triton":
        told = gate(x_TD, gate_weight_ED, gate_context_BE, modality_weight_BM, segment_T, cu_segments, modalities)
        out, alpha, _ = operators().hier_gate_mix_norm(x_TD, list(streams), *told, norm_weight_D, temperature, eps)
        return out, alpha.detach()
    run = in_torch(reference.hier_gate_mix_norm, choice)
    return run(
        x_TD, streams, gate_weight_ED, gate_context_BE, cu_segments, modalities, norm_weight_D, temperature,
        modality_weight_BM, eps,
    )  # fmt: skip
