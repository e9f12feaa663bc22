"""The correctness check of a GPU machine with the shipped tile tables, interpreted.

The other tests interpret with a table of small tiles; sums run in another order and over other lengths in the shipped
ones. By default one width an operator and dtype; ``make kernel-tables`` takes all widths and more tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from egmf_kernels import tiles
from egmf_kernels.bench import correct
from egmf_kernels.bench.cases import OPERATORS, Case, dtype_name, ragged_lengths
from egmf_kernels.select import PROJECTION_WIDTH
from egmf_kernels.tools import tune

ALL = os.environ.get("EGMF_KERNEL_TABLES") == "all"
WIDTHS = (128, 256, 512, 1024, 2048) if ALL else (128,)
LENGTHS = (0, 0, 0, *ragged_lengths(7, 3, 203 if ALL else 61, seed=1))


def used(table: dict[str, Any], operator: str, width: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """The tiles that an operator's kernels have in a table."""
    names = tune.ENTRIES[operator]
    if operator == "gated_expert_mix":
        names += tune.ENTRIES["gated_tri_proj" if width <= PROJECTION_WIDTH else "hier_gate_mix_norm"]
    with tiles.using(table):
        return [tiles.lookup(name, torch.empty(0, dtype=dtype), width) for name in names]


def what() -> Iterator[Any]:
    """Table, operator, width, dtype; where two tables have the same tiles, one of them is enough."""
    for operator in OPERATORS:
        for width in WIDTHS:
            if operator == "gated_tri_proj" and width > PROJECTION_WIDTH:
                continue
            for dtype in correct.LIMITS:
                seen: list[Any] = []
                for architecture in reversed(tiles.architectures()):
                    found = used(tiles.load(f"sm_{architecture}"), operator, width, dtype)
                    if found not in seen:
                        seen.append(found)
                        name = f"sm_{architecture} {operator} d={width} {dtype_name(dtype)}"
                        yield pytest.param(f"sm_{architecture}", operator, width, dtype, id=name)


@pytest.mark.parametrize(("table", "operator", "width", "dtype"), list(what()))
def test_a_shipped_table_computes_what_the_reference_does(
    table: str, operator: str, width: int, dtype: torch.dtype
) -> None:
    case = Case(operator, width, dtype, "ragged", LENGTHS)
    with tiles.using(tiles.load(table)):
        verdict = correct.check(case, case.make("cpu", 0))
    assert verdict.correct, verdict.line()
