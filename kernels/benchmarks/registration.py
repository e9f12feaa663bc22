"""What a call of a registered operator costs on the host: ours, `register_autograd`, `triton_op`.

    python kernels/benchmarks/registration.py [--calls 2000]

One operator with the arguments of a real one (a tensor, three weights in a list, a boundary) that does next to nothing,
so that the call is timed: forward, and forward with backward, on the CPU. Prints the median of seven rounds in
microseconds and the ratio to ours, all from one process.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from egmf_kernels.ops.common.registration import define, differentiable, register

Operator = Callable[[Tensor, list[Tensor], Tensor], Tensor]
SCHEMA = "(Tensor x, Tensor[] weights, Tensor segment) -> Tensor"


def compute(x: Tensor, weights: list[Tensor], segment: Tensor) -> Tensor:
    """What stands for the kernel."""
    return x + 1


def fake(x: Tensor, weights: list[Tensor], segment: Tensor) -> Tensor:
    """Its result's shape."""
    return torch.empty_like(x)


def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """What backward needs."""
    x, weights, segment = inputs
    ctx.save_for_backward(x, segment, *weights)


def gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    """One value an argument; the weights themselves stand for their gradients."""
    _, _, *weights = ctx.saved_tensors
    return gradient, weights, None


def ours() -> Operator:
    """As this package registers its operators."""
    define(f"cost_of_a_call{SCHEMA}")
    register("cost_of_a_call", compute, fake)
    differentiable("cost_of_a_call", keep, gradients, sequence=1)
    return torch.ops.egmf.cost_of_a_call.default


def registered(library: torch.library.Library) -> Operator:
    """By `torch.library.register_autograd`."""
    library.define(f"registered{SCHEMA}")
    library.impl("registered", compute, "CPU")
    torch.library.register_fake("cost::registered", fake, lib=library)
    torch.library.register_autograd("cost::registered", gradients, setup_context=keep, lib=library)
    return torch.ops.cost.registered.default


def triton() -> Operator:
    """By `torch.library.triton_op`."""
    operator = torch.library.triton_op("cost::triton", compute, mutates_args={}, schema=SCHEMA)
    operator.register_autograd(gradients, setup_context=keep)
    return operator


def microseconds(operator: Operator, calls: int, backward: bool) -> float:
    """Of one call, the median of seven rounds."""
    x, gradient = torch.zeros(16, requires_grad=True), torch.ones(16)
    weights, segment = [torch.zeros(3, requires_grad=True) for _ in range(3)], torch.zeros(16, dtype=torch.int32)
    rounds = []
    for _ in range(8):
        start = time.perf_counter()
        for _ in range(calls):
            y = operator(x, weights, segment)
            if backward:
                torch.autograd.grad(y, [x, *weights], gradient)
        rounds.append((time.perf_counter() - start) / calls * 1e6)
    return statistics.median(rounds[1:])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="host microseconds of a registered operator's call")
    parser.add_argument("--calls", type=int, default=2000, help="of a round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    library = torch.library.Library("cost", "DEF")
    ways = {"ours": ours(), "register_autograd": registered(library), "triton_op": triton()}
    print(f"torch {torch.__version__}, python {platform.python_version()}, {platform.machine()}")
    for backward in (False, True):
        found = {name: microseconds(operator, options.calls, backward) for name, operator in ways.items()}
        for name, taken in found.items():
            what = "forward and backward" if backward else "forward"
            print(f"{what:20} {name:18} {taken:7.1f} us {taken / found['ours']:5.1f} times ours")


if __name__ == "__main__":
    main()
