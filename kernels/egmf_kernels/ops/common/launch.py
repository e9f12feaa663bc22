"""The one place where a kernel is launched, so that a launch can be recorded, counted or compiled for elsewhere.

``launch`` normally starts the kernel. Inside :func:`watching` it hands kernel, grid and arguments to a watcher instead
of (or before) running: ahead-of-time compilation, the traffic counter and the tests that count calls all see exactly
what the model would launch, without a second description of any signature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

import egmf_kernels.ops.common.interpreter  # noqa: F401  (puts it right before anything is launched)

Watcher = Callable[[Any, tuple[int, ...], Sequence[Any], dict[str, Any]], bool]
"""Called with kernel, grid, positional arguments, keyword arguments; True lets the launch go on."""

_watchers: list[Watcher] = []


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Show every launch to ``watcher`` while the context is open."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **keywords: Any) -> None:
    """Start ``kernel`` over ``grid``; an empty grid starts nothing."""
    if 0 in grid:
        return
    proceed = [watcher(kernel, grid, arguments, keywords) for watcher in _watchers]
    if not all(proceed):
        return
    first = arguments[0]
    # Triton launches on the current device, whatever device its pointers belong to.
    with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
        kernel[grid](*arguments, **keywords)


def accumulate_in(tensor: torch.Tensor) -> torch.dtype:
    """The dtype a kernel accumulates in: fp64 for fp64 (``gradcheck``), else fp32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
