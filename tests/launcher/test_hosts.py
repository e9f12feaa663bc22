"""Three hosts with slots of 2, 1 and 1: `deepspeed launcher/train.py --hostfile hosts`, `deepspeed --hostfile hosts`, a
cluster that is there, a loss.

The hosts are network namespaces of this machine (``tests/helpers/hosts.py``), so these tests need root. What takes
minutes runs with ``EGMF_FAULTS=all`` (``make faults``).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hosts
import pytest
import yaml
from run_records import losses, steps_of

from egmf_dist.run.folder import Run
from egmf_dist.run.records import read_records
from egmf_launcher.ray.environment import without_launcher_variables
from egmf_shards import synthesize

pytestmark = pytest.mark.distributed

BIN = Path(sys.executable).parent
SCRIPT = Path(__file__).parents[2] / "launcher" / "train.py"
SLOTS = (2, 1, 1)
STEPS = ("--training.steps", "2000")
"""More than will be done."""
ALL = os.environ.get("EGMF_FAULTS") == "all"
WHY_NOT = hosts.missing()
slow = pytest.mark.skipif(not ALL, reason="takes minutes: EGMF_FAULTS=all (make faults) runs it")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, random_backbone: Path) -> Path:
    """A folder that all hosts see, with ``data`` and ``c.yaml``: fp32, no dropout, so that losses can be compared."""
    folder = tmp_path_factory.mktemp("place")
    synthesize(folder / "data", samples=60)
    training = {"steps": 6, "global_batch": 8, "micro_batch": 2, "warmup_steps": 1, "precision": "fp32"}
    training |= {"log_every": 1, "validate_every": 100_000, "validation_samples": 4, "checkpoint_every": 5}
    settings = {
        "data": {"shards": ["data"], "context_turns": 1},
        "backbone": {"path": str(random_backbone), "lora_rank": 4, "lora_dropout": 0.0},
        "model": {"width": 32, "heads": 2, "dropout": 0.0},
        "training": training,
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="module")
def three(place: Path) -> Iterator[list[hosts.SmallHost]]:
    """Three hosts, named in ``hosts`` of the place."""
    if WHY_NOT:
        pytest.skip(f"no hosts can be made here: {WHY_NOT}")
    with hosts.small_hosts(3, place) as made:
        lines = [f"{host.name} slots={slots}\n" for host, slots in zip(made, SLOTS, strict=True)]
        (place / "hosts").write_text("".join(lines))
        yield made


def environ(**more: str) -> dict[str, str]:
    kept = without_launcher_variables(os.environ)
    return kept | {"PATH": f"{BIN}{os.pathsep}{kept['PATH']}:/usr/sbin:/sbin"} | more


def train(host: hosts.SmallHost, place: Path, command: list[Any], **more: str) -> str:
    """Run a training's command to its good end; what it printed."""
    ways = [] if "--config" in command else ["--config", "c.yaml"]
    done = host.run([*map(str, command), *ways], cwd=place, env=environ(**more), timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def hosts_of(run: Run) -> list[str]:
    return list(json.loads((run.folder / "manifest.json").read_text())["hosts"])


def test_deepspeed_starts_the_driver(place: Path, three: list[hosts.SmallHost]) -> None:
    said = train(three[0], place, [BIN / "deepspeed", SCRIPT, "--hostfile", "hosts", "--run", "card"])
    assert "launch: Ray over 3 hosts, 4 workers - --hostfile hosts names " in said
    run, names = Run(place / "card"), [host.name for host in three]
    assert steps_of(run) == [1, 2, 3, 4, 5, 6]
    assert sorted(hosts_of(run)) == sorted([names[0], *names])
    if ALL:
        said = train(
            three[0], place, [BIN / "deepspeed", "--hostfile", "hosts", SCRIPT, "--run", "pdsh"], PDSH_RCMD_TYPE="ssh"
        )
        assert "this process is a rank already started" in said
        same(losses(place / "pdsh"), losses(run.folder))


def test_a_cluster_that_is_there(place: Path, three: list[hosts.SmallHost]) -> None:
    """Made by ``ray start``, found by RAY_ADDRESS and by --ray-address; it lives on."""
    address = f"{three[0].address}:6379"
    with contextlib.ExitStack() as stack:
        for number, host in enumerate(three if ALL else three[:1]):
            own = ["--head", "--port=6379", "--include-dashboard=false"] if number == 0 else [f"--address={address}"]
            command = [BIN / "ray", "start", "--block", f"--node-ip-address={host.address}", "--num-cpus=2"]
            command += [f"--temp-dir=/tmp/{host.name}", "--disable-usage-stats", *own]
            log = stack.enter_context(open(place / f"ray-{number}.log", "wb"))
            node = host.popen([*map(str, command)], env=environ(), stdout=log, stderr=log)
            stack.callback(node.kill)
            until = time.monotonic() + 60
            while b"Ray runtime started" not in (place / f"ray-{number}.log").read_bytes():
                assert time.monotonic() < until
                assert node.poll() is None
                time.sleep(0.2)
        workers = ["--workers", "4" if ALL else "2"]
        said = train(three[0], place, [BIN / "egmf", "train", "--run", "found", *workers], RAY_ADDRESS=address)
        assert f"launch: the Ray cluster at {address}, {workers[1]} workers - RAY_ADDRESS is set" in said
        assert steps_of(Run(place / "found")) == [1, 2, 3, 4, 5, 6]
        again = ["--run", "again", "--ray-address", address, *workers]
        if ALL:
            said = train(three[0], place, [BIN / "egmf", "train", *again])
            assert f"launch: the Ray cluster at {address}, 4 workers - --ray-address" in said
            assert len(set(hosts_of(Run(place / "again")))) > 1
            same(losses(place / "again"), losses(place / "found"))
    gone = three[0].run(
        [str(BIN / "egmf"), "train", "--config", "c.yaml", "--run", "none", "--ray-address", "127.0.0.1:1", *workers],
        cwd=place, env=environ(), timeout=60,
    )  # fmt: skip
    assert gone.returncode != 0
    assert gone.stderr.splitlines()[-1].startswith("egmf: error: Ray cluster at 127.0.0.1:1: ")
    assert not (place / "none").exists()


def wait_for(what: Callable[[], Any], process: subprocess.Popen[bytes], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.3)


@slow
@pytest.mark.parametrize("loss", ["killed", "unplugged"])
def test_a_lost_host_is_gone_on_without_and_a_returned_one_is_used(
    place: Path, three: list[hosts.SmallHost], loss: str
) -> None:
    """4 ranks, then 3, then 4: the same global batches as one rank, losses within 1e-6 for 30 steps after each."""
    run, alone = Run(place / loss), Run(place / f"alone-{loss}")
    command = [BIN / "deepspeed", SCRIPT, "--hostfile", "hosts", "--config", "c.yaml", "--run", loss]
    command += [*STEPS, "--launch.max_failures", "9", "--launch.min_workers", "2"]
    with open(place / f"{loss}.log", "wb") as log:
        training = three[0].popen([*map(str, command)], cwd=place, env=environ(), stdout=log, stderr=log)
    try:
        wait_for(lambda: len(steps_of(run)) > 8, training, 150)
        three[2].kill() if loss == "killed" else three[2].link(up=False)
        wait_for(lambda: ranks_of(run)[1:] == [3], training, 200)
        wait_for(lambda: len(steps_of(run)) > starts_of(run)[1] + 31, training, 120)
        three[2].serve() if loss == "killed" else three[2].link(up=True)
        wait_for(lambda: ranks_of(run)[2:] == [4], training, 240)
        wait_for(lambda: len(steps_of(run)) > starts_of(run)[2] + 31, training, 120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(training.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            training.wait(60)
        training.kill()
        print((place / f"{loss}.log").read_text()[-3000:])
    found = losses(run.folder)
    command = [BIN / "egmf", "train", "--config", "c.yaml", "--run", alone.folder, *STEPS]
    with open(place / "alone.log", "wb") as log:
        training = three[0].popen([*map(str, command)], cwd=place, env=environ(), stdout=log, stderr=log)
    try:
        wait_for(lambda: len(steps_of(alone)) >= len(found), training, 300)
    finally:
        training.kill()
    assert positions_of(run) == positions_of(alone)[: len(found)]
    same(found, losses(alone.folder)[: len(found)])


@slow
def test_the_host_that_drives_is_lost(place: Path, three: list[hosts.SmallHost]) -> None:
    """With the driver and Ray's head on it: what ran on the others ends by itself, and the same command on one of them,
    without the lost host in its hostfile, goes on with the same batches and losses."""
    run, whole = Run(place / "driven"), Run(place / "driven-whole")
    settings = yaml.safe_load((place / "c.yaml").read_text())
    settings["training"] |= {"steps": 24, "checkpoint_every": 5}
    (place / "driven.yaml").write_text(yaml.safe_dump(settings))
    ways = ["--config", "driven.yaml"]
    command = [BIN / "deepspeed", SCRIPT, "--hostfile", "hosts", "--run", "driven", *ways]
    with open(place / "driven.log", "wb") as log:
        training = three[0].popen([*map(str, command)], cwd=place, env=environ(), stdout=log, stderr=log)
    try:
        wait_for(lambda: len(steps_of(run)) > 8, training, 150)
        three[0].kill()
        training.wait(30)
        until = time.monotonic() + 120
        while rays := [found for host in three[1:] for found in rays_of(host)]:
            assert time.monotonic() < until, rays
            time.sleep(0.5)
    finally:
        training.kill()
        print((place / "driven.log").read_text()[-3000:])
        three[0].serve()
    (place / "rest").write_text("".join(f"{host.name} slots=1\n" for host in three[1:]))
    train(
        three[1],
        place,
        [BIN / "deepspeed", SCRIPT, "--hostfile", "rest", "--run", "driven", "--resume", "auto", *ways],
    )
    train(three[1], place, [BIN / "egmf", "train", "--run", whole.folder, *ways])
    assert ranks_of(run) == [4, 2]
    assert positions_of(run) == positions_of(whole)
    same(losses(run.folder), losses(whole.folder))


@slow
def test_a_link_that_is_cut_for_five_seconds(place: Path, three: list[hosts.SmallHost]) -> None:
    """Nothing is started again, and the run is what it would have been."""
    command = [BIN / "deepspeed", SCRIPT, "--hostfile", "hosts", "--config", "c.yaml", "--run", "cut"]
    command += ["--training.steps", "40"]
    with open(place / "cut.log", "wb") as log:
        training = three[0].popen([*map(str, command)], cwd=place, env=environ(), stdout=log, stderr=log)
    run = Run(place / "cut")
    try:
        wait_for(lambda: len(steps_of(run)) > 8, training, 150)
        three[1].link(up=False)
        before = len(steps_of(run))
        time.sleep(5)
        assert len(steps_of(run)) <= before + 1
        three[1].link(up=True)
        assert training.wait(120) == 0
    finally:
        three[1].link(up=True)
        training.kill()
        print((place / "cut.log").read_text()[-3000:])
    assert ranks_of(run) == [4]
    same(losses(run.folder)[:2], losses(place / "card")[:2])  # later steps have other learning rates
    assert steps_of(run) == list(range(1, 41))


def same(ours: list[tuple[int, float, float]], theirs: list[tuple[int, float, float]]) -> None:
    """Steps and losses; sums in another order are other sums in their last digits."""
    assert len(ours) == len(theirs)
    for (step, loss, _), (other_step, other_loss, _) in zip(ours, theirs, strict=True):
        assert step == other_step
        assert loss == pytest.approx(other_loss, rel=1e-6), step


def rays_of(host: hosts.SmallHost) -> list[str]:
    """Commands of Ray's that run on a host."""
    pids = subprocess.run(["ip", "netns", "pids", host.space], capture_output=True, text=True, check=True).stdout
    said = []
    for pid in pids.split():
        with contextlib.suppress(OSError):
            said.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
    return [command for command in said if "ray" in command]


def positions_of(run: Run) -> list[int]:
    return [r["position"] for r in read_records(run.metrics) if r["kind"] == "train"]


def starts_of(run: Run) -> list[int]:
    return [r["step"] for r in read_records(run.metrics) if r["kind"] == "start"]


def ranks_of(run: Run) -> list[int]:
    return [r["ranks"] for r in read_records(run.metrics) if r["kind"] == "start"]
