"""What may happen to a run: a second start, an evaluation beside it, deaths, damage, a move; by the real commands."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from run_records import steps_of
from safetensors.torch import load_file, save_file

from egmf_dist.config import load_config
from egmf_dist.run.folder import Run
from egmf_dist.run.records import read_records
from egmf_dist.run.status import read_status
from egmf_launcher.cli import main
from egmf_launcher.ray.environment import without_launcher_variables
from egmf_shards import synthesize

pytestmark = pytest.mark.distributed

BIN = Path(sys.executable).parent
FAILS_ONCE_IN_STEP_3 = """
    import os, signal
    from egmf_dist.jobs import TrainJob
    from egmf_dist.training import loop

    class FailingJob(TrainJob):
        def __call__(self, console):
            flag, real = self.run.parent / "failed", loop.train_step

            def train_step(*arguments):
                if not flag.exists():
                    train_step.calls += 1
                    if train_step.calls == 1:  # resumed after step 2: this is step 3
                        flag.touch()
                        os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments)

            train_step.calls = 0
            loop.train_step = train_step
            return super().__call__(console)
"""
COMPLAINS_IN_STEP_2 = """
    from egmf_dist.errors import EgmfError
    from egmf_dist.jobs import TrainJob
    from egmf_dist.training import loop

    class FailingJob(TrainJob):
        def __call__(self, console):
            real, calls = loop.train_step, []

            def train_step(*arguments):
                calls.append(1)
                if len(calls) == 2:
                    raise EgmfError("data: the second batch is odd")
                return real(*arguments)

            loop.train_step = train_step
            return super().__call__(console)
"""
WITH_THAT_JOB = """
    import sys
    from egmf_launcher import train
    from egmf_launcher.cli import main
    from failing_job import FailingJob
    train.TrainJob = FailingJob
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, random_backbone: Path) -> Path:
    """A folder with ``data``, ``model``, ``c.yaml``, and the run ``done``: six steps, with checkpoints 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("place")
    synthesize(folder / "data", samples=60)
    shutil.copytree(random_backbone, folder / "model")
    training = {"steps": 6, "global_batch": 4, "micro_batch": 2, "warmup_steps": 1, "precision": "fp32", "log_every": 1}
    training |= {"validate_every": 2, "validation_samples": 4, "checkpoint_every": 2, "keep_checkpoints": 3}
    settings = {
        "data": {"shards": ["data"], "context_turns": 1},
        "backbone": {"path": "model", "lora_rank": 4},
        "model": {"width": 32, "heads": 2},
        "training": training,
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(settings))
    done = call([*train("done")], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def train(run: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "egmf_launcher.cli", "train", "--config", "c.yaml", "--run", run, *options]


def environ(**more: str) -> dict[str, str]:
    kept = without_launcher_variables(os.environ)
    return kept | {"PATH": f"{BIN}{os.pathsep}{kept['PATH']}", "OMP_NUM_THREADS": "1"} | more


def call(command: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=environ(**more), capture_output=True, text=True, timeout=300)


def wait_for(what: Callable[[], Any], process: subprocess.Popen[bytes], seconds: float = 240) -> Any:
    """Poll until ``what`` gives something true; the process must live on meanwhile."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert process.poll() is None
        found = what()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come")


def latest(run: Run) -> int:
    return int(json.loads(run.latest.read_text())["checkpoint"].removeprefix("step-")) if run.latest.is_file() else 0


def command_of(process: psutil.Process) -> str:
    """Empty for one that has ended meanwhile: other children of Ray come and go."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def test_a_run_shows_how_it_stands(place: Path) -> None:
    status = read_status(Run(place / "done"))
    assert (status.state, status.step, status.steps, status.logged_step) == ("finished", 6, 6, 6)
    kept = [(kept.step, kept.ranks, kept.sound) for kept in status.checkpoints]
    assert kept == [(2, 1, True), (4, 1, True), (6, 1, True)]
    assert status.best is not None
    assert (status.best.sound, status.best.selected_by) == (True, "valid mean of weighted_f1 and corr over tasks")
    assert (status.resume.possible, status.resume.step) == (True, 6)


def test_a_training_is_not_disturbed_and_survives_a_worker(place: Path) -> None:
    """While it trains: a second start is refused, an evaluation under Ray runs, a worker is killed; Ctrl-C saves."""
    run = Run(place / "busy")
    forever = ["--training.steps", "100000", "--training.checkpoint_every", "5", "--training.validate_every", "5"]
    command = train("busy", "--workers", "2", "--launch.max_failures", "1", *forever)
    with open(place / "busy.log", "wb") as log:
        training = subprocess.Popen(
            command, cwd=place, env=environ(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            # A shell's background job would have it ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    try:
        wait_for(lambda: latest(run) and run.best.is_file(), training)
        second = call(train("busy", "--workers", "2", *forever, "--resume", "auto"), place)
        assert second.returncode == 2
        (line,) = second.stderr.splitlines()
        who = f"run busy: process {training.pid} on host {socket.gethostname()} (since "
        assert line.startswith(f"egmf: error: {who}")
        assert "is training it; wait for it or stop it" in line

        before = latest(run)
        evaluation = call(["egmf", "evaluate", "busy", "--split", "valid", "--workers", "2"], place)
        assert evaluation.returncode == 0, evaluation.stdout + evaluation.stderr
        assert run.evaluation("valid").is_file()
        assert training.poll() is None
        assert [path.name.partition("-")[0] for path in run.ray.iterdir()] == ["train"]

        newest = wait_for(lambda: latest(run) > before and latest(run), training)
        below = psutil.Process(training.pid).children(recursive=True)
        workers = [p for p in below if "RayTrainWorker" in command_of(p)]
        assert len(workers) == 2
        workers[0].kill()
        # It goes on from its newest checkpoint, not from its first step.
        resumed = wait_for(lambda: steps_of(run, "start")[1:], training)[0]
        assert resumed >= newest
        wait_for(lambda: latest(run) > resumed, training)
        steps = steps_of(run, "train")
        assert steps == list(range(1, len(steps) + 1))
        assert steps_of(run, "start") == [0, resumed]
        saved, done = latest(run), max(steps_of(run, "train"))
        training.send_signal(signal.SIGINT)
        assert training.wait(60) == 75
    finally:
        training.kill()
        said = (place / "busy.log").read_text()
        print(said[-3000:])
    # It saved first, and a second start goes on from there.
    end = latest(run)
    assert end >= done
    assert end > saved or done == saved
    assert said.splitlines()[-1] == f"stopped after step {end}; go on with: --run busy --resume auto"
    assert f"training ended after step {end}: told to stop by SIGINT" in said
    assert not run.lock.exists()
    assert not run.stop.exists()
    assert not run.ray.exists()


def test_a_restart_keeps_to_the_checkpoint_it_was_told(place: Path) -> None:
    """Resumed from 2 of 6, it dies in step 3 and is started again: from 2, not from the 6 that was given up."""
    shutil.copytree(place / "done", place / "back")
    run = Run(place / "back")
    (place / "failing_job.py").write_text(textwrap.dedent(FAILS_ONCE_IN_STEP_3))
    line = train("back", "--resume", "back/checkpoints/step-0000002", "--launcher", "ray", "--launch.max_failures", "1")
    command = [sys.executable, "-c", textwrap.dedent(WITH_THAT_JOB), *line[3:]]
    path = os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])])
    # A marker as an earlier version left behind when its driver was killed.
    (run.ray / "started").mkdir(parents=True)
    done = call(command, place, PYTHONPATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (place / "failed").exists()
    assert steps_of(run, "start") == [0, 2, 2]
    assert steps_of(run, "train") == [1, 2, 3, 4, 5, 6]
    assert latest(run) == 6
    old, new = (json.loads((place / name / "checkpoints" / "latest.json").read_text()) for name in ("done", "back"))
    assert old["launch"] != new["launch"]


def test_a_users_error_is_not_tried_again(place: Path) -> None:
    """Three restarts are allowed; what a worker says of the data is the same after each."""
    (place / "complaining_job.py").write_text(textwrap.dedent(COMPLAINS_IN_STEP_2))
    line = train("complains", "--launcher", "ray", "--launch.max_failures", "3", "--training.steps", "4")
    code = textwrap.dedent(WITH_THAT_JOB).replace("failing_job", "complaining_job")
    path = os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = call([sys.executable, "-c", code, *line[3:]], place, PYTHONPATH=path)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "egmf: error: data: the second batch is odd")
    assert steps_of(Run(place / "complains"), "start") == [0]


def test_damaged_and_moved(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The newest checkpoint is cut short, data and model move: found where the hash is the same, and all of it said."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    run, was = Run(tmp_path / "run"), tmp_path / "was"
    shutil.copytree(place / "done", run.folder)
    was.mkdir()
    for name in ("data", "model"):
        shutil.copytree(place / name, was / name)
    settings = run.config.read_text().replace(f"directory: {place}", f"directory: {was}")
    assert str(was) in settings
    run.config.write_text(settings)
    evaluate = ["evaluate", "run", "--split", "valid"]

    # Relative paths, from a folder in which they lead nowhere.
    done = call(["egmf", *evaluate], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

    was.rename(tmp_path / "now")
    synthesize(tmp_path / "other", seed=1, samples=60)
    shutil.copytree(tmp_path / "now" / "model", tmp_path / "changed")
    (tmp_path / "changed" / "generation_config.json").write_text("{}")
    shutil.copy(place / "c.yaml", tmp_path)
    data, model = ["--data.shards", "[now/data]"], ["--backbone.path", "now/model"]
    resume = ["train", "--config", "c.yaml", "--run", "run", "--resume", "auto", "--training.steps", "7"]
    resume += ["--training.micro_batch", "4"]
    before = run.config.read_text()
    for line, says in (
        (evaluate, "its shards, 'data' when it was trained, cannot be found (looked in"),
        ([*evaluate, *data], "its backbone, 'model' when it was trained, cannot be found (looked in"),
        ([*evaluate, *model, "--data.shards", "[other]"], "the shards in data.shards changed: other data than"),
        ([*evaluate, *data, "--backbone.path", "changed"], "the backbone in backbone.path changed: another model"),
        ([*evaluate, *data, *model, "--split", "tset"], "'tset'"),
        ([*evaluate, *data, *model, "--evaluation.batch_size", "0"], "evaluation.batch_size is 0"),
        ([*evaluate, *data, "--backbone.path", "nowhere"], "--backbone.path nowhere is no folder that holds the backb"),
        ([*evaluate, *data, *model, "--remove", "smell"], "modality 'smell' does not exist"),
        ([*evaluate, *data, *model, "--remove", "audio", "--robustness"], "--remove beside --robustness: that takes"),
        (resume, "its backbone, 'model' when it was trained, cannot be found (looked in"),
        ([*resume, *model], "data.shards names data, which holds no manifest.json"),
        ([*resume, *model, "--data.shards", "[other]"], "the shards in data.shards changed: other data than"),
        ([*resume, *data, "--backbone.path", "./changed"], "the backbone in backbone.path changed: another model"),
    ):
        assert main(line) == 2
        error = capsys.readouterr().err
        assert error.startswith("egmf: error: ")
        assert says in error
        assert error.count("\n") == 1
    assert run.config.read_text() == before

    way = ["--evaluation.scoring", "sequence", "--evaluation.batch_size", "5"]
    done = call(["egmf", *evaluate, *data, *model, *way], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(run.evaluation("valid").read_text())["scoring"] == "sequence"

    cut = next(path for path in run.checkpoint(6).rglob("*") if path.suffix == ".safetensors")
    cut.write_bytes(cut.read_bytes()[:100])
    done = call(["egmf", *resume, *data, *model], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning: checkpoint step-0000006 was passed over: " in done.stdout
    assert f"{cut.name} is damaged" in done.stdout
    assert "changed: training.steps was 6 and is now 7" in done.stdout
    records = read_records(run.metrics)
    (start,) = (r for r in records if r["kind"] == "start" and r["step"])
    assert start["step"] == 4
    assert start["changed"] == {
        "data.shards": [["data"], ["now/data"]],
        "backbone.path": ["model", "now/model"],
        "training.steps": [6, 7],
        "training.micro_batch": [2, 4],
    }
    assert any("step-0000006 was passed over" in r["message"] for r in records if r["kind"] == "warning")
    assert steps_of(run, "train") == [1, 2, 3, 4, 5, 6, 7]
    assert load_config(run.config).training.steps == 7
    assert f"directory: {tmp_path}" in run.config.read_text()


def test_what_fails_before_step_1_does_not_use_up_the_runs_name(place: Path) -> None:
    """Weights that are not finite are found by the first scores, and the second start is told the same."""
    shutil.copytree(place / "model", place / "nan")
    path = place / "nan" / "model.safetensors"
    weights = load_file(path)
    next(iter(weights.values())).fill_(float("nan"))
    save_file(weights, path, {"format": "pt"})
    for _ in range(2):
        done = call(train("fresh", "--backbone.path", "nan"), place)
        assert done.returncode == 2
        assert "nothing is trained yet, so the weights of the qwen2 backbone are not finite" in done.stderr
        assert not (place / "fresh").exists()
