"""What the GPU check times, and what becomes of times: rows, targets, choices, tuned tables. All times are invented."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

import egmf_kernels
from egmf_kernels import tiles
from egmf_kernels.bench import cases, correct, measure_rows, measure_time
from egmf_kernels.bench.cases import Case
from egmf_kernels.bench.measure_time import Memory, Rates, Timing
from egmf_kernels.tools import tune

LENGTHS = (5, 3, 0, 0, 0, 0, 1, 0, 2, 17, 0, 4)
RATES = Rates(copy=3e12, matmul=8e14, matmul_projection=7e14)


def case_of(operator: str, layout: str = "ragged") -> Case:
    return Case(operator, 32, torch.bfloat16, layout, LENGTHS)


# What is timed.


def test_what_is_timed_are_the_models_shapes_and_large_streams() -> None:
    found = cases.benchmark_cases(64 << 20)
    model = [case for case in found if case.shape == "model"]
    assert found[: len(model)] == model, "the more important half comes first"
    assert {(c.width, c.tokens, c.batch) for c in model} == set(cases.MODEL_SHAPES)
    assert [(c.operator, c.width) for c in model] == [(op, w) for w, _, _ in cases.MODEL_SHAPES for op in cases.BLOCK]
    large = found[len(model) :]
    assert {(c.operator, c.width) for c in large} == {
        *((operator, width) for operator in cases.BLOCK for width in cases.WIDTHS),
        ("gated_tri_proj", 512),
        ("hier_gate_mix_norm", 1024),
    }
    assert {c.operator for c in large if c.layout == "padded"} == {"ragged_pool_gate"}
    for case in found:
        # Everything that Triton specialises on is even: one compilation serves every size.
        assert case.tokens % 16 == 0
    for case in large:
        assert case.tokens * case.width * 2 >= 64 << 20
        if case.layout == "padded":
            assert len(set(case.lengths)) == 1
            continue
        absent = sum(n == 0 for n in case.lengths) / len(case.lengths)
        assert 0.05 < absent < 0.3
        present = [n for n in case.lengths if n]
        assert max(present) > 20 * min(present)
        assert all(any(case.lengths[i : i + 3]) for i in range(0, len(case.lengths), 3))
    names = [case.name for case in found]
    assert len(set(names)) == len(names)


def test_the_padded_baseline_is_the_same_function() -> None:
    case = case_of("ragged_pool_gate")
    inputs = case.make("cpu", 0).to(torch.float64)
    padded = cases.pad(case, inputs)
    wanted, found = correct.results(case.eager(), inputs), correct.results(cases.padded_pool(case), padded)
    for name in ("output", "gate weights", "d queries", "d logits"):
        torch.testing.assert_close(found[name], wanted[name])
    segment = inputs.segment_T.long()
    place = torch.arange(case.tokens) - inputs.cu_segments[segment]
    torch.testing.assert_close(found["d x"][segment, place], wanted["d x"])


def test_one_call_that_cannot_be_captured_puts_all_on_the_same_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def graph(call: Callable[[], Any], repeat_ms: int) -> Timing:
        call()
        return Timing(1.0, 1.0, 1.0)

    def refuses() -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(measure_time, "graph_time", graph)
    monkeypatch.setattr(measure_time, "stream_time", lambda call, repeat_ms: Timing(2.0, 2.0, 2.0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert measure_time.timings({"a": lambda: None})[0] == "graph"
    method, found = measure_time.timings({"a": lambda: None, "b": refuses})
    assert method == "stream: operation not permitted when stream is capturing"
    assert [timing.median for timing in found.values()] == [2.0, 2.0]


def test_a_full_memory_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    calls: list[int] = []

    def full(times: int) -> int:
        calls.append(1)
        if len(calls) <= times:
            raise torch.OutOfMemoryError
        return len(calls)

    assert measure_time.patiently(lambda: full(2), seconds=0) == 3
    with pytest.raises(torch.OutOfMemoryError):
        measure_time.patiently(lambda: full(99), tries=3, seconds=0)


# From times to rows, targets and choices; the times are invented.


def rows_of(case: Case, right: bool = True, fused_ms: float = 1.0, compile_ms: float = 2.0) -> list[dict[str, Any]]:
    times = {
        name: {"forward": Timing(ms, ms, ms), "both": Timing(3 * ms, 3 * ms, 3 * ms)}
        for name, ms in (("eager", 8.0), ("compile", compile_ms), ("fused", fused_ms))
    }
    memories = {name: Memory(2.0, 1.0) for name in times}
    return measure_rows.case_rows(case, right, times, memories, "invented", RATES, tiles.load("interpreted"))


def test_rows_hold_rates_and_speed_ups() -> None:
    case = case_of("gated_tri_proj")
    rows = {(row["implementation"], row["direction"]): row for row in rows_of(case)}
    fused, table = rows["fused", "forward"], tiles.load("interpreted")
    moved, done = measure_rows.cost(case, "forward", table)
    assert done == 2 * 3 * case.tokens * case.width**2
    assert moved >= 6 * case.tokens * case.width * 2
    assert fused["gb_per_s"] == pytest.approx(moved / 1e-3 / 1e9)
    assert fused["tflops"] == pytest.approx(done / 1e-3 / 1e12)
    assert fused["percent_of_roofline"] == pytest.approx(100 * max(moved / 3e12, done / 8e14) / 1e-3)
    assert (fused["speedup_over_eager"], fused["speedup_over_compile"]) == (8.0, 2.0)
    assert rows["fused", "backward"]["ms"] == 2.0
    assert rows["fused", "backward"]["ms_low"] is None
    assert rows["eager", "forward"]["speedup_over_compile"] is None
    assert rows["fused", "both"]["peak_mib"] == 2.0
    parts = [measure_rows.cost(case, direction, table)[0] for direction in ("forward", "backward")]
    assert sum(parts) == measure_rows.cost(case, "both", table)[0]


def test_a_red_case_has_no_speed_up_and_auto_leaves_it() -> None:
    rows = rows_of(case_of("ms_dwconv"), right=False)
    assert all(row["speedup_over_eager"] is None and row["speedup_over_compile"] is None for row in rows)
    assert all("RED" in measure_rows.line(row) for row in rows)
    assert measure_rows.choices(rows) == {"ms_dwconv": {"16": {"32": [[None, "compile"]]}}}


def test_auto_takes_compile_where_any_layout_is_slower() -> None:
    fast, slow = case_of("ms_dwconv"), case_of("ms_dwconv", "padded")
    for order in ((fast, slow), (slow, fast)):
        rows = [row for c in order for row in rows_of(c, fused_ms=3.0 if c is slow else 1.0)]
        assert measure_rows.choices(rows) == {"ms_dwconv": {"16": {"32": [[None, "compile"]]}}}
    chosen = measure_rows.choices(rows_of(fast))
    assert chosen == {"ms_dwconv": {"16": {"32": [[None, "triton"]]}}}


def test_auto_chooses_by_the_number_of_tokens_as_well() -> None:
    few, more, many = (Case("ms_dwconv", 32, torch.bfloat16, "ragged", (tokens, 0, 0)) for tokens in (1000, 2000, 8000))
    rows = rows_of(many) + rows_of(few, fused_ms=3.0) + rows_of(more, fused_ms=3.0)
    chosen = measure_rows.choices(rows)
    assert chosen == {"ms_dwconv": {"16": {"32": [[4000, "compile"], [None, "triton"]]}}}
    # This is the form in which the tile table is asked, also after it was written.
    table = tiles.load("interpreted") | {"choices": json.loads(json.dumps(chosen))}
    x = torch.zeros(0, dtype=torch.bfloat16)
    with tiles.using(table):
        assert [tiles.prefers_compile("ms_dwconv", x, 32, tokens) for tokens in (0, 4000, 4001, 10**6)] == [
            True, True, False, False
        ]  # fmt: skip
        assert tiles.varies("ms_dwconv", x, 32)
        assert not tiles.varies("ragged_pool_gate", x, 32)


def test_targets_are_missed_met_or_open() -> None:
    case = case_of("ms_dwconv")
    moved, _ = measure_rows.cost(case, "forward", tiles.load("interpreted"))
    at_90_percent = moved / (0.9 * RATES.copy) * 1e3
    rows = rows_of(case, fused_ms=at_90_percent, compile_ms=at_90_percent / 2)
    found = {t["name"].split(":")[0]: t for t in measure_rows.targets(rows, RATES)}
    assert found["ms_dwconv forward"]["value"] == pytest.approx(90)
    assert found["ms_dwconv forward"]["met"] is True
    assert found["fused, large streams"]["met"] is False
    assert found["fused, the model's shapes"]["met"] is None, "they were not timed"
    assert found["ragged_pool_gate forward"]["met"] is None


# Tuning; the times are invented.


def test_every_table_entry_is_tuned_and_every_candidate_is_an_entry() -> None:
    table = tiles.load("sm_90")["kernels"]
    assert {entry for entries in tune.ENTRIES.values() for entry in entries} == set(table)
    for entry, by_bits in table.items():
        for by_width in by_bits.values():
            for tile in by_width.values():
                candidates = tune.shapes(entry, tile)
                assert len(candidates) >= 5
                for candidate in candidates + tune.counts(tile):
                    assert set(candidate) == set(tile)
                    assert candidate != tile
                    assert all(n >= 1 for name, n in candidate.items() if name != "FLAT")


def test_tuning_keeps_the_fastest_correct_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("hier_gate_mix_norm")
    job = tune.Job("mix_norm_forward", case)
    table = tiles.load("interpreted")
    clock = {4: 9.0, 16: 10.0, 8: 5.0, 2: 9.9}
    used: list[int] = []
    plain = tune.launches

    def watch(*arguments: Any, **keywords: Any) -> Any:
        found = plain(*arguments, **keywords)
        used.append(found[-1][3]["BT"])
        return found

    monkeypatch.setattr(tune, "launches", watch)
    monkeypatch.setattr(tune, "stream_time", lambda call, ms: Timing(clock[used[-1]], 0.0, 0.0))
    monkeypatch.setattr(tune, "shapes", lambda entry, tile: [tile | {"BT": n} for n in (2, 4, 8, 0)])
    monkeypatch.setattr(tune, "counts", lambda tile: [])
    tuned, _, left = tune.tune_table(table, [job], seconds=60, workers=0, device="cpu", say=lambda line: None)
    assert tuned == table
    assert not left
    tuner = tune.Tuner(table, "cpu", timed=True)
    tuner.tune(job)
    assert job.lookup(tuner.table)["BT"] == 8
    assert tuner.table["kernels"]["mix_norm_forward"]["16"]["32"]["BT"] == 8
    # Other widths and the table it came from are as they were.
    assert tuner.table["kernels"]["mix_norm_forward"]["16"]["512"] == {"BT": 16, "programs": 3}
    assert "32" not in table["kernels"]["mix_norm_forward"]["16"]
    tried = {record["tile"]["BT"]: record for record in tuner.report[-1]["tried"]}
    assert "rejected" in tried[0]
    assert tried[2]["ms"] == 9.9
    assert tuner.report[-1]["before"] == {"BT": 16, "programs": 3}


def test_tuning_rejects_what_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    job = tune.Job("mix_norm_forward", case_of("hier_gate_mix_norm"))
    plain = egmf_kernels.hier_gate_mix_norm

    def wrong_in_small_tiles(x: torch.Tensor, *rest: Any, **keywords: Any) -> Any:
        mixed, alpha = plain(x, *rest, **keywords)
        small = tiles.lookup("mix_norm_forward", x, 32)["BT"] == 2
        return mixed * (1.1 if small else 1.0), alpha

    monkeypatch.setattr(egmf_kernels, "hier_gate_mix_norm", wrong_in_small_tiles)
    monkeypatch.setattr(tune, "shapes", lambda entry, tile: [tile | {"BT": 2}])
    monkeypatch.setattr(tune, "counts", lambda tile: [])
    tuner = tune.Tuner(tiles.load("interpreted"), "cpu", timed=False)
    tuner.tune(job)
    assert "away from the present tile's" in tuner.report[-1]["tried"][-1]["rejected"]


def test_no_time_no_tuning_and_it_says_so() -> None:
    job = tune.Job("norm_forward", case_of("gated_expert_mix"))
    table = tiles.load("interpreted")
    tuned, report, left = tune.tune_table(table, [job], seconds=0, workers=0, device="cpu")
    assert (tuned, report, left) == (table, [], ["norm_forward 16 bits d=32: out of time"])
