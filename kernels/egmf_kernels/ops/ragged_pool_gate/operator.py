"""``egmf::ragged_pool_gate`` and its backward, registered."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from egmf_kernels.ops import reference
from egmf_kernels.ops.common.launch import accumulate_in
from egmf_kernels.ops.common.registration import define, differentiable, kernels_run, reference_gradients, register
from egmf_kernels.ops.ragged_pool_gate import kernels

define(
    "ragged_pool_gate(Tensor o, Tensor queries, Tensor logits, Tensor cu, float temperature)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    "ragged_pool_gate_backward(Tensor dpooled, Tensor o, Tensor queries, Tensor logits, Tensor cu, Tensor beta,"
    " Tensor part, Tensor lse, float temperature) -> (Tensor, Tensor, Tensor)",
)


def _pool(o: Tensor, queries: Tensor, logits: Tensor, cu: Tensor, temperature: float) -> tuple[Tensor, ...]:
    if kernels_run(o):
        return kernels.forward(o, queries, logits, cu, temperature)
    _, _, part, lse = _pool_fake(o, queries, logits, cu, temperature)
    return (*reference.ragged_pool_gate(o, queries, logits, cu, temperature), part.zero_(), lse.zero_())


def _pool_fake(o: Tensor, queries: Tensor, logits: Tensor, cu: Tensor, temperature: float) -> tuple[Tensor, ...]:
    acc, count = accumulate_in(o), queries.shape[0]
    return (
        o.new_empty(logits.shape[0], count, o.shape[1]),
        o.new_empty(logits.shape, dtype=acc),
        o.new_empty(logits.numel(), count, o.shape[1], dtype=acc),
        o.new_empty(logits.numel(), count, dtype=acc),
    )


def _pool_backward(
    dpooled: Tensor, o: Tensor, queries: Tensor, logits: Tensor, cu: Tensor, beta: Tensor, part: Tensor, lse: Tensor,
    temperature: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    if kernels_run(o):
        return kernels.backward(dpooled, o, queries, logits, cu, beta, part, lse, temperature)

    def function(o: Tensor, queries: Tensor, logits: Tensor) -> Tensor:
        return reference.ragged_pool_gate(o, queries, logits, cu, temperature)[0]

    return tuple(g for g in reference_gradients(function, (o, queries, logits), dpooled) if g is not None)


def _pool_backward_fake(dpooled: Tensor, o: Tensor, queries: Tensor, logits: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return o.new_empty(o.shape), queries.new_empty(queries.shape), logits.new_empty(logits.shape)


def _pool_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.temperature = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _pool_autograd(ctx: Any, dpooled: Tensor, *rest: Tensor) -> tuple[Any, ...]:
    gradients = torch.ops.egmf.ragged_pool_gate_backward(dpooled, *ctx.saved_tensors, ctx.temperature)
    return (*gradients, None, None)


register("ragged_pool_gate", _pool, _pool_fake)
register("ragged_pool_gate_backward", _pool_backward, _pool_backward_fake)
differentiable("ragged_pool_gate", _pool_setup, _pool_autograd)
