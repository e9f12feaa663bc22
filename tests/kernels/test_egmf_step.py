"""The step that a GPU machine measures runs on the CPU at a tiny size, also where packages are stood in for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "kernels" / "benchmarks" / "egmf_step.py"
WITHOUT = """
import importlib.util, runpy, sys
find = importlib.util.find_spec
gone = ("jsonargparse", "orjson", "isal", "webdataset", "h5py")
importlib.util.find_spec = lambda name, *rest: None if name in gone else find(name, *rest)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_tiny_step_runs_every_stage(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", WITHOUT, str(SCRIPT), "--out", str(tmp_path), "--size", "tiny", "--batch", "3"]
    command += ["--width", "32"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "step.json").read_text())
    assert found["complete"]
    assert found["red"] == []
    assert "jsonargparse" in found["stood in for"]
    stages = found["stages"]
    assert list(stages) == [
        "built",
        *(f"{name} d=32" for name in ("agree", "attention", "repeats", "times", "waits", "profile")),
    ]
    assert stages["agree d=32"]["right"]
    assert stages["agree d=32"]["gradients"] > 40
    assert stages["repeats d=32"]["moved"] == 0
    assert stages["times d=32"]["reference"]["step"]["wall_ms"] > 0
    assert stages["profile d=32"]["top"]


def test_what_does_not_fit_the_time_is_named(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--size", "tiny", "--batch", "2"]
    command += ["--width", "32", "--seconds", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    found = json.loads((tmp_path / "step.json").read_text())
    assert found["stages"]["agree d=32"] == "left out: out of time"
