"""How an operator becomes one of ``torch.library``'s, ``egmf::NAME``: CPU and CUDA, fake tensors, autograd, compile.

Each has a forward operator, whose extra outputs are what backward keeps, and a backward operator, so that
``torch.compile(fullgraph=True)`` and ``opcheck`` see two opaque nodes. On CUDA both launch the kernels; on the CPU they
launch the interpreted kernels in an interpreting process and otherwise compute the reference, so that a graph traced on
a GPU still runs on a machine without one.

They check nothing: the public functions (``ops/NAME/call.py``) do, before calling them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from egmf_kernels.ops.common.interpreter import INTERPRETED

GATE = "Tensor? gate, Tensor? context, Tensor? beta, Tensor segment, Tensor cu, int modalities"
"""The part of a schema that the gated operators share."""
_library = torch.library.Library("egmf", "DEF")


def define(*schemas: str) -> None:
    """Declare operators."""
    for schema in schemas:
        _library.define(schema)


def kernels_run(x: Tensor) -> bool:
    """Whether the kernels serve a tensor, compiled or interpreted."""
    return x.is_cuda or INTERPRETED


def register(name: str, real: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Give an operator what it computes, and what its results look like."""
    for key in ("CPU", "CUDA"):
        _library.impl(name, real, key)
    torch.library.register_fake(f"egmf::{name}", fake, lib=_library)


def differentiable(
    name: str, setup: Callable[..., None], gradients: Callable[..., tuple[Any, ...]], sequence: int | None = None
) -> None:
    """Give an operator its backward, by an ``autograd.Function`` at the dispatcher's Autograd key.

    ``torch.library.register_autograd`` and ``triton_op`` do the same, but their wrapping costs two to three times as
    much a call (``kernels/benchmarks/registration.py``), and these kernels run for tens of microseconds.

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


def none_as_empty(gradient: Tensor | None, x: Tensor) -> Tensor:
    """A schema cannot return ``Tensor?``: an argument that was not given has an empty gradient."""
    return x.new_empty(0) if gradient is None else gradient


def reference_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], gradient: Tensor
) -> list[Tensor | None]:
    """Gradients of ``function(*inputs)`` by torch's own autograd; None stays None."""
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
        given = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(function(*leaves), given, gradient, materialize_grads=True))
    return [None if leaf is None else next(found) for leaf in leaves]
