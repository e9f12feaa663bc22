"""A small run by DeepSpeed's launcher and a hostfile: train under Ray, be refused once, evaluate twice, draw."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from egmf_launcher.ray.environment import without_launcher_variables
from egmf_shards import synthesize

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
MARKER = "EGMF_TEST_STARTED_IN"


def call(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, in ``folder``, with this environment's programs first."""
    environ = without_launcher_variables(os.environ)
    environ["PATH"] = f"{BIN}{os.pathsep}{environ['PATH']}"
    environ["OMP_NUM_THREADS"] = "1"
    environ[MARKER] = str(folder)
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=400)


def started_in(folder: Path) -> list[str]:
    """Names of the processes that descend from a :func:`call` in ``folder`` and are still there: Ray's, at worst.

    They are known by a variable that every process inherits; Ray's daemons leave their parents and their folder.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.name())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_train_evaluate_report(tmp_path: Path, random_backbone: Path) -> None:
    synthesize(tmp_path / "shards", samples=60)
    settings = {
        "data": {"shards": ["shards"], "context_turns": 1},
        "backbone": {"path": str(random_backbone), "lora_rank": 4},
        "model": {"width": 32, "heads": 2},
        "training": {
            "steps": 6,
            "global_batch": 8,
            "micro_batch": 4,
            "warmup_steps": 1,
            "learning_rate": 5.0e-3,
            "precision": "fp32",
            "zero_stage": 3,
            "validate_every": 3,
            "checkpoint_every": 3,
            "log_every": 1,
        },
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    train = ["deepspeed", str(ROOT / "launcher" / "train.py"), "--hostfile", "hosts", "--config", "c.yaml"]
    run = tmp_path / "r"

    done = call([*train, "--run", "r"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "launch: Ray over 1 host, 2 workers - --hostfile hosts names localhost slots=2" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    for name in ("config.yaml", "manifest.json", "metrics.jsonl", "tensorboard", "checkpoints", "best"):
        assert (run / name).exists(), name
    assert not (run / ".ray").exists()
    assert list((run / "tensorboard").iterdir())
    assert read(run / "checkpoints" / "latest.json")["checkpoint"] == "step-0000006"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert records[0]["ranks"] == 2
    assert records[-1]["kind"] == "end"
    assert started_in(tmp_path) == []

    before = sorted(str(p) for p in tmp_path.rglob("*"))
    again = call([sys.executable, *train[1:], "--run", "r"], tmp_path)
    assert again.returncode == 2
    lines = again.stderr.splitlines()
    assert lines == [
        "launcher/train.py: error: run r exists; choose another name with --run, or go on with it: --resume auto"
    ]
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before

    evaluate = ["egmf", "evaluate", "r", "--split", "test"]
    done = call([*evaluate, "--workers", "2"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "emotion" in done.stdout
    under_ray, rows_under_ray = read(run / "evaluation" / "test.json"), predictions(run)
    done = call(evaluate, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    alone, rows_alone = read(run / "evaluation" / "test.json"), predictions(run)
    assert set(alone["tasks"]) == {"emotion", "sentiment"}
    # Batches are cut otherwise on two ranks than on one, so float sums may differ in the last bits.
    assert rows_under_ray.keys() == rows_alone.keys()
    for sample, row in rows_alone.items():
        assert rows_under_ray[sample]["probabilities"] == pytest.approx(row["probabilities"], abs=1e-4), sample
    for name, task in alone["tasks"].items():
        assert under_ray["tasks"][name]["n"] == task["n"] == 6
        assert under_ray["tasks"][name]["metrics"] == pytest.approx(task["metrics"], abs=1e-3), name
    assert started_in(tmp_path) == []

    done = call(["egmf", "report", "r"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    drawn = {path.name for path in (run / "report").glob("*.png")}
    assert {"training.png", "confusion-emotion-test.png", "scatter-sentiment-test.png"} <= drawn


def predictions(run: Path) -> dict[str, Any]:
    lines = (run / "evaluation" / "predictions-test.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def test_a_run_reads_its_shards_over_http(tmp_path: Path, random_backbone: Path) -> None:
    """These shards are smaller than one chunk, so a server that knows nothing of ranges will do."""
    pytest.importorskip("aiohttp", reason="reading over HTTP needs aiohttp, of the extra remote")
    synthesize(tmp_path / "web" / "shards", samples=60)
    handler = partial(QuietHandler, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        command = ["egmf", "train", "--run", "run", "--data.shards", f'["{url}/shards"]', "--data.workers", "1"]
        command += ["--data.cache_dir", "cache", "--backbone.path", str(random_backbone), "--model.width", "32"]
        command += ["--model.heads", "2", "--training.steps", "2", "--training.global_batch", "4"]
        command += ["--training.precision", "fp32", "--training.validation_samples", "4"]
        done = call(command, tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        missing = call([*command[:3], "other", *command[4:5], f'["{url}/nothing"]', *command[6:]], tmp_path)
        server.shutdown()
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["kind"] for r in records][-1] == "end"
    assert sum(f.stat().st_size for f in (tmp_path / "cache").rglob("*") if f.is_file()) > 0
    assert missing.returncode == 2
    assert "there is no such folder of shards" in missing.stderr
    assert len(missing.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "other").exists()


class QuietHandler(SimpleHTTPRequestHandler):
    """Says nothing of its requests."""

    def log_message(self, format: str, *arguments: object) -> None:
        pass
