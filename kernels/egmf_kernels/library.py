"""The Triton operators as ``torch.library`` operators ``egmf::*``: CPU and CUDA, fake tensors, autograd, compile.

Each has a forward operator, whose extra outputs are what backward keeps, and a backward operator, so that
``torch.compile(fullgraph=True)`` and ``opcheck`` see two opaque nodes. On CUDA both launch the kernels; on the CPU they
launch the interpreted kernels in an interpreting process and otherwise compute the reference, so that a graph traced on
a GPU still runs on a machine without one.

They check nothing: :mod:`egmf_kernels.api` does, before calling them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from egmf_kernels import reference
from egmf_kernels.reference.expert_mix import rms_norm
from egmf_kernels.triton import INTERPRETED, dwconv, mix, pool, projection
from egmf_kernels.triton.launch import accumulate_in

_GATE = "Tensor? gate, Tensor? context, Tensor? beta, Tensor segment, Tensor cu, int modalities"
_SCHEMAS = (
    "ragged_pool_gate(Tensor o, Tensor queries, Tensor logits, Tensor cu, float temperature)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    "ragged_pool_gate_backward(Tensor dpooled, Tensor o, Tensor queries, Tensor logits, Tensor cu, Tensor beta,"
    " Tensor part, Tensor lse, float temperature) -> (Tensor, Tensor, Tensor)",
    "ms_dwconv(Tensor x, Tensor[] weights, Tensor bias, Tensor mu, Tensor segment) -> Tensor",
    "ms_dwconv_backward(Tensor dout, Tensor x, Tensor[] weights, Tensor bias, Tensor mu, Tensor segment)"
    " -> (Tensor, Tensor[], Tensor, Tensor)",
    f"hier_gate_mix_norm(Tensor x, Tensor[] streams, {_GATE}, Tensor gamma, float temperature, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    f"hier_gate_mix_norm_backward(Tensor dout, Tensor x, Tensor[] streams, {_GATE}, Tensor gamma, Tensor alpha,"
    " Tensor rstd, float temperature, float eps) -> (Tensor, Tensor[], Tensor, Tensor, Tensor, Tensor)",
    f"gated_tri_proj(Tensor x, Tensor[] experts, Tensor weight, Tensor bias, {_GATE}, float temperature)"
    " -> (Tensor, Tensor)",
    f"gated_tri_proj_backward(Tensor dy, Tensor x, Tensor[] experts, Tensor weight, Tensor bias, {_GATE}, Tensor alpha,"
    " float temperature) -> (Tensor, Tensor[], Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_library = torch.library.Library("egmf", "DEF")
for _schema in _SCHEMAS:
    _library.define(_schema)


def _kernels_run(x: Tensor) -> bool:
    return x.is_cuda or INTERPRETED


def _register(name: str, real: Callable[..., Any], fake: Callable[..., Any]) -> None:
    for key in ("CPU", "CUDA"):
        _library.impl(name, real, key)
    torch.library.register_fake(f"egmf::{name}", fake, lib=_library)


def _differentiable(
    name: str, setup: Callable[..., None], gradients: Callable[..., tuple[Any, ...]], sequence: int | None = None
) -> None:
    """Give an operator its backward, by an ``autograd.Function`` at the dispatcher's Autograd key.

    ``torch.library.register_autograd`` does the same, but its wrapping costs several times more a call than this, and
    these kernels run for tens of microseconds.

    Args:
        name: the operator.
        setup: ``setup(ctx, arguments, outputs)`` keeps what backward needs.
        gradients: ``gradients(ctx, *output gradients)``, one value an argument; a list for a ``Tensor[]``.
        sequence: position of the ``Tensor[]`` argument: a Function differentiates only tensors that it is given singly.
    """
    operator = getattr(torch.ops.egmf, name).default

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, count: int, *flat: Any) -> Any:
            # What is kept for backward leaves as outputs too; nobody needs zeros for gradients they never get.
            ctx.set_materialize_grads(False)
            single, listed = flat[: len(flat) - count], flat[len(flat) - count :]
            arguments = single if sequence is None else (*single[:sequence], list(listed), *single[sequence:])
            with torch._C._AutoDispatchBelowAutograd():
                outputs = operator(*arguments)
            setup(ctx, arguments, outputs)
            return outputs

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            if torch.is_grad_enabled():
                raise RuntimeError(
                    f"egmf::{name} has no second derivative (create_graph); use implementation='reference'"
                )
            if grads[0] is None:
                return (None,) * len(ctx.needs_input_grad)
            found = gradients(ctx, *grads)
            if sequence is None:
                return (None, *found)
            return (None, *found[:sequence], *found[sequence + 1 :], *found[sequence])

    def autograd(*arguments: Any) -> Any:
        if sequence is None:
            return Function.apply(0, *arguments)
        listed = arguments[sequence]
        return Function.apply(len(listed), *arguments[:sequence], *arguments[sequence + 1 :], *listed)

    _library.impl(name, autograd, "Autograd")


def _none_as_empty(gradient: Tensor | None, x: Tensor) -> Tensor:
    """A schema cannot return ``Tensor?``: an argument that was not given has an empty gradient."""
    return x.new_empty(0) if gradient is None else gradient


def _reference_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], gradient: Tensor
) -> list[Tensor | None]:
    """Gradients of ``function(*inputs)`` by torch's own autograd; None stays None."""
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
        given = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(function(*leaves), given, gradient, materialize_grads=True))
    return [None if leaf is None else next(found) for leaf in leaves]


# K1 ragged_pool_gate


def _pool(o: Tensor, queries: Tensor, logits: Tensor, cu: Tensor, temperature: float) -> tuple[Tensor, ...]:
    if _kernels_run(o):
        return pool.forward(o, queries, logits, cu, temperature)
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
    if _kernels_run(o):
        return pool.backward(dpooled, o, queries, logits, cu, beta, part, lse, temperature)

    def function(o: Tensor, queries: Tensor, logits: Tensor) -> Tensor:
        return reference.ragged_pool_gate(o, queries, logits, cu, temperature)[0]

    return tuple(g for g in _reference_gradients(function, (o, queries, logits), dpooled) if g is not None)


def _pool_backward_fake(dpooled: Tensor, o: Tensor, queries: Tensor, logits: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return o.new_empty(o.shape), queries.new_empty(queries.shape), logits.new_empty(logits.shape)


def _pool_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.temperature = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _pool_autograd(ctx: Any, dpooled: Tensor, *rest: Tensor) -> tuple[Any, ...]:
    gradients = torch.ops.egmf.ragged_pool_gate_backward(dpooled, *ctx.saved_tensors, ctx.temperature)
    return (*gradients, None, None)


_register("ragged_pool_gate", _pool, _pool_fake)
_register("ragged_pool_gate_backward", _pool_backward, _pool_backward_fake)
_differentiable("ragged_pool_gate", _pool_setup, _pool_autograd)


# K3 ms_dwconv


def _boundaries(segment: Tensor) -> Tensor:
    """Boundaries with the same neighbourhoods as per-token segment numbers: the reference wants them."""
    change = (segment.diff() != 0).nonzero()[:, 0] + 1
    ends = change.new_tensor([len(segment)])
    return torch.cat([change.new_zeros(1), change, ends])


def _dwconv(x: Tensor, weights: Sequence[Tensor], bias: Tensor, mu: Tensor, segment: Tensor) -> Tensor:
    if _kernels_run(x):
        return dwconv.forward(x, weights, bias, mu, segment)
    return reference.ms_dwconv(x, weights, bias, mu, _boundaries(segment))


def _dwconv_fake(x: Tensor, weights: Sequence[Tensor], bias: Tensor, mu: Tensor, segment: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _dwconv_backward(
    dout: Tensor, x: Tensor, weights: Sequence[Tensor], bias: Tensor, mu: Tensor, segment: Tensor
) -> tuple[Any, ...]:
    if _kernels_run(x):
        return dwconv.backward(dout, x, weights, bias, mu, segment)

    def function(x: Tensor, bias: Tensor, mu: Tensor, *weights: Tensor) -> Tensor:
        return reference.ms_dwconv(x, weights, bias, mu, _boundaries(segment))

    dx, dbias, dmu, *dweights = _reference_gradients(function, (x, bias, mu, *weights), dout)
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


_register("ms_dwconv", _dwconv, _dwconv_fake)
_register("ms_dwconv_backward", _dwconv_backward, _dwconv_backward_fake)
_differentiable("ms_dwconv", _dwconv_setup, _dwconv_autograd, sequence=1)


# K2 hier_gate_mix_norm; with no streams, RMSNorm


def _mix(
    x: Tensor, streams: Sequence[Tensor], gate: Tensor | None, context: Tensor | None, beta: Tensor | None,
    segment: Tensor, cu: Tensor, modalities: int, gamma: Tensor, temperature: float, eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    if _kernels_run(x):
        return mix.forward(x, streams, gate, context, beta, segment, modalities, gamma, temperature, eps)
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
    if _kernels_run(x):
        dx, dstreams, dgate, dcontext, dbeta, dgamma = mix.backward(
            dout, x, streams, gate, context, beta, segment, cu, modalities, gamma, alpha, rstd, temperature
        )
    else:

        def function(
            x: Tensor, gate: Tensor | None, context: Tensor | None, beta: Tensor | None, gamma: Tensor, *streams: Tensor
        ) -> Tensor:
            return _mix_reference(x, streams, gate, context, beta, cu, modalities, gamma, temperature, eps)

        dx, dgate, dcontext, dbeta, dgamma, *dstreams = _reference_gradients(  # type: ignore[assignment]
            function, (x, gate, context, beta, gamma, *streams), dout
        )
    small = (_none_as_empty(g, x) for g in (dgate, dcontext, dbeta))
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


_register("hier_gate_mix_norm", _mix, _mix_fake)
_register("hier_gate_mix_norm_backward", _mix_backward, _mix_backward_fake)
_differentiable("hier_gate_mix_norm", _mix_setup, _mix_autograd, sequence=1)


# K4 gated_tri_proj


def _project(
    x: Tensor, experts: Sequence[Tensor], weight: Tensor, bias: Tensor, gate: Tensor | None, context: Tensor | None,
    beta: Tensor | None, segment: Tensor, cu: Tensor, modalities: int, temperature: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if _kernels_run(x):
        return projection.forward(x, experts, weight, bias, gate, context, beta, segment, modalities, temperature)
    return reference.gated_tri_proj(x, experts, weight, bias, gate, context, cu, modalities, temperature, beta)


def _project_fake(x: Tensor, experts: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0], len(experts), dtype=accumulate_in(x))


def _project_backward(
    dy: Tensor, x: Tensor, experts: Sequence[Tensor], weight: Tensor, bias: Tensor, gate: Tensor | None,
    context: Tensor | None, beta: Tensor | None, segment: Tensor, cu: Tensor, modalities: int, alpha: Tensor,
    temperature: float,
) -> tuple[Any, ...]:  # fmt: skip
    if _kernels_run(x):
        dx, dexperts, dweight, dbias, *small = projection.backward(
            dy, x, experts, weight, bias, gate, context, beta, segment, cu, modalities, alpha, temperature
        )
    else:

        def function(
            x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, context: Tensor | None, beta: Tensor | None,
            *experts: Tensor,
        ) -> Tensor:  # fmt: skip
            mixed = reference.gated_tri_proj(x, experts, weight, bias, gate, context, cu, modalities, temperature, beta)
            return mixed[0]

        inputs = (x, weight, bias, gate, context, beta, *experts)
        dx, dweight, dbias, *rest = _reference_gradients(function, inputs, dy)  # type: ignore[assignment]
        small, dexperts = rest[:3], rest[3:]  # type: ignore[assignment]
    return (dx, dexperts, dweight, dbias, *(_none_as_empty(g, x) for g in small))


def _project_backward_fake(
    dy: Tensor, x: Tensor, experts: Sequence[Tensor], weight: Tensor, bias: Tensor, gate: Tensor | None,
    context: Tensor | None, beta: Tensor | None, *rest: Any,
) -> tuple[Any, ...]:  # fmt: skip
    small = (x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (gate, context, beta))
    dexperts = [x.new_empty(x.shape) for _ in experts]
    return (x.new_empty(x.shape), dexperts, weight.new_empty(weight.shape), bias.new_empty(bias.shape), *small)


def _project_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, experts, weight, bias, gate, context, beta, segment, cu, ctx.modalities, ctx.temperature = inputs
    ctx.save_for_backward(x, weight, bias, gate, context, beta, segment, cu, output[1], *experts)


def _project_autograd(ctx: Any, dy: Tensor, *rest: Tensor) -> tuple[Any, ...]:
    x, weight, bias, gate, context, beta, segment, cu, alpha, *experts = ctx.saved_tensors
    dx, dexperts, dweight, dbias, dgate, dcontext, dbeta = torch.ops.egmf.gated_tri_proj_backward(
        dy, x, experts, weight, bias, gate, context, beta, segment, cu, ctx.modalities, alpha, ctx.temperature
    )
    small = (None if t is None else g for t, g in ((gate, dgate), (context, dcontext), (beta, dbeta)))
    return (dx, dexperts, dweight, dbias, *small, None, None, None, None)


_register("gated_tri_proj", _project, _project_fake)
_register("gated_tri_proj_backward", _project_backward, _project_backward_fake)
_differentiable("gated_tri_proj", _project_setup, _project_autograd, sequence=1)
