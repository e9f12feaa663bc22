"""Every entry of the shipped tile tables, compiled to sm_80 and sm_90 machine code on this machine, without a GPU.

Compiling happens in a process of its own: the tests' own process interprets. The gates are
:meth:`egmf_kernels.tools.ahead_of_time.Compiled.complaints`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from egmf_kernels import tiles
from egmf_kernels.tools.ahead_of_time import MATRIX_PRODUCTS, OPERATORS, Compiled

ARCHITECTURES = [80, 90]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[Compiled]:
    """Both tables, compiled by the command that a developer would use."""
    out: Path = tmp_path_factory.mktemp("compiled") / "compiled.json"
    command = [sys.executable, "-m", "egmf_kernels.tools.ahead_of_time", "--json", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.exists(), result.stderr[-2000:]
    found = [Compiled(**row) for row in json.loads(out.read_text())]
    assert result.returncode == (1 if any(c.complaints() for c in found) else 0)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_entry_compiles_within_the_gates(compiled: list[Compiled], architecture: int) -> None:
    mine = [c for c in compiled if c.architecture == architecture]
    assert [f"{c.row()}: {c.complaints()}" for c in mine if c.complaints()] == []
    table = tiles.load(f"sm_{architecture}")["kernels"]
    entries = {
        (kernel, int(bits), int(width)) for kernel in table for bits in table[kernel] for width in table[kernel][bits]
    }
    assert entries <= {(c.kernel, c.bits, c.width) for c in mine}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tables_hold_exactly_the_kernels_there_are(architecture: int) -> None:
    names = {name for entries in OPERATORS.values() for name in entries}
    assert set(tiles.load(f"sm_{architecture}")["kernels"]) == names
    assert set(tiles.load("interpreted")["kernels"]) == names
    assert tiles.load(f"sm_{architecture}")["architecture"] == f"sm_{architecture}"


GOOD: dict[str, Any] = {
    "kernel": "gated_tri_proj_forward",
    "architecture": 90,
    "bits": 16,
    "width": 512,
    "tile": {},
    "registers": 200,
    "stack": 0,
    "spills": 0,
    "shared": 98_304,
    "threads": 256,
    "widest_load": 128,
    "copies": 4,
    "matrix": "wgmma",
}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"stack": 8}, "8 bytes of stack"),
        ({"spills": 2}, "2 local-memory instructions"),
        ({"threads": 512}, "200 registers x 512 threads"),
        ({"shared": 240_000}, "240000 bytes of shared memory; at most 232448"),
        ({"shared": 170_000, "architecture": 80, "matrix": "mma"}, "at most 166912"),
        ({"widest_load": 16, "copies": 0}, "widest load 16 bits; must be 128"),
        ({"matrix": "mma"}, "matrix instructions mma; must be wgmma"),
    ],
)
def test_a_bad_kernel_is_seen(change: dict[str, Any], complaint: str) -> None:
    good = Compiled(**GOOD)
    assert good.complaints() == []
    (found,) = replace(good, **change).complaints()
    assert complaint in found


def test_the_wide_tile_uses_tensor_cores(compiled: list[Compiled]) -> None:
    for c in compiled:
        if c.kernel in MATRIX_PRODUCTS and c.bits == 16:
            assert c.matrix == ("wgmma" if c.architecture == 90 else "mma")


def test_a_width_finds_its_entry() -> None:
    import torch

    table = tiles.load("sm_90")
    with tiles.using(table):
        x = torch.empty(0, dtype=torch.bfloat16)
        by_width = table["kernels"]["ragged_pool_gate_forward"]["16"]
        assert tiles.lookup("ragged_pool_gate_forward", x, 48) is by_width["128"]
        assert tiles.lookup("ragged_pool_gate_forward", x, 256) is by_width["256"]
        assert tiles.lookup("ragged_pool_gate_forward", x, 4096) is by_width["2048"]
        assert not tiles.prefers_compile("ms_dwconv", x, 256, 4096)
    with tiles.using(table | {"choices": {"ms_dwconv": {"16": {"256": "compile", "512": "triton"}}}}):
        assert tiles.prefers_compile("ms_dwconv", x, 200, 4096)
        assert not tiles.prefers_compile("ms_dwconv", x, 300, 4096)
    by_tokens = [[4096, "triton"], [9000, "compile"], [None, "triton"]]
    with tiles.using(table | {"choices": {"ms_dwconv": {"16": {"256": by_tokens}}}}):
        found = [tiles.prefers_compile("ms_dwconv", x, 256, tokens) for tokens in (0, 4096, 4097, 9000, 9001)]
        assert found == [False, False, True, True, False]
    assert tiles.table_for_capability(90) == "sm_90"
    assert tiles.table_for_capability(89) == "sm_80"
    assert tiles.table_for_capability(100) == "sm_90"
    assert tiles.table_for_capability(120) == "sm_80"
    assert tiles.table_for_capability(75) == "sm_80"
