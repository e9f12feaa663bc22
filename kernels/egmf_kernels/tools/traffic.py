"""Count the bytes that interpreted kernels ask for, kernel by kernel and argument by argument.

Works in a process that interprets (``TRITON_INTERPRET=1`` before the first import of Triton). A lane counts where its
mask is set; an address outside of the kernel's arguments is an error, which the interpreter itself would not notice.

    with traffic.counting() as counted:
        mix.forward(...)
    counted.loads["mix_norm_forward", "X"]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from egmf_kernels.ops.common.interpreter import INTERPRETED
from egmf_kernels.ops.common.launch import watching


@dataclass
class Traffic:
    """Bytes asked for while counting, by (kernel, argument)."""

    loads: Counter[tuple[str, str]] = field(default_factory=Counter)
    stores: Counter[tuple[str, str]] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)

    @property
    def requested(self) -> Counter[tuple[str, str]]:
        """Loads and stores together."""
        return self.loads + self.stores


@dataclass
class _Launch:
    """The kernel that is running and where its arguments lie: (first byte, end, name)."""

    kernel: str = ""
    spans: list[tuple[int, int, str]] = field(default_factory=list)

    def argument_at(self, low: int, high: int) -> str:
        for first, end, name in self.spans:
            if first <= low and high < end:
                return name
        raise IndexError(f"{self.kernel} touches memory outside of its arguments, {low:#x} to {high:#x}")


def _spans(names: Sequence[str], arguments: Sequence[Any]) -> Iterator[tuple[int, int, str]]:
    for name, argument in zip(names, arguments, strict=False):  # compile-time arguments come by keyword
        for tensor in argument if isinstance(argument, tuple) else (argument,):
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
                yield tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size(), name


@contextmanager
def counting() -> Iterator[Traffic]:
    """Count everything that kernels load and store while the context is open.

    Where one tensor is passed as several arguments, its bytes belong to the first of them.

    Raises:
        RuntimeError: the process does not interpret.
        IndexError: a kernel touched memory outside of its arguments.
    """
    if not INTERPRETED:
        raise RuntimeError("traffic is counted in Triton's interpreter: set TRITON_INTERPRET=1 before importing Triton")
    from triton.runtime.interpreter import InterpreterBuilder as Builder  # absent where Triton cannot interpret

    counted, running = Traffic(), _Launch()
    load, store = Builder.create_masked_load, Builder.create_masked_store

    def notice(kernel: Any, grid: tuple[int, ...], arguments: Sequence[Any], keywords: dict[str, Any]) -> bool:
        running.kernel = kernel.fn.__name__
        running.spans = list(_spans(kernel.arg_names, arguments))
        counted.launches[running.kernel] += 1
        return True

    def add(counts: Counter[tuple[str, str]], pointers: Any, mask: Any) -> None:
        active = pointers.data[mask.data.astype(bool)]
        if active.size:
            item = pointers.get_element_ty().primitive_bitwidth // 8
            argument = running.argument_at(int(active.min()), int(active.max()) + item - 1)
            counts[running.kernel, argument] += active.size * item

    # Unmasked loads and stores reach these two with a mask of ones.
    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        add(counted.loads, pointers, mask)
        return load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        add(counted.stores, pointers, mask)
        return store(self, pointers, value, mask, *rest)

    Builder.create_masked_load, Builder.create_masked_store = counted_load, counted_store
    try:
        with watching(notice):
            yield counted
    finally:
        Builder.create_masked_load, Builder.create_masked_store = load, store
