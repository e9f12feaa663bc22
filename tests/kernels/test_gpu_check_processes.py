"""`gpu_check.py`'s processes, whatever becomes of one of them, and the script of the first half hour."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_check_cases import LENGTHS, SCRIPT, case_of

from egmf_kernels.bench import cases, correct, measure, measure_case, processes
from egmf_kernels.bench.cases import Case


def children_of(process: int) -> list[int]:
    """Ids of its direct children."""
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_a_killed_measurement_leaves_what_it_had(tmp_path: Path) -> None:
    """Each case in a process of its own; the parent is killed after the first row. Nothing of it stays behind."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYTHONPATH")}
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--rehearse", "--workers", "1"]
    command += ["--operator", "hier_gate_mix_norm"]
    results = tmp_path / "results.json"
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        said = []
        for line in running.stdout:
            said.append(line)
            if "not timed" in line:
                break
        assert said[0].startswith("green "), "verdicts are said as they come"
        started = children_of(running.pid)
        running.kill()
        running.wait()
    found = json.loads(results.read_text())
    assert not found["complete"]
    assert not found["correct"]
    # The row was said just before it was written.
    assert len(found["correctness"]) == 3 + 1
    assert started
    until = time.monotonic() + 30
    while any(Path(f"/proc/{process}").exists() for process in started) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [process for process in started if Path(f"/proc/{process}").exists()]


@pytest.mark.parametrize("fault", ["exits", "raises"])
def test_a_case_that_breaks_its_process_costs_only_itself(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    good = case_of("hier_gate_mix_norm")
    bad = Breaks(good.operator, 32, torch.bfloat16, fault, LENGTHS)
    heard: list[tuple[str, str, Any]] = []
    running = measure_case.Cases(
        [measure_case.Task(case, "cpu", True) for case in (bad, good)],
        2,
        lambda c, k, v: heard.append((c.layout, k, v)),
    )
    running.prepare(time.monotonic() + 100)
    running.measure(None, time.monotonic() + 100)
    assert [(kind, value) for layout, kind, value in heard if layout == fault] == [
        ("fault", "its process ended with code 7" if fault == "exits" else "ValueError: no inputs")
    ]
    assert [kind for layout, kind, _ in heard if layout == "ragged"] == ["verdict", "ready", "rows", "launches"]


class Breaks(Case):
    """A case whose process ends or raises when it makes its inputs."""

    def make(self, device: torch.device | str, seed: int) -> cases.Inputs:
        if self.layout == "exits":
            os._exit(7)
        raise ValueError("no inputs")


def test_a_gate_that_could_not_finish_is_not_correct(tmp_path: Path) -> None:
    options = measure.Options(seconds=1e-6, rehearse=True, workers=0)
    summary = measure.measure_all(tmp_path, options, say=lambda line: None)
    assert not summary["correct"]
    assert any(line.startswith("not checked") for line in summary["left_out"])
    assert any(line.startswith("not measured") for line in summary["left_out"])


def test_each_task_has_its_own_process_and_fate() -> None:
    end = time.monotonic() + 60
    codes = processes.run_tasks(os._exit, [3], 1, end)
    assert codes[0].error == "its process ended with code 3"
    found = processes.run_tasks(float, ["4", "four"], 2, end)
    assert found[0] == processes.Outcome(4.0)
    assert found[1].error.startswith("ValueError: could not convert")
    late = processes.run_tasks(time.sleep, [50, 50], 1, time.monotonic() + 1)
    assert [o.error for o in late] == ["not finished: out of time", "not started: out of time"]


def test_the_gate_runs_in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    work = [correct.Group("hier_gate_mix_norm", 32, (torch.bfloat16,), "cpu", rehearse=True)]
    verdicts, missing = correct.run_gate(work, 1, 120, say=lambda line: None)
    assert not missing
    assert len(verdicts) == 3
    assert all(v.correct for v in verdicts)


# What a GPU machine runs, on the CPU and with invented clocks.


STAND_IN = """#!/bin/sh
echo "asked: $*"
case "$*" in
    *get_device_name*) [ "$1" = -c ] && echo "A TOY GPU/X" ;;
    *gpu_check.py*) if [ -n "$RED" ]; then echo "RED   a case"; exit 1; fi ;;
esac
"""


def first_gpu(folder: Path, *options: str, red: str = "") -> tuple[int, list[str]]:
    """Exit code, and the names of the scripts and modules that were run."""
    python = folder / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    command = ["sh", str(SCRIPT.with_name("first_gpu.sh")), "--out", str(folder / "out"), *options]
    environment = os.environ | {"PYTHON": str(python), "RED": red}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    asked = [line for line in done.stdout.splitlines() if line.startswith("asked: ")]
    return done.returncode, [line for line in asked if ".py" in line]


def test_the_first_half_hour_stops_where_the_gate_is_red(tmp_path: Path) -> None:
    code, asked = first_gpu(tmp_path, "--sanitize", "0", "--check", "100", "--step", "90", "--commit", "abc")
    assert code == 0
    assert [Path(line.split()[1]).name for line in asked] == ["gpu_check.py", "egmf_step.py"]
    assert asked[0].endswith("--seconds 100 --hammer --stop-if-red --commit abc")
    assert asked[1].endswith("--seconds 50")
    assert "gpu_check: exit code 0" in (tmp_path / "out" / "parts.log").read_text()
    code, asked = first_gpu(tmp_path, red="yes")
    assert code == 1
    assert len(asked) == 1, "no step after a red gate"
    assert "RED   a case" in (tmp_path / "out" / "gpu_check.log").read_text()
    code, asked = first_gpu(tmp_path, "--go-on", "--quick", "--sanitize", "0", "--tune", "9", red="yes")
    assert code == 1
    assert [Path(line.split()[1]).name for line in asked] == ["gpu_check.py", "egmf_step.py", "gpu_check.py"]
    assert "--hammer --quick --commit" in asked[0]
    assert first_gpu(tmp_path, "--check", "soon")[0] == 2
    assert first_gpu(tmp_path, "--chekc", "1")[0] == 2
