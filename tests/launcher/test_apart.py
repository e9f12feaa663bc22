"""`deepspeed launcher/train.py --hostfile hosts` told to stop: it saves, though DeepSpeed ends all that is below it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from run_records import steps_of

from egmf_dist.run.folder import Run
from egmf_dist.run.status import read_status
from egmf_launcher.ray.environment import without_launcher_variables
from egmf_shards import synthesize

BIN = Path(sys.executable).parent
SCRIPT = Path(__file__).parents[2] / "launcher" / "train.py"
FRONT = (
    "import sys; from egmf_launcher.apart import run_apart; sys.exit(run_apart([sys.executable, '-c', sys.argv[1]]))"
)
DRIVER = """
    import signal, sys, time
    from pathlib import Path
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    Path("driver").write_text(str(__import__("os").getpid()))
    time.sleep(60)
"""


def until(what: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def in_front(folder: Path, code: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FRONT, textwrap.dedent(code)]
    return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("raise SystemExit(7)", 7), ("pass", 0), ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137)],
)
def test_the_front_ends_as_its_driver(tmp_path: Path, code: str, exit_code: int) -> None:
    front = in_front(tmp_path, f"print('said')\n{code}")
    said, _ = front.communicate(timeout=60)
    assert front.returncode == exit_code
    assert said in ("said\n", "")  # a killed one may not have written it


@pytest.mark.parametrize("killed", [False, True], ids=["told", "killed"])
def test_the_driver_is_below_nobody_and_is_told(tmp_path: Path, killed: bool) -> None:
    front = in_front(tmp_path, DRIVER)
    try:
        until(lambda: (tmp_path / "driver").exists() and (tmp_path / "driver").read_text())
        driver = psutil.Process(int((tmp_path / "driver").read_text()))
        assert driver.pid not in [process.pid for process in psutil.Process(front.pid).children(recursive=True)]
        front.send_signal(signal.SIGKILL if killed else signal.SIGTERM)
        front.communicate(timeout=60)
        assert front.returncode == (-signal.SIGKILL if killed else 75)
        until(lambda: not driver.is_running() or driver.status() == psutil.STATUS_ZOMBIE, 20)
    finally:
        front.kill()


SAVES = """
    import os, signal, sys, time
    from pathlib import Path
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1) or Path("told").write_text(str(len(told))))
    Path("driver").write_text(str(os.getpid()))
    while not Path("saved").exists():
        time.sleep(0.02)
    Path("ended").write_text(str(len(told)))
"""


def test_a_driver_that_saves_is_not_told_again_when_the_front_is_killed(tmp_path: Path) -> None:
    """DeepSpeed's launcher kills the front 30 s after SIGTERM; a second one ends the driver's workers at once."""
    front = in_front(tmp_path, SAVES)
    try:
        until(lambda: (tmp_path / "driver").exists() and (tmp_path / "driver").read_text())
        keeper = psutil.Process(int((tmp_path / "driver").read_text())).parent()
        assert keeper is not None
        front.send_signal(signal.SIGTERM)
        until(lambda: (tmp_path / "told").exists() and (tmp_path / "told").read_text())
        front.kill()
        front.wait(60)  # its output stays open: the driver has it, too
        until(lambda: keeper.num_threads() == 1, 20)  # the end of the front has been seen and answered
        time.sleep(0.2)
    finally:
        front.kill()
        (tmp_path / "saved").touch()
    until(lambda: (tmp_path / "ended").exists() and (tmp_path / "ended").read_text())
    assert (tmp_path / "ended").read_text() == "1"


@pytest.mark.distributed
def test_deepspeed_with_a_hostfile_of_ours_is_told_to_stop(tmp_path: Path, random_backbone: Path) -> None:
    """As a queue does it, to every process of the job: what DeepSpeed's launcher ends is not what saves."""
    synthesize(tmp_path / "data", samples=60)
    training = {"steps": 100000, "global_batch": 4, "micro_batch": 2, "warmup_steps": 1, "precision": "fp32"}
    training |= {"log_every": 1, "validate_every": 1000, "validation_samples": 4, "checkpoint_every": 1000}
    settings = {
        "data": {"shards": ["data"], "context_turns": 1},
        "backbone": {"path": str(random_backbone), "lora_rank": 4},
        "model": {"width": 32, "heads": 2},
        "training": training,
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    run = Run(tmp_path / "run")
    command = [str(BIN / "deepspeed"), str(SCRIPT), "--hostfile", "hosts", "--config", "c.yaml", "--run", "run"]
    environ = without_launcher_variables(os.environ)
    environ |= {"PATH": f"{BIN}{os.pathsep}{environ['PATH']}", "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "wb") as log:
        job = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: run.metrics.is_file() and len(steps_of(run)) >= 3, 240)
        os.killpg(job.pid, signal.SIGTERM)
        job.wait(60)
        until(lambda: not run.lock.exists(), 60)
    finally:
        job.kill()
        said = (tmp_path / "log").read_text()
        print(said[-3000:])
    status = read_status(run)
    assert status.resume.possible
    assert status.resume.step == max(steps_of(run)) >= 3
    assert f"stopped after step {status.resume.step}; go on with: --run run --resume auto" in said
    assert not run.ray.exists()
    assert not run.stop.exists()
    until(lambda: not list(tmp_path.glob("run/checkpoints/.*")), 10)
