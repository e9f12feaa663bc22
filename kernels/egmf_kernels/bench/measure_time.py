"""Times and memory on a CUDA device, and the two ceilings everything is held against."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from egmf_kernels.bench.cases import Inputs, Runner, gradients
from egmf_kernels.ops.common.launch import watching
from egmf_kernels.tools.ahead_of_time import entry_of

COPY_BYTES = 1 << 29
MATMUL = 8192
Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call on the device."""

    median: float
    low: float
    """20th percentile."""
    high: float
    """80th percentile."""


def stream_time(call: Call, repeat_ms: int = 100) -> Timing:
    """Time calls one after the other by device events, the L2 cache emptied before each.

    Where the host needs longer to issue a call than the device to run it and to empty the cache, this is the host's
    time.
    """
    from triton.testing import do_bench

    median, low, high = do_bench(call, warmup=25, rep=repeat_ms, quantiles=[0.5, 0.2, 0.8])
    return Timing(median, low, high)


def graph_time(call: Call, repeat_ms: int = 100) -> Timing:
    """As :func:`stream_time`, but for replays of a CUDA graph of one call: no gaps between launches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    try:
        return stream_time(graph.replay, repeat_ms)
    finally:
        graph.reset()


def timings(calls: Mapping[str, Call], repeat_ms: int = 100) -> tuple[str, dict[str, Timing]]:
    """Time every call by the same method: graph replays if all of them can be captured, else one after the other.

    Returns:
        The method ("graph" or "stream: WHY") and the times by name.
    """
    try:
        return "graph", {name: graph_time(call, repeat_ms) for name, call in calls.items()}
    except RuntimeError as problem:
        torch.cuda.synchronize()
        reason = str(problem).strip().splitlines()[0]
    return f"stream: {reason}", {name: stream_time(call, repeat_ms) for name, call in calls.items()}


def launch_times(run: Runner, inputs: Inputs, timed: bool = True) -> list[dict[str, Any]]:
    """Every single launch of one forward and backward, in order: ``kernel``, ``grid``, ``us`` (None where not timed).

    Each is repeated with the arguments it had, so a kernel that adds to its output would show the wrong numbers, not
    the wrong time.
    """
    from triton.testing import do_bench

    seen: list[tuple[Any, tuple[int, ...], Any, dict[str, Any]]] = []

    def watch(kernel: Any, grid: tuple[int, ...], arguments: Any, keywords: dict[str, Any]) -> bool:
        seen.append((kernel, grid, tuple(arguments), dict(keywords)))
        return True

    with watching(watch):
        gradients(run(inputs)[0], inputs)
    found = []
    for kernel, grid, arguments, keywords in seen:
        again = partial(kernel[grid], *arguments, **keywords)
        taken = do_bench(again, warmup=3, rep=12, quantiles=[0.5]) if timed else None
        median = taken[0] if isinstance(taken, list | tuple) else taken
        microseconds = None if median is None else round(1e3 * median, 2)
        found.append({"kernel": entry_of(kernel, keywords), "grid": list(grid), "us": microseconds})
    return found


def patiently(call: Call, tries: int = 8, seconds: float = 5.0) -> Any:
    """What ``call`` returns; where the memory is full, because others use the device too, again a little later.

    Raises:
        torch.OutOfMemoryError: it was full every time.
    """
    for _ in range(tries - 1):
        try:
            return call()
        except torch.OutOfMemoryError:
            pass
        # Outside the handler: the traceback would keep what the failed call had allocated.
        torch.cuda.empty_cache()
        time.sleep(seconds)
    return call()


@dataclass(frozen=True)
class Memory:
    """MiB above what the inputs hold."""

    peak: float
    """Highest during forward and backward, gradients included."""
    saved: float
    """Held between forward and backward: the output and whatever backward keeps."""


def memory(run: Runner, inputs: Inputs) -> Memory:
    """Peak and saved memory of one forward and backward, as the caching allocator counts them."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    output, weights = run(inputs)
    saved = torch.cuda.memory_allocated() - before
    found = gradients(output, inputs)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del output, weights, found
    return Memory(peak / 2**20, saved / 2**20)


@dataclass(frozen=True)
class Rates:
    """What this device was seen to do at best."""

    copy: float
    """Bytes read plus bytes written a second, in a device-to-device copy."""
    matmul: float
    """bf16 operations a second, 8192 x 8192 x 8192, random data."""
    matmul_projection: float
    """bf16 operations a second at gated_tri_proj's forward shape for D = 512: [131072, 1536] x [1536, 512]."""


def measure_rates() -> Rates:
    """Measure the ceilings on random data (zeros run faster than data ever will)."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    def copy() -> float:
        source = normal(COPY_BYTES // 2)
        target = torch.empty_like(source)
        return 2 * COPY_BYTES / (stream_time(lambda: target.copy_(source)).median / 1e3)

    def product(rows: int, inner: int, columns: int) -> float:
        a, b = normal(rows, inner), normal(inner, columns)
        out = torch.empty(rows, columns, device="cuda", dtype=torch.bfloat16)
        return 2.0 * rows * inner * columns / (stream_time(lambda: torch.mm(a, b, out=out)).median / 1e3)

    return Rates(copy(), product(MATMUL, MATMUL, MATMUL), product(131072, 1536, 512))
