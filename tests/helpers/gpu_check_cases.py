"""`gpu_check.py`, and small cases of it."""

from __future__ import annotations

from pathlib import Path

import torch

from egmf_kernels.bench.cases import Case

SCRIPT = Path(__file__).resolve().parents[2] / "kernels" / "benchmarks" / "gpu_check.py"
LENGTHS = (5, 3, 0, 0, 0, 0, 1, 0, 2, 17, 0, 4)


def case_of(operator: str, layout: str = "ragged") -> Case:
    return Case(operator, 32, torch.bfloat16, layout, LENGTHS)
