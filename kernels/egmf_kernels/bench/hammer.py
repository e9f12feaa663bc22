"""The same step many times over on a full device: the same bits every time, or something races.

The gate's cases are small: few programs run at once, and each case runs twice. A missing barrier between programs or
inside one shows where every multiprocessor is busy and the scheduling differs from run to run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton

from egmf_kernels.bench import correct
from egmf_kernels.bench.cases import OPERATORS, Case, dtype_name, ragged_lengths
from egmf_kernels.bench.measure_time import patiently

RUNS = 60
TOKENS, WIDTH, BATCH = 65536, 512, 170


@dataclass(frozen=True)
class Hammer:
    """One operator's runs: a worker's task."""

    operator: str
    device: str
    runs: int = RUNS
    tokens: int = TOKENS
    width: int = WIDTH
    batch: int = BATCH

    def __str__(self) -> str:
        return f"hammer {self.operator} d={self.width} T={self.tokens}"


def hammers(device: str, rehearse: bool, operators: tuple[str, ...] = OPERATORS) -> list[Hammer]:
    """One task an operator; gated_tri_proj first, because it is the one in doubt (matrix instructions, pipelines)."""
    ordered = sorted(operators, key=lambda name: name != "gated_tri_proj")
    if rehearse:
        return [Hammer(name, device, runs=2, tokens=24, width=32, batch=2) for name in ordered]
    return [Hammer(name, device) for name in ordered]


def hammer(task: Hammer) -> dict[str, Any]:
    """Run forward and backward ``task.runs`` times more and compare every tensor with the first run's, bit by bit.

    Returns:
        ``operator``, ``width``, ``tokens``, ``dtype``, ``runs``, ``triton``; ``equal``: every run gave the first one's
        bits; ``moved``: tensor -> in how many runs it did not; ``errors``: tensor -> error against the reference in
        fp32; ``correct``: equal, and every error within the dtype's limit.
    """
    case = Case(task.operator, task.width, torch.bfloat16, "ragged", ragged_lengths(task.batch, 3, task.tokens))
    inputs = case.make(task.device, 2)
    first = patiently(lambda: correct.results(case.fused(), inputs))
    moved: dict[str, int] = {}
    for _ in range(task.runs):
        for name, tensor in correct.results(case.fused(), inputs).items():
            if not torch.equal(tensor, first[name]):
                moved[name] = moved.get(name, 0) + 1
    with correct.full_precision():
        exact = patiently(lambda: correct.results(case.eager(), inputs.to(torch.float32)))
    errors = {name: correct.error(tensor, exact[name].double()) for name, tensor in first.items()}
    return {
        "operator": task.operator,
        "width": task.width,
        "tokens": task.tokens,
        "dtype": dtype_name(case.dtype),
        "runs": task.runs,
        "triton": triton.__version__,
        "equal": not moved,
        "moved": moved,
        "errors": errors,
        "correct": not moved and all(e <= correct.LIMITS[case.dtype] for e in errors.values()),
    }


def line(found: dict[str, Any]) -> str:
    """One line a task."""
    steady = found["runs"] - max(found["moved"].values(), default=0)
    worst = max(found["errors"], key=lambda name: found["errors"][name])
    moved = "".join(f", {name} moved in {times}" for name, times in found["moved"].items())
    return (
        f"{'green' if found['correct'] else 'RED  '} hammer {found['operator']} d={found['width']} "
        f"T={found['tokens']}: {steady} of {found['runs']} runs equal{moved}; worst {worst} "
        f"{found['errors'][worst]:.1e}"
    )
