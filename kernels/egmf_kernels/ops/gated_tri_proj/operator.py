"""``egmf::gated_tri_proj`` and its backward, registered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from egmf_kernels.ops import reference
from egmf_kernels.ops.common.arguments import Gate
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
from egmf_kernels.ops.gated_tri_proj import kernels

define(
    f"gated_tri_proj(Tensor x, Tensor[] experts, Tensor weight, Tensor bias, {GATE}, float temperature)"
    " -> (Tensor, Tensor, Tensor)",
    f"gated_tri_proj_backward(Tensor dy, Tensor x, Tensor[] experts, Tensor weight, Tensor bias, {GATE}, Tensor alpha,"
    " Tensor token_weight, float temperature) -> (Tensor, Tensor[], Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _project(
    x: Tensor, experts: Sequence[Tensor], weight: Tensor, bias: Tensor, gate: Tensor | None, context: Tensor | None,
    beta: Tensor | None, segment: Tensor, cu: Tensor, modalities: int, temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if kernels_run(x):
        return kernels.forward(
            x, experts, weight, bias, Gate(gate, context, beta, segment, cu, modalities), temperature
        )
    found = reference.gated_tri_proj(x, experts, weight, bias, gate, context, cu, modalities, temperature, beta)
    return *found, _project_fake(x, experts)[2].zero_()


def _project_fake(x: Tensor, experts: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    tokens, count, acc = x.shape[0], len(experts), accumulate_in(x)
    return x.new_empty(x.shape), x.new_empty(tokens, count, dtype=acc), x.new_empty(count, tokens, dtype=acc)


def _project_backward(
    dy: Tensor, x: Tensor, experts: Sequence[Tensor], weight: Tensor, bias: Tensor, gate: Tensor | None,
    context: Tensor | None, beta: Tensor | None, segment: Tensor, cu: Tensor, modalities: int, alpha: Tensor,
    token_weight: Tensor, temperature: float,
) -> tuple[Any, ...]:  # fmt: skip
    if kernels_run(x):
        dx, dexperts, dweight, dbias, *small = kernels.backward(
            dy, x, experts, weight, bias, Gate(gate, context, beta, segment, cu, modalities), alpha, token_weight,
            temperature,
        )  # fmt: skip
    else:

        def function(
            x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, context: Tensor | None, beta: Tensor | None,
            *experts: Tensor,
        ) -> Tensor:  # fmt: skip
            mixed = reference.gated_tri_proj(x, experts, weight, bias, gate, context, cu, modalities, temperature, beta)
            return mixed[0]

        inputs = (x, weight, bias, gate, context, beta, *experts)
        dx, dweight, dbias, *rest = reference_gradients(function, inputs, dy)  # type: ignore[assignment]
        small, dexperts = rest[:3], rest[3:]  # type: ignore[assignment]
    return (dx, dexperts, dweight, dbias, *(none_as_empty(g, x) for g in small))


def _project_backward_fake(
    dy: Tensor, x: Tensor, experts: Sequence[Tensor], weight: Tensor, bias: Tensor, gate: Tensor | None,
    context: Tensor | None, beta: Tensor | None, *rest: Any,
) -> tuple[Any, ...]:  # fmt: skip
    small = (x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (gate, context, beta))
    dexperts = [x.new_empty(x.shape) for _ in experts]
    return (x.new_empty(x.shape), dexperts, weight.new_empty(weight.shape), bias.new_empty(bias.shape), *small)


def _project_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, experts, weight, bias, gate, context, beta, segment, cu, ctx.modalities, ctx.temperature = inputs
    ctx.save_for_backward(x, weight, bias, gate, context, beta, segment, cu, *output[1:], *experts)


def _project_autograd(ctx: Any, dy: Tensor, *rest: Tensor) -> tuple[Any, ...]:
    x, weight, bias, gate, context, beta, segment, cu, alpha, token_weight, *experts = ctx.saved_tensors
    dx, dexperts, dweight, dbias, dgate, dcontext, dbeta = torch.ops.egmf.gated_tri_proj_backward(
        dy, x, experts, weight, bias, gate, context, beta, segment, cu, ctx.modalities, alpha, token_weight,
        ctx.temperature,
    )  # fmt: skip
    small = (None if t is None else g for t, g in ((gate, dgate), (context, dcontext), (beta, dbeta)))
    return (dx, dexperts, dweight, dbias, *small, None, None, None, None)


register("gated_tri_proj", _project, _project_fake)
register("gated_tri_proj_backward", _project_backward, _project_backward_fake)
differentiable("gated_tri_proj", _project_setup, _project_autograd, sequence=1)
