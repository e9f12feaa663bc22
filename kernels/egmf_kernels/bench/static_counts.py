"""How many bytes eager torch and Inductor move for an operator's reference, without running it.

Eager: on fake tensors, under a dispatch mode that adds up what every aten operator reads and writes.

Inductor: ``torch.compile`` of the reference for this machine's CPU, stopped after scheduling; the count is Inductor's
own (``GraphLowering.count_bytes``, which ``torch._inductor.metrics.num_bytes_accessed`` sums). For a GPU it may fuse
differently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from egmf_kernels.bench.cases import Case, Inputs, gradients
from egmf_kernels.ops import reference
from egmf_kernels.tools.formulas import Direction

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
WRITERS = {"copy_", "fill_", "zero_", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}
"""Operators that do not look at the tensor they overwrite or are shaped like."""


def footprint(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's different elements; an expanded dimension is one element deep."""
    elements = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= length if stride else min(length, 1)
    return elements * tensor.element_size()


class MovedBytes(TorchDispatchMode):
    """Adds up, over every aten operator, the tensors it reads and those it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: dict[str, Any] = kwargs or {}
        out = func(*args, **given)
        if func.namespace == "aten" and func.overloadpacket.__name__ not in ALLOCATIONS:
            self.total += self._moved(func, args, given, out)
        return out

    @staticmethod
    def _moved(func: Any, args: Any, given: dict[str, Any], out: Any) -> int:
        read, written, storages = 0, 0, set()
        declared = func._schema.arguments
        for place, argument in enumerate(declared):
            value = args[place] if place < len(args) else given.get(argument.name)
            tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
            storages |= {tensor.untyped_storage()._cdata for tensor in tensors}
            size = sum(map(footprint, tensors))
            if argument.alias_info is not None and argument.alias_info.is_write:
                written += size
            if place > 0 or func.overloadpacket.__name__ not in WRITERS:
                read += size
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        fresh = [tensor for tensor in results if tensor.untyped_storage()._cdata not in storages]
        written += sum(map(footprint, fresh))
        return read + written if written else 0  # a view writes nothing, and then it reads nothing


def count_eager(case: Case) -> dict[Direction, int]:
    """Bytes forward and backward of the reference as torch runs it without a compiler."""
    fake = FakeTensorMode()
    inputs = case.make("cpu", seed=0)
    inputs = Inputs(
        leaves={name: fake.from_tensor(tensor) for name, tensor in inputs.leaves.items()},
        cu_segments=fake.from_tensor(inputs.cu_segments),
        segment_T=fake.from_tensor(inputs.segment_T),
        gradient=fake.from_tensor(inputs.gradient),
    )
    with fake:
        with MovedBytes() as forward:
            out, _ = case.eager()(inputs)
        with MovedBytes() as backward:
            gradients(out, inputs)
    return {"forward": forward.total, "backward": backward.total}


class _CountedError(Exception):
    """Leaves Inductor's compiler with the count; the machine code is not wanted."""


def count_inductor(case: Case) -> dict[Direction, int]:
    """Bytes forward and backward of the reference as Inductor schedules it.

    Raises:
        RuntimeError: this torch's Inductor did not say.
    """
    import torch._functorch.config as autograd_settings
    import torch._inductor.config as inductor_settings
    from torch._inductor import compile_fx
    from torch._inductor.graph import GraphLowering

    found: dict[Direction, int] = {}

    def stop(graph: Any) -> None:
        getattr(graph, "_update_scheduler", graph.codegen)()  # what follows would call the C++ compiler
        raise _CountedError(graph.count_bytes()[0])

    def count(module: torch.fx.GraphModule, inputs: Any, **options: Any) -> Callable[[list[Any]], list[Any]]:
        try:
            with mock.patch.object(GraphLowering, "compile_to_module", stop):
                compile_fx.compile_fx_inner(module, inputs, **options)
        except Exception as error:
            found["backward" if options.get("is_backward") else "forward"] = _count_in(error)
        results: Any = module.graph.output_node().args[0]

        def blank(arguments: list[Any]) -> list[Any]:
            arguments.clear()
            return [_blank(node) for node in results]

        blank._boxed_call = True  # type: ignore[attr-defined]
        return blank

    def backend(module: torch.fx.GraphModule, given: Any) -> Any:
        return compile_fx.compile_fx(module, given, inner_compile=count)  # type: ignore[arg-type]

    inputs = case.make("cpu", seed=0)
    torch._dynamo.reset()
    with inductor_settings.patch(fx_graph_cache=False), autograd_settings.patch(enable_autograd_cache=False):
        compiled = torch.compile(getattr(reference, case.operator), dynamic=False, backend=backend)
        result = compiled(*case.arguments(inputs))
        gradients(result[0] if isinstance(result, tuple) else result, inputs)
    torch._dynamo.reset()
    if len(found) != 2:
        raise RuntimeError(f"Inductor compiled {len(found)} graphs; forward and backward should be one each")
    return found


def _count_in(error: BaseException) -> int:
    """The count that an exception, or one it was raised from, carries; anything else is a failure of its own."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, _CountedError):
        inner = inner.__cause__ or inner.__context__
    if inner is None:
        raise error
    return int(inner.args[0])


def _blank(node: Any) -> torch.Tensor | None:
    """A tensor of the shape a graph's node has, its values not set."""
    if node is None:
        return None
    value = node.meta["val"]
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
