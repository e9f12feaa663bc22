"""SIGKILL at a random moment to a random process of a training: it ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from run_records import steps_of

from egmf_dist.run.checkpoints import read_record
from egmf_dist.run.folder import Run
from egmf_dist.run.records import read_records
from egmf_launcher.ray.environment import without_launcher_variables
from egmf_shards import synthesize

pytestmark = pytest.mark.distributed

STEPS = 48
SEEDS = {"soak": range(20), "all": [0, 1, 2, 5]}.get(os.environ.get("EGMF_FAULTS", ""), [2])
"""Which process dies and when follows from the seed; with 2 a worker dies while a checkpoint is written.
`make faults` has one of each kind, `make soak` twenty. EGMF_KILLS=FILE notes each one's seconds until the next step."""
VICTIMS = ("worker", "loader", "raylet", "driver")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, random_backbone: Path) -> Path:
    """A folder with ``data``, ``c.yaml`` and the run ``whole``, which nothing disturbed; dropout is on."""
    folder = tmp_path_factory.mktemp("kills")
    synthesize(folder / "data", samples=60)
    training = {"steps": STEPS, "global_batch": 4, "micro_batch": 2, "warmup_steps": 1, "precision": "fp32"}
    training |= {"log_every": 1, "validate_every": 16, "validation_samples": 4, "checkpoint_every": 3}
    settings = {
        "data": {"shards": ["data"], "context_turns": 1, "workers": 1},
        "backbone": {"path": str(random_backbone), "lora_rank": 4},
        "model": {"width": 32, "heads": 2, "dropout": 0.1},
        "training": training,
        "launch": {"max_failures": 2},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(settings))
    with open(folder / "whole.log", "wb") as log:
        assert start(folder, "whole", log).wait(240) == 0, (folder / "whole.log").read_text()
    return folder


def start(folder: Path, run: str, log: Any) -> subprocess.Popen[bytes]:
    environ = without_launcher_variables(os.environ)
    command = [sys.executable, "-m", "egmf_launcher.cli", "train", "--config", "c.yaml", "--run", run]
    command += ["--workers", "2", "--resume", "auto"]
    return subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log, start_new_session=True)


def outcome(run: Run) -> dict[str, Any]:
    """All that must not differ: batches, losses and gradient norms of every step, scores, weights and moments."""
    kinds = {"train": ("step", "position", "loss", "grad_norm", "lr"), "valid": ("step", "score", "best")}
    lines = {(r["kind"], r["step"]): r for r in read_records(run.metrics) if r["kind"] in kinds}
    newest = max(run.saved_checkpoints())
    return {
        "records": [[kind, *(r[name] for name in kinds[kind])] for (kind, _), r in sorted(lines.items())],
        "step": newest,
        "weights": read_record(run.checkpoint(newest)).sha256,
        "best": json.loads(run.best.read_text())["adapter"],
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_a_kill_at_a_random_moment(place: Path, seed: int) -> None:
    chance = random.Random(seed)
    victim, when, while_saving = chance.choice(VICTIMS), chance.randrange(1, STEPS - 1), chance.random() < 0.5
    pause = chance.uniform(0.0, 0.3)
    name = f"killed-{seed}"
    run, log_path = Run(place / name), place / f"{name}.log"
    killed, recovered, starts = 0.0, 0.0, 0
    with open(log_path, "wb") as log:
        training = start(place, name, log)
        try:
            until = time.monotonic() + 200
            while time.monotonic() < until:
                time.sleep(0.02)
                if not killed and len(steps_of(run)) >= when and (not while_saving or saving(run)):
                    time.sleep(0 if while_saving else pause)
                    before = len(steps_of(run))
                    kill(training, victim, chance)
                    killed = time.monotonic()
                if killed and not recovered and len(steps_of(run)) > before + 1:
                    recovered = time.monotonic()
                code = training.poll()
                if code == 0:
                    break
                if code is not None:  # the driver, or what it cannot do without: the same command again
                    starts += 1
                    assert starts < 3
                    training = start(place, name, log)
        finally:
            with_children = [*psutil.Process(training.pid).children(recursive=True)] if training.poll() is None else []
            training.kill()
            for process in with_children:
                process.kill()
            print(f"{victim} at step {when}{' in a save' if while_saving else ''}: {starts} more starts")
            print(log_path.read_text()[-3000:])
    assert killed
    assert training.returncode == 0
    assert outcome(run) == outcome(Run(place / "whole"))
    assert "was passed over" not in log_path.read_text()  # no torn checkpoint was ever in force
    after = recovered - killed if recovered else 0.0
    print(f"seed {seed}: {victim} killed, {after:.1f} s until the next step")
    if os.environ.get("EGMF_KILLS"):
        with open(os.environ["EGMF_KILLS"], "a", encoding="utf-8") as file:
            figures = {"seed": seed, "victim": victim, "step": before, "in a save": while_saving}
            file.write(json.dumps(figures | {"seconds": round(after, 1), "more starts": starts}) + "\n")


def saving(run: Run) -> bool:
    """A checkpoint is being written."""
    return run.checkpoints.is_dir() and any(path.name.startswith(".") for path in run.checkpoints.iterdir())


def command_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def kill(training: subprocess.Popen[bytes], victim: str, chance: random.Random) -> None:
    if victim == "driver":
        os.kill(training.pid, signal.SIGKILL)
        return
    below = psutil.Process(training.pid).children(recursive=True)
    named = [process for process in below if "RayTrainWorker" in command_of(process)]
    workers = [process for process in named if process.parent() not in named]  # a forked loader has the same name
    found = {
        "worker": workers,
        "loader": [child for worker in workers for child in worker.children()],
        "raylet": [process for process in below if "raylet/raylet" in command_of(process)],
    }[victim]
    assert found, f"no {victim} is there"
    chance.choice(sorted(found, key=lambda process: process.pid)).kill()
