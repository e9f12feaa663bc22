"""``egmf bench kernels``: the predicted report, whole; with a GPU (played here), what it does with the result."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from egmf_kernels.bench import measure, static_roofline
from egmf_launcher.cli import main

PREDICTED = "predicted, not measured"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("bench", "bench_verb"),
        ("bench kernels", "out"),
        ("bench kernels --out o --trace", "--trace needs a CUDA device"),
        ("bench kernels --out o --arch 12", "--arch is '12'; there are tile tables for 80, 90"),
        ("bench kernels --out file", "--out file: File exists"),
        ("bench kernels --out measured", "measured/summary.json: holds what a GPU measured"),
        ("bench kernels --out foreign", "foreign/summary.json: not a report of egmf bench kernels"),
    ],
)
def test_a_mistake_is_one_line(
    line: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    for name, text in (("measured", '{"kind": "measured"}'), ("foreign", "[]")):
        Path(name).mkdir()
        Path(name, "summary.json").write_text(text)
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert says in said
    assert not Path("o").exists()


def test_without_a_gpu_the_report_is_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["bench", "kernels", "--out", str(tmp_path), "--quick"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "mine.txt",
        "summary.json",
        "results.csv",
        "passes.png",
        "bounds.png",
    }
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["kind"], summary["label"]) == ("predicted", PREDICTED)
    with (tmp_path / "results.csv").open() as file:
        assert {row["label"] for row in csv.DictReader(file)} == {PREDICTED}
    titles = [line for line in capsys.readouterr().out.splitlines() if line.startswith(PREDICTED)]
    assert len(titles) == 6  # five tables and the last line
    # Counted in a process that interprets; compiled in one that does not.
    assert len(summary["requests"]) == 10
    for row in summary["requests"]:
        assert row["counted_bytes"] == row["formula_bytes"] > 0
    compiled = {row["kernel"] for row in summary["resources"]}
    assert {"ms_dwconv_backward", "mix_norm_forward", "gated_tri_proj_forward", "norm_backward"} <= compiled
    assert {(row["architecture"], row["width"], row["bits"]) for row in summary["resources"]} == {(90, 512, 16)}
    assert all(row["complaints"] == [] and row["spills"] == 0 for row in summary["resources"])
    assert all(0 < row["kernels_percent"] < row["block_percent"] < 1 for row in summary["step_share"])


def measured_summary(correct: bool) -> dict[str, Any]:
    rows = [
        {
            "operator": operator,
            "width": 512,
            "dtype": "bfloat16",
            "layout": "ragged",
            "direction": direction,
            "implementation": implementation,
            "correct": correct,
            "ms": 1.0 if implementation == "fused" else 3.0,
            "percent_of_roofline": 80.0,
            "tokens": 65536,
            "batch": 128,
        }
        for operator in static_roofline.BLOCK
        for direction in ("forward", "backward", "both")
        for implementation in ("eager", "compile", "fused")
    ]
    return {
        "kind": "measured",
        "label": "measured on a toy GPU",
        "machine": "Linux, a toy GPU",
        "correct": correct,
        "ceilings": {"copy": 3e12, "matmul": 6e14},
        "rows": rows,
        "targets": [{"name": "copy", "target": ">= 85 %", "value": 80.0, "met": False}],
    }


@pytest.mark.parametrize("correct", [True, False])
def test_with_a_gpu_it_measures(
    correct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def measure_all(out: Path, options: measure.Options, say: Any) -> dict[str, Any]:
        say("measuring [K1]")
        asked.update(options=options, out=out)
        return measured_summary(correct)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(measure, "measure_all", measure_all)
    (tmp_path / "summary.json").write_text('{"kind": "measured"}')  # measuring again may replace it
    assert main(["bench", "kernels", "--out", str(tmp_path), "--trace"]) == (0 if correct else 1)
    assert asked == {"out": tmp_path, "options": measure.Options(seconds=480.0, trace=True)}
    assert {path.name for path in tmp_path.glob("*.png")} == {"times.png", "roofline.png"}
    printed = capsys.readouterr().out
    assert "measuring [K1]" in printed
    assert "measured on a toy GPU: targets" in printed
    assert "kernels %" in printed  # the step share stands beside the figures
    assert main(["bench", "kernels", "--out", str(tmp_path), "--arch", "90"]) == 2
    assert "--arch chooses what the predicted report compiles" in capsys.readouterr().err
