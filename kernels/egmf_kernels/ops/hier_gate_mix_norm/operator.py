"""``egmf::hier_gate_mix_norm`` and its backward, registered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from egmf_kernels.ops import reference
from egmf_kernels.ops.common.arguments import Gate
from egmf_kernels.ops.common.gate import rms_norm
from egmf_kernels.ops.common.launch import accumulate_in
from egmf_kernels.ops.common.registration import (
    GATE,
    define,
    differentiable,
    kernels_run,
    none_as_empty,
    reference_gradients,
    register,
)
from egmf_kernels.ops.hier_gate_mix_norm import kernels

define(
    f"hier_gate_mix_norm(Tensor x, Tensor[] streams, {GATE}, Tensor gamma, float temperature, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    f"hier_gate_mix_norm_backward(Tensor dout, Tensor x, Tensor[] streams, {GATE}, Tensor gamma, Tensor alpha,"
    " Tensor rstd, float temperature, float eps) -> (Tensor, Tensor[], Tensor, Tensor, Tensor, Tensor)",
)


def _mix(
    x: Tensor, streams: Sequence[Tensor], gate: Tensor | None, context: Tensor | None, beta: Tensor | None,
    segment: Tensor, cu: Tensor, modalities: int, gamma: Tensor, temperature: float, eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    if kernels_run(x):
        return kernels.forward(x, streams, Gate(gate, context, beta, segment, cu, modalities), gamma, temperature, eps)
    rstd = x.new_zeros(x.shape[0], dtype=accumulate_in(x))
    if not streams:
        return rms_norm(x, gamma, eps), x.new_empty(len(x), 0, dtype=rstd.dtype), rstd
    out = reference.hier_gate_mix_norm(x, streams, gate, context, cu, modalities, gamma, temperature, beta, eps)
    return (*out, rstd)


def _mix_fake(x: Tensor, streams: Sequence[Tensor], *rest: Any) -> tuple[Tensor, ...]:
    acc = accumulate_in(x)
    return (
        x.new_empty(x.shape),
        x.new_empty(x.shape[0], len(streams), dtype=acc),
        x.new_empty(x.shape[0], dtype=acc),
    )


def _mix_backward(
    dout: Tensor, x: Tensor, streams: Sequence[Tensor], gate: Tensor | None, context: Tensor | None,
    beta: Tensor | None, segment: Tensor, cu: Tensor, modalities: int, gamma: Tensor, alpha: Tensor, rstd: Tensor,
    temperature: float, eps: float,
) -> tuple[Any, ...]:  # fmt: skip
    if kernels_run(x):
        dx, dstreams, dgate, dcontext, dbeta, dgamma = kernels.backward(
            dout, x, streams, Gate(gate, context, beta, segment, cu, modalities), gamma, alpha, rstd, temperature
        )
    else:

        def function(
            x: Tensor, gate: Tensor | None, context: Tensor | None, beta: Tensor | None, gamma: Tensor, *streams: Tensor
        ) -> Tensor:
            return _mix_reference(x, streams, gate, context, beta, cu, modalities, gamma, temperature, eps)

        dx, dgate, dcontext, dbeta, dgamma, *dstreams = reference_gradients(  # type: ignore[assignment]
            function, (x, gate, context, beta, gamma, *streams), dout
        )
    small = (none_as_empty(g, x) for g in (dgate, dcontext, dbeta))
    return (dx, dstreams, *small, dgamma)


def _mix_reference(
    x: Tensor, streams: Sequence[Tensor], gate: Tensor | None, context: Tensor | None, beta: Tensor | None,
    cu: Tensor, modalities: int, gamma: Tensor, temperature: float, eps: float,
) -> Tensor:  # fmt: skip
    if not streams:
        return rms_norm(x, gamma, eps)
    return reference.hier_gate_mix_norm(x, streams, gate, context, cu, modalities, gamma, temperature, beta, eps)[0]


def _mix_backward_fake(
    dout: Tensor, x: Tensor, streams: Sequence[Tensor], gate: Tensor | None, context: Tensor | None,
    beta: Tensor | None, segment: Tensor, cu: Tensor, modalities: int, gamma: Tensor, *rest: Any,
) -> tuple[Any, ...]:  # fmt: skip
    small = (x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (gate, context, beta))
    return (x.new_empty(x.shape), [x.new_empty(x.shape) for _ in streams], *small, gamma.new_empty(gamma.shape))


def _mix_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, streams, gate, context, beta, segment, cu, ctx.modalities, gamma, ctx.temperature, ctx.eps = inputs
    ctx.save_for_backward(x, gate, context, beta, segment, cu, gamma, *output[1:], *streams)


def _mix_autograd(ctx: Any, dout: Tensor, *rest: Tensor) -> tuple[Any, ...]:
    x, gate, context, beta, segment, cu, gamma, alpha, rstd, *streams = ctx.saved_tensors
    dx, dstreams, dgate, dcontext, dbeta, dgamma = torch.ops.egmf.hier_gate_mix_norm_backward(
        dout, x, streams, gate, context, beta, segment, cu, ctx.modalities, gamma, alpha, rstd, ctx.temperature, ctx.eps
    )
    small = (None if t is None else g for t, g in ((gate, dgate), (context, dcontext), (beta, dbeta)))
    return (dx, dstreams, *small, None, None, None, dgamma, None, None)


register("hier_gate_mix_norm", _mix, _mix_fake)
register("hier_gate_mix_norm_backward", _mix_backward, _mix_backward_fake)
differentiable("hier_gate_mix_norm", _mix_setup, _mix_autograd, sequence=1)
