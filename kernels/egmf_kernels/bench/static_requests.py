"""Counted in Triton's interpreter: the bytes that each operator's kernels ask for, beside what the formulas say.

    python -m egmf_kernels.bench.static_requests --json FILE

The command starts Triton interpreting, so it is run as a process of its own. Sizes are small, because interpreting is
slow; ``tests/kernels/test_traffic.py`` holds the two equal argument by argument.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")

import torch

from egmf_kernels import tiles
from egmf_kernels.bench.cases import OPERATORS, Case, gradients, ragged_lengths
from egmf_kernels.tools import formulas, traffic


def count_requests(tokens: int = 96, width: int = 64, batch: int = 4) -> list[dict[str, Any]]:
    """One row an operator and direction, bf16, tiles of the interpreted table."""
    rows = []
    table = tiles.load(tiles.INTERPRETED)
    sizes = formulas.sizes_of(tokens=tokens, width=width, element=2, batch=batch, weighed=True, table=table)
    lengths = ragged_lengths(batch, sizes.modalities, tokens)
    for operator in OPERATORS:
        case = Case(operator, width, torch.bfloat16, "ragged", lengths)
        inputs = case.make("cpu", seed=0)
        with traffic.counting() as forward:
            out, _ = case.fused()(inputs)
        with traffic.counting() as backward:
            gradients(out, inputs)
        for direction, counted in zip(formulas.DIRECTIONS, (forward, backward), strict=True):
            terms = [t for t in formulas.terms(operator, direction, sizes) if t.kernel not in ("sum", "cublas")]
            rows.append(
                {
                    "operator": operator,
                    "direction": direction,
                    "tokens": tokens,
                    "width": width,
                    "dtype": "bfloat16",
                    "counted_bytes": sum(counted.requested.values()),
                    "formula_bytes": sum(term.requested for term in terms),
                }
            )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="count requested bytes in Triton's interpreter")
    parser.add_argument("--json", type=Path, required=True, help="write the rows here")
    options = parser.parse_args()
    options.json.write_text(json.dumps(count_requests()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
