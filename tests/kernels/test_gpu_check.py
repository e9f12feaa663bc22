"""The benchmark that a GPU machine runs: rehearsed here, its gate tried on broken kernels.

No figure of these tests is a measurement: where a time is needed it is invented.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from gpu_check_cases import LENGTHS, SCRIPT, case_of

import egmf_kernels
from egmf_kernels import tiles
from egmf_kernels.bench import correct, measure, measure_case, measure_rows, measure_time, report
from egmf_kernels.bench.cases import OPERATORS, Case
from egmf_kernels.bench.measure_time import Memory, Rates, Timing
from egmf_kernels.tools import tune

RATES = Rates(copy=3e12, matmul=8e14, matmul_projection=7e14)


def test_a_rehearsal_runs_everything_and_times_nothing(tmp_path: Path) -> None:
    out = tmp_path / "found"
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYTHONPATH")}
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--rehearse", "--hammer", "--tune", "--commit", "abc"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.strip().endswith("all correct")
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["kind"], summary["label"], summary["commit"]) == ("rehearsal", measure_case.UNTIMED, "abc")
    assert summary["correct"]
    assert summary["complete"]
    assert not summary["left_out"]
    assert {row["operator"] for row in summary["rows"]} == set(OPERATORS)
    assert {row["implementation"] for row in summary["rows"]} == {"eager", "compile", "fused", "padded"}
    invented = ("ms", "gb_per_s", "tflops", "percent_of_roofline", "speedup_over_eager", "speedup_over_compile")
    assert all(row[key] is None for row in summary["rows"] for key in invented)
    assert all(target["met"] is None for target in summary["targets"])
    detail = json.loads((out / "results.json").read_text())
    # Three gate cases an operator; the block's three at the model's shape and on a stream, the pooling padded as well,
    # the other two on a stream.
    assert len(detail["correctness"]) == 3 * len(OPERATORS) + 2 * 3 + 1 + 2
    assert detail["hammer"][0]["operator"] == "gated_tri_proj"
    assert all(found["equal"] and found["correct"] for found in detail["hammer"])
    assert len(detail["launches"]) == 2 * 3 + 1 + 2
    assert all(one["us"] is None and one["grid"] for found in detail["launches"] for one in found["launches"])
    assert all(verdict["correct"] for verdict in detail["correctness"])
    assert all("ms" in tried and tried["ms"] is None for job in detail["tuning"] for tried in job["tried"])
    assert all(job["before"] == job["after"] for job in detail["tuning"])
    with (out / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(summary["rows"])
    table = json.loads((out / "interpreted.json").read_text())
    assert table["kernels"] == tiles.load("interpreted")["kernels"]
    assert table["hammer"] == {"triton": triton.__version__, "runs": 2, "equal": True}
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["summary.json", "results.json", "results.csv", "interpreted.json"]
    )


def scaled(out: torch.Tensor) -> torch.Tensor:
    return out * 1.02


def never_written(out: torch.Tensor) -> torch.Tensor:
    return out + out.new_empty(out.shape)


def different_each_time(out: torch.Tensor) -> torch.Tensor:
    return out + 1e-3 * torch.rand_like(out)


def raises(out: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("illegal memory access")


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (scaled, "output 2."),
        (never_written, "output nan > "),
        (different_each_time, "differs between two runs"),
        (raises, "RuntimeError: illegal memory access"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_broken_kernel_is_red(monkeypatch: pytest.MonkeyPatch, fault: Any, complaint: str) -> None:
    plain = egmf_kernels.hier_gate_mix_norm
    monkeypatch.setattr(correct.Group, "cases", lambda self: [case_of("hier_gate_mix_norm")])
    group = correct.Group("hier_gate_mix_norm", 32, (torch.bfloat16,), "cpu")
    (before,) = correct.check_group(group)
    assert before.correct

    def mix(*arguments: Any, **keywords: Any) -> Any:
        out, alpha = plain(*arguments, **keywords)
        return fault(out), alpha

    monkeypatch.setattr(egmf_kernels, "hier_gate_mix_norm", mix)
    (verdict,) = correct.check_group(group)
    assert not verdict.correct
    assert complaint in verdict.line()
    assert verdict.line().startswith("RED")


def test_a_wrong_gradient_alone_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = egmf_kernels.ms_dwconv

    def convolve(x: torch.Tensor, *rest: Any, **keywords: Any) -> torch.Tensor:
        out: torch.Tensor = plain(x, *rest, **keywords)
        return out + (x - x.detach()) * 0.1

    monkeypatch.setattr(egmf_kernels, "ms_dwconv", convolve)
    case = case_of("ms_dwconv")
    verdict = correct.check(case, case.make("cpu", 0))
    assert [text.split()[:2] for text in verdict.complaints] == [["d", "x"]]


def test_a_kernel_twice_as_inexact_as_eager_in_fp32_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = egmf_kernels.hier_gate_mix_norm
    case = Case("hier_gate_mix_norm", 32, torch.float32, "ragged", LENGTHS)
    assert correct.check(case, case.make("cpu", 0)).correct

    def mix(*arguments: Any, **keywords: Any) -> Any:
        out, alpha = plain(*arguments, **keywords)
        # Far below the limit of 5e-6, far above what fp32 costs.
        return out * (1 + 2e-6), alpha

    monkeypatch.setattr(egmf_kernels, "hier_gate_mix_norm", mix)
    verdict = correct.check(case, case.make("cpu", 0))
    assert [text.split()[:2] for text in verdict.complaints] == [["all", "together"]]


def test_a_few_roundings_in_fp32_are_green_where_eager_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager's own error is set to nothing, as it happens with few tokens."""
    plain, measured = egmf_kernels.ms_dwconv, correct.error
    case = Case("ms_dwconv", 32, torch.float32, "ragged", LENGTHS)
    inputs = case.make("cpu", 0)

    def verdict(by: float) -> correct.Verdict:
        monkeypatch.setattr(egmf_kernels, "ms_dwconv", lambda *a, **k: plain(*a, **k) * (1 + by))
        eager = correct.results(case.eager(), inputs)

        def error(found: torch.Tensor, exact: torch.Tensor) -> float:
            lucky = any(torch.equal(found, t) for t in eager.values() if t.shape == found.shape)
            return 0.0 if lucky else measured(found, exact)

        monkeypatch.setattr(correct, "error", error)
        return correct.check(case, inputs)

    assert verdict(2.4e-7).correct
    assert [text.split()[:2] for text in verdict(1.2e-6).complaints] == [["all", "together"]]


def test_a_broken_kernel_fails_the_command(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = egmf_kernels.hier_gate_mix_norm

    def mix(*arguments: Any, **keywords: Any) -> Any:
        out, alpha = plain(*arguments, **keywords)
        return out * 1.05, alpha

    command = ["--out", str(tmp_path), "--rehearse", "--operator", "hier_gate_mix_norm"]
    assert script.main(command) == 0
    assert "all correct" in capsys.readouterr().out
    monkeypatch.setattr(egmf_kernels, "hier_gate_mix_norm", mix)
    assert script.main(command) == 1
    printed = capsys.readouterr().out
    assert "RED   hier_gate_mix_norm" in printed
    assert printed.strip().endswith("NOT ALL CORRECT")
    assert not json.loads((tmp_path / "summary.json").read_text())["correct"]
    assert script.main([*command, "--stop-if-red"]) == 1
    stopped = json.loads((tmp_path / "summary.json").read_text())
    assert not stopped["rows"]
    assert not stopped["complete"]
    assert stopped["left_out"] == ["not measured: the gate is red or did not come to its end"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["--out", "DIR"], "no CUDA device"),
        (["--out", "FILE", "--rehearse"], "must be a folder"),
        (["--out", "DIR", "--seconds", "0"], "--seconds must be above 0"),
        (["--out", "DIR", "--workers", "-1"], "--workers at least 0"),
        (["--out", "DIR", "--operator", "gelu"], "--operator gelu: must be one of ragged_pool_gate"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    script: Any, command: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "file").write_text("")
    places = {"DIR": str(tmp_path / "dir"), "FILE": str(tmp_path / "file")}
    assert script.main([places.get(word, word) for word in command]) == 2
    found = capsys.readouterr().err
    assert said in found
    assert found.count("\n") == 1
    assert not (tmp_path / "dir").exists()


def test_the_tuning_command_needs_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["tune", "--out", str(tmp_path / "t.json")])
    assert tune.main() == 2
    monkeypatch.setattr(sys, "argv", ["tune", "--out", str(tmp_path / "nowhere" / "t.json")])
    assert tune.main() == 2
    lines = capsys.readouterr().err.splitlines()
    assert [("no CUDA device" in lines[0]), ("does not exist" in lines[1]), len(lines)] == [True, True, 2]


def test_a_rehearsal_outside_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("egmf_kernels.ops.common.interpreter.INTERPRETED", False)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        measure.measure_all(tmp_path, measure.Options(rehearse=True))


def test_allocations_are_poisoned_only_inside() -> None:
    like = torch.zeros(3, dtype=torch.bfloat16)
    with correct.poisoned():
        assert bool(like.new_empty(64).isnan().all())
        assert bool(torch.empty(64).isnan().all())
    assert not torch.are_deterministic_algorithms_enabled()


def test_errors_never_hide() -> None:
    one, zero, nan = torch.ones(3).double(), torch.zeros(3).double(), torch.full((3,), float("nan")).double()
    assert correct.error(one, one) == 0
    assert correct.error(zero, zero) == 0
    assert correct.error(one, zero) == float("inf")
    for found, exact in ((nan, one), (nan, zero)):
        assert not correct.error(found, exact) <= 1.0
    assert not correct.Verdict("nothing", "compared").correct


# Tasks in processes of their own.


def test_a_whole_measurement_with_invented_clocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = measure.Plan("cpu", 1536, (32,), ((32, 36, 3),), (32,), (torch.bfloat16,), 0, False)
    monkeypatch.setattr(measure.Plan, "segment", 2)
    monkeypatch.setattr(measure, "plan", lambda options: plan)
    monkeypatch.setattr(measure, "measure_rates", lambda: RATES)
    monkeypatch.setattr(measure_case, "memory", lambda run, inputs: Memory(2.0, 1.0))
    monkeypatch.setattr(tune, "capability_here", lambda: 90)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *a: "an invented GPU")
    for name in ("RAGGED", "FEW"):
        monkeypatch.setattr(correct, name, correct.TINY)
    monkeypatch.setattr(Case, "compiled", lambda self, backend="": self.eager())
    clocks = {"eager": 8.0, "compile": 2.0, "fused": 3.0, "padded": 9.0}

    def invented(calls: dict[str, Callable[[], Any]], *rest: Any) -> tuple[str, dict[str, Timing]]:
        for call in calls.values():
            call()
        return "invented", {
            key: Timing(clocks[key.split()[0]] * (3 if key.endswith("both") else 1), 1.0, 1.0) for key in calls
        }

    monkeypatch.setattr(measure_case, "timings", invented)
    monkeypatch.setattr(measure_case, "launch_times", lambda run, inputs, timed: [])
    options = measure.Options(operators=("ragged_pool_gate",))
    summary = measure.measure_all(tmp_path, options, say=lambda line: None)
    assert summary["correct"], summary["red"] + summary["left_out"]
    assert (summary["kind"], summary["label"]) == ("measured", "measured on an invented GPU")
    assert summary["ceilings"]["copy"] == RATES.copy
    assert summary["choices"] == {"ragged_pool_gate": {"16": {"32": [[None, "compile"]]}}}
    assert {(row["tokens"], row["batch"], row["shape"]) for row in summary["rows"]} == {
        (24, 4, "stream"), (36, 3, "model")
    }  # fmt: skip
    found = {t["name"].split(":")[0]: t["met"] for t in summary["targets"]}
    assert found["fused, the model's shapes"] is False
    assert found["fused, large streams"] is False
    table = json.loads((tmp_path / "sm_90.json").read_text())
    assert table["choices"] == summary["choices"]
    assert table["architecture"] == "sm_90"
    lines = measure_rows.short_table(json.loads((tmp_path / "summary.json").read_text()))
    assert any("ragged_pool_gate" in line and "x2.67 eager x0.67 compile" in line for line in lines)
    assert measure_time.COPY_BYTES >= 256 << 20
    step = {
        "times d=128": {"triton": {"fuse": {"wall_ms": 1.5, "host_ms": 1.25, "peak_mib": 7.0}}},
        "repeats d=128": {"moved": 1, "of": 9, "outside the language model": ["encoders.<place>"]},
        "waits d=128": {"waits": 1, "where": {"encoders.py:63": 1}},
        "profile d=128": "left out: out of time",
    }
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "step.json").write_text(json.dumps({"stages": step}))
    assert report.main([str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "all correct" in page
    assert "width 32, 36 tokens, 3 samples" in page
    assert "9000.0 padded" in page
    assert "encoders.&lt;place&gt;" in page
    assert "out of time" in page


def test_a_report_of_nothing_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("no report of ")


# The first half hour as a script; its Python is a stand-in that says what it was asked for.
