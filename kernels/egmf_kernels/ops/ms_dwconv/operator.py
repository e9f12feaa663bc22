"""``egmf::ms_dwconv`` and its backward, registered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from egmf_kernels.ops import reference
from egmf_kernels.ops.common.registration import define, differentiable, kernels_run, reference_gradients, register
from egmf_kernels.ops.ms_dwconv import kernels

define(
    "ms_dwconv(Tensor x, Tensor[] weights, Tensor bias, Tensor mu, Tensor segment) -> Tensor",
    "ms_dwconv_backward(Tensor dout, Tensor x, Tensor[] weights, Tensor bias, Tensor mu, Tensor segment)"
    " -> (Tensor, Tensor[], Tensor, Tensor)",
)


def _boundaries(segment: Tensor) -> Tensor:
    """Boundaries with the same neighbourhoods as per-token segment numbers: the reference wants them."""
    change = (segment.diff() != 0).nonzero()[:, 0] + 1
    ends = change.new_tensor([len(segment)])
    return torch.cat([change.new_zeros(1), change, ends])


def _dwconv(x: Tensor, weights: Sequence[Tensor], bias: Tensor, mu: Tensor, segment: Tensor) -> Tensor:
    if kernels_run(x):
        return kernels.forward(x, weights, bias, mu, segment)
    return reference.ms_dwconv(x, weights, bias, mu, _boundaries(segment))


def _dwconv_fake(x: Tensor, weights: Sequence[Tensor], bias: Tensor, mu: Tensor, segment: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _dwconv_backward(
    dout: Tensor, x: Tensor, weights: Sequence[Tensor], bias: Tensor, mu: Tensor, segment: Tensor
) -> tuple[Any, ...]:
    if kernels_run(x):
        return kernels.backward(dout, x, weights, bias, mu, segment)

    def function(x: Tensor, bias: Tensor, mu: Tensor, *weights: Tensor) -> Tensor:
        return reference.ms_dwconv(x, weights, bias, mu, _boundaries(segment))

    dx, dbias, dmu, *dweights = reference_gradients(function, (x, bias, mu, *weights), dout)
    return dx, dweights, dbias, dmu


def _dwconv_backward_fake(
    dout: Tensor, x: Tensor, weights: Sequence[Tensor], bias: Tensor, mu: Tensor, segment: Tensor
) -> tuple[Any, ...]:
    return x.new_empty(x.shape), [w.new_empty(w.shape) for w in weights], torch.empty_like(bias), torch.empty_like(mu)


def _dwconv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, bias, mu, segment = inputs
    ctx.save_for_backward(x, bias, mu, segment, *weights)


def _dwconv_autograd(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    x, bias, mu, segment, *weights = ctx.saved_tensors
    return (*torch.ops.egmf.ms_dwconv_backward(dout, x, weights, bias, mu, segment), None)


register("ms_dwconv", _dwconv, _dwconv_fake)
register("ms_dwconv_backward", _dwconv_backward, _dwconv_backward_fake)
differentiable("ms_dwconv", _dwconv_setup, _dwconv_autograd, sequence=1)
