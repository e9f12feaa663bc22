"""What the report without a GPU counts is what it says it counts."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from egmf_kernels.bench import static, static_roofline
from egmf_kernels.bench.cases import OPERATORS, Case, ragged_lengths
from egmf_kernels.bench.static_counts import MovedBytes, count_eager, count_inductor, footprint
from egmf_kernels.tools import formulas
from egmf_kernels.tools.formulas import Ceilings, Operations

SIZES = {"tokens": 16384, "width": 512, "element": 2, "batch": 64}


def counted(function: Any, *inputs: torch.Tensor) -> int:
    with MovedBytes() as moved:
        function(*inputs)
    return moved.total


def test_eager_bytes_by_hand() -> None:
    x, y = torch.zeros(10, 8), torch.zeros(10, 8)
    one = 10 * 8 * 4
    assert counted(lambda: x + y) == 3 * one
    assert counted(lambda: x.add_(y)) == 3 * one
    assert counted(lambda: x.copy_(y)) == 2 * one
    assert counted(lambda: torch.zeros_like(x)) == one
    assert counted(lambda: torch.empty_like(x)) == 0
    assert counted(lambda: x.view(80)[3:].unsqueeze(0).expand(5, -1)) == 0
    assert counted(lambda: x.to(torch.bfloat16)) == one + one // 2
    assert counted(lambda: x * y[:1].expand(10, 8)) == 2 * one + 8 * 4
    assert counted(lambda: torch.cat([x, y])) == 4 * one
    assert footprint(torch.zeros(1, 8).expand(10, 8)) == 8 * 4


def test_eager_bytes_of_a_norm_written_out() -> None:
    """``x * rsqrt(mean(x^2))``: square 2, mean 1, multiply 2 passes, and three columns."""
    x = torch.zeros(64, 32)
    columns = 64 * 4
    moved = counted(lambda: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)))
    assert moved == 5 * 64 * 32 * 4 + 4 * columns


def test_inductors_count_does_not_change_when_it_writes_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours stops after scheduling; Inductor counts for ``metrics.num_bytes_accessed`` after it wrote its kernels."""
    from torch._inductor.graph import GraphLowering

    case = Case("hier_gate_mix_norm", 32, torch.float32, "ragged", ragged_lengths(2, 3, 64))
    scheduled = count_inductor(case)
    schedule, written = GraphLowering._update_scheduler, []

    def write(graph: Any) -> None:
        monkeypatch.setattr(GraphLowering, "_update_scheduler", schedule)
        written.append(graph.codegen())
        monkeypatch.setattr(GraphLowering, "_update_scheduler", write)

    monkeypatch.setattr(GraphLowering, "_update_scheduler", write)
    assert count_inductor(case) == scheduled
    assert len(written) == 2


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_fused_operators_move_least(operator: str) -> None:
    """Eager moves more than the compulsory bytes of the kernels, in every direction."""
    tokens = 16384
    case = Case(operator, 64, torch.bfloat16, "ragged", ragged_lengths(8, 3, tokens))
    eager = count_eager(case)
    for direction in formulas.DIRECTIONS:
        fused = formulas.bytes_moved(operator, direction, tokens=tokens, width=64, element=2, batch=8, weighed=True)
        assert eager[direction] > 1.5 * fused


def test_operations_by_hand() -> None:
    tokens, width = SIZES["tokens"], SIZES["width"]
    numbers = tokens * width
    assert formulas.operations("gated_tri_proj", "forward", **SIZES).matrix == 2 * 3 * numbers * width
    assert formulas.operations("gated_tri_proj", "backward", **SIZES).matrix == 4 * 3 * numbers * width
    assert formulas.operations("ragged_pool_gate", "forward", **SIZES) == Operations(0, 4 * 4 * numbers)
    # 15 taps, 3 GELUs, 3 weights and sums
    assert formulas.operations("ms_dwconv", "forward", **SIZES) == Operations(0, numbers * (30 + 3 * (10 + 2)))
    for direction in formulas.DIRECTIONS:
        narrow = formulas.operations("gated_expert_mix", direction, **SIZES)
        parts = [formulas.operations(op, direction, **SIZES) for op in ("gated_tri_proj", "norm")]
        assert narrow == parts[0] + parts[1]


def test_the_roofline_takes_the_slowest_resource() -> None:
    device = Ceilings("toy", bytes_per_s=100.0, matrix_per_s=1000.0, vector_per_s=10.0)
    assert formulas.bound_seconds(200, Operations(500, 5), device) == 2.0
    assert formulas.bound_seconds(20, Operations(5000, 5), device) == 5.0
    assert formulas.bound_seconds(20, Operations(500, 70), device) == 7.0


def test_a_projection_crosses_from_memory_to_arithmetic() -> None:
    """gated_tri_proj forward on an H100: bound by memory at width 256, by the tensor cores at 2048."""
    device = static_roofline.DATASHEETS[0]
    for width, memory in ((256, True), (2048, False)):
        sizes = SIZES | {"width": width}
        moved = formulas.bytes_moved("gated_tri_proj", "forward", **sizes)
        done = formulas.operations("gated_tri_proj", "forward", **sizes)
        bound = formulas.bound_seconds(moved, done, device)
        assert (bound == moved / device.bytes_per_s) is memory


def test_the_step_share_is_its_arithmetic() -> None:
    device = static_roofline.DATASHEETS[0]
    done, moved = static_roofline.llm_step(10_000)
    assert (done.matrix, moved) == (4 * 7_000_000_000 * 10_000, 4 * 7_000_000_000)
    frozen, trained = static_roofline.step_share(SIZES, 160, device)
    assert frozen["llm_us"] == round(1e6 * 4 * 7e9 * 64 * 160 / 989e12, 1)
    assert trained["llm_us"] == pytest.approx(1.5 * frozen["llm_us"], abs=0.2)
    whole = frozen["kernels_us"] + frozen["torch_us"] + frozen["llm_us"]
    assert frozen["kernels_percent"] == pytest.approx(100 * frozen["kernels_us"] / whole, abs=2e-3)
    slower = static_roofline.step_share(SIZES, 160, device, kernels_seconds=1.0)[0]
    assert slower["kernels_us"] == 1e6
    assert slower["kernels_percent"] > 50


def test_the_share_of_measured_kernels() -> None:
    """Only widths at which the whole block was measured; times from the rows."""
    row = {"implementation": "fused", "layout": "ragged", "direction": "both", "tokens": 16384, "batch": 64}
    rows = [row | {"operator": op, "width": 512, "ms": 2.0} for op in static_roofline.BLOCK]
    rows += [row | {"operator": "ms_dwconv", "width": 256, "ms": 1.0}]
    summary = {"machine": "a GPU", "ceilings": {"copy": 3e12, "matmul": 6e14}, "rows": rows}
    shares = static_roofline.measured_share(summary, 160)
    assert [(share["width"], share["kernels_us"]) for share in shares] == [(512, 6000.0)] * 2
    assert static_roofline.measured_share(summary | {"ceilings": None}, 160) == []


def test_a_failing_inductor_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(case: Case) -> Any:
        raise RuntimeError("other\ninside")

    monkeypatch.setattr(static, "count_inductor", fails)
    case = Case("ms_dwconv", 32, torch.bfloat16, "ragged", ragged_lengths(2, 3, 64))
    rows, notes = static._rows(case, quick=False)
    assert notes == ["inductor was not counted for ms_dwconv: RuntimeError: other inside"]
    assert {row["implementation"]: row["bytes"] is None for row in rows} == {
        "eager": False,
        "inductor": True,
        "fused": False,
    }


def test_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, labels and rows, without the two processes of its own (``tests/launcher/test_bench.py`` has them)."""
    asked: list[tuple[str, bool]] = []

    def child(module: str, arguments: list[str], interpret: bool) -> Any:
        asked.append((" ".join([module, *arguments]), interpret))
        return [{"module": module}]

    monkeypatch.setattr(static, "_child", child)
    (tmp_path / "notes.txt").write_text("mine")
    said: list[tuple[int, int]] = []
    summary = static.static_report(
        tmp_path, tokens=512, batch=4, quick=True, progress=lambda doing, done, total: said.append((done, total))
    )
    assert asked == [("static_resources --arch 90 --width 512", False), ("static_requests", True)]
    assert [done for done, _ in said] == list(range(len(OPERATORS) + 3))
    assert said[-1][0] == said[-1][1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "results.csv", "summary.json"]
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (summary["kind"], summary["label"]) == ("predicted", "predicted, not measured")
    assert {"machine", "versions", "commit", "date", "ceilings", "step_share", "notes"} <= set(summary)
    with (tmp_path / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(summary["rows"]) == len(OPERATORS) * 2 * 2
    assert {row["label"] for row in table} == {"predicted, not measured"}
    assert not any("ms" in row for row in table)
    fused = next(r for r in summary["rows"] if r["implementation"] == "fused" and r["operator"] == "hier_gate_mix_norm")
    assert fused["stream_passes"] == 5
    assert fused["passes"] == round(fused["bytes"] / (512 * 512 * 2), 2)
    assert fused["requested_passes"] > fused["passes"]


def test_an_unknown_architecture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="architecture 12 has no tile table; there are 80, 90"):
        static.static_report(tmp_path, architectures=[12])
