"""Commands, environments and files that launching stands on, without starting ranks."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace

from egmf_dist import jobs
from egmf_dist.config import AllSettings, LaunchConfig
from egmf_dist.errors import EgmfError, MachineError
from egmf_launcher import network
from egmf_launcher.arguments import RANK_OPTIONS, without_options
from egmf_launcher.decide import Decision
from egmf_launcher.demo import run_state
from egmf_launcher.errors import WorkerFailedError, one_line
from egmf_launcher.follow import LineFollower, following
from egmf_launcher.hostfile import Host
from egmf_launcher.launch import deepspeed_command, launch_job, without_launch_options
from egmf_launcher.memory import MemorySampler
from egmf_launcher.network import is_this_machine
from egmf_launcher.ray.cluster import last_words, split_hosts, ssh_command
from egmf_launcher.ray.environment import ray_environment
from egmf_launcher.ray.running import without_the_jobs
from egmf_launcher.ray.train import _complaint, root_cause
from egmf_shards.errors import UnreachableError


def test_deepspeed_command_has_no_hostfile_of_ours() -> None:
    arguments = ["train", "--hostfile", "hosts", "--launcher=deepspeed", "--run", "runs/a b", "--local_rank", "0"]
    command = deepspeed_command([Host("localhost", 2)], "hosts", arguments)
    assert command[1:] == [
        *("--hostfile", "hosts", "--no_ssh_check", "--master_addr", "127.0.0.1"),
        *("--module", "egmf_launcher.cli", "train", "--run", "runs/a b"),
    ]
    assert deepspeed_command([Host("localhost", 3)], None, ["train"])[1:3] == ["--num_gpus", "3"]


@pytest.mark.parametrize("argument", ["runs/a;reboot", "$(reboot)", "a b", "`x`", "a|b", "a>b", "a\nb", "~/x", "*"])
def test_arguments_for_other_machines_shells_are_refused(argument: str) -> None:
    with pytest.raises(EgmfError, match="shells of other machines"):
        deepspeed_command([Host("a", 1), Host("b", 1)], "hosts", ["train", "--run", argument])


def test_ssh_command_is_one_quoted_word_after_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "a b; reboot")
    monkeypatch.setenv("SECRET_OF_MINE", "x")
    monkeypatch.setenv("HF_TOKEN", "x")
    command = ssh_command(Host("node-2", 4), "10.0.0.1:6379", 8, "egmf_host_1")
    assert command[-3:-1] == ["--", "node-2"]
    words = shlex.split(command[-1])
    assert "NCCL_DEBUG=a b; reboot" in words
    assert not any("SECRET" in word or "TOKEN" in word for word in words)
    assert json.loads(words[-3].partition("=")[2]) == {"egmf_slot": 4, "egmf_host_1": 1}
    assert words[-2:] == ["--cpus=8", f"--folder={os.getcwd()}"]


def test_a_host_without_the_folder_does_not_join(tmp_path: Path) -> None:
    """Its workers would end the job: a host that came back, whose file system is not mounted yet. It is asked again."""
    words = ["--address=127.0.0.1:1", "--resources={}", "--cpus=1", f"--folder={tmp_path / 'none'}"]
    command = [sys.executable, "-m", "egmf_launcher.ray.node", *words]
    node = subprocess.run(command, input="token\n", capture_output=True, text=True, timeout=60)
    assert node.returncode == 1
    assert re.fullmatch(rf"host \S+ has no folder {tmp_path}/none; every machine must see .*\n", node.stderr)
    ended = subprocess.Popen(["sh", "-c", "echo one >&2; echo two >&2; exit 1"], stderr=subprocess.PIPE)
    ended.wait()
    assert last_words(ended) == "two"
    with subprocess.Popen(["sh", "-c", "sleep 60 & exit 1"], stderr=subprocess.PIPE, start_new_session=True) as held:
        held.wait()
        assert last_words(held) == "exit code 1"  # something else still holds its output
        os.killpg(held.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("master", "address", "listens"),
    [
        ("10.0.0.7", "10.0.0.9", "eth5"),
        ("node-1", "10.0.0.9", "eth5"),
        ("127.0.0.1", "10.0.0.9", None),
        ("::1", "10.0.0.9", None),
        ("localhost", "10.0.0.9", None),
        ("", "10.0.0.9", None),
        ("node-1", network.LOOPBACK, None),
        ("node-1", "10.0.0.10", None),
    ],
)
def test_ranks_that_others_start_listen_where_the_master_is(
    master: str, address: str, listens: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(network, "address_towards", lambda other: asked.append(other) or address)
    monkeypatch.setattr(network, "interface_of", lambda own: {"10.0.0.9": "eth5", network.LOOPBACK: "lo"}.get(own))
    monkeypatch.setattr(jobs, "do", lambda job, console: {"listens": os.environ.get("GLOO_SOCKET_IFNAME")})
    for name in ("GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "DS_ACCELERATOR"):
        monkeypatch.setenv(name, "mine")  # put back afterwards
    monkeypatch.setenv("MASTER_ADDR", master)
    decision = Decision("rank", "")
    assert launch_job(decision, None, LaunchConfig())["listens"] == "mine"  # type: ignore[arg-type]
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    assert launch_job(decision, None, LaunchConfig())["listens"] == listens  # type: ignore[arg-type]
    assert set(asked) <= {master}


def test_what_a_submitted_job_says_of_its_environment_is_not_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses to merge what both name; what it merges is what was given and what is ours."""
    from ray._private.worker import _merge_runtime_env

    monkeypatch.delenv("RAY_OVERRIDE_JOB_RUNTIME_ENV", raising=False)
    own = {"env_vars": {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "1"}, "worker_process_setup_hook": "a.b"}
    theirs = {"env_vars": {"NCCL_DEBUG": "INFO", "MINE": "x"}, "working_dir": "gcs://d"}
    assert _merge_runtime_env(theirs, own) is None
    left = without_the_jobs(own, json.dumps({"runtime_env": theirs}))
    assert _merge_runtime_env(theirs, left) == {
        "env_vars": {"NCCL_DEBUG": "INFO", "MINE": "x", "OMP_NUM_THREADS": "1"},
        "worker_process_setup_hook": "a.b",
        "working_dir": "gcs://d",
    }
    hooked = {"runtime_env": {"worker_process_setup_hook": "c.d"}}
    assert without_the_jobs(own, json.dumps(hooked)) == {"env_vars": own["env_vars"]}
    for none in ("", "{}", '{"runtime_env": null}', '{"runtime_env": {"env_vars": null}}'):
        assert without_the_jobs(own, none) == own


def test_this_machine_must_be_there_once() -> None:
    here, others = split_hosts([Host("a.invalid", 2), Host("localhost", 1)])
    assert (here.name, [host.name for host in others]) == ("localhost", ["a.invalid"])
    with pytest.raises(EgmfError, match=r"is not among a\.invalid; add it"):
        split_hosts([Host("a.invalid", 2)])
    with pytest.raises(EgmfError, match="both this machine"):
        split_hosts([Host("localhost", 2), Host("127.0.0.1", 2)])


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("::1", True),
        (os.uname().nodename, True),
        ("me@localhost", True),
        ("a.invalid", False),
        ("203.0.113.7", False),
    ],
)
def test_is_this_machine(name: str, here: bool) -> None:
    assert is_this_machine(name) is here


def test_ray_environment_is_scrubbed_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "TORCHELASTIC_RUN_ID": "x", "MASTER_PORT": "1", "KEEP_ME": "y"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    before = dict(os.environ)
    with ray_environment({"EXTRA": "1"}):
        assert not {"RANK", "TORCHELASTIC_RUN_ID", "MASTER_PORT"} & set(os.environ)
        assert os.environ["KEEP_ME"] == "y"
        assert os.environ["EXTRA"] == "1"
        assert os.environ["OMP_NUM_THREADS"] == "4"  # the user's own wish
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert dict(os.environ) == before


def test_options_are_taken_out_with_their_values() -> None:
    assert without_options(["--local_rank=0", "train", "--local-rank", "1", "--run", "x"], RANK_OPTIONS) == [
        "train",
        "--run",
        "x",
    ]
    assert without_launch_options(["train", "--workers=2", "--hostfile", "h", "--run", "x"]) == ["train", "--run", "x"]
    line = ["train", "--hostfile", "h", "--training.steps", "5", "--run=x", "--model.width=32"]
    given = AllSettings.from_options(Namespace(), line)
    assert given.overrides == ["--training.steps", "5", "--model.width=32"]


def append(path: Path, *records: Any) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def test_follower_waits_for_whole_lines_and_survives_a_rewrite(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, {"step": 1}, {"step": 2}, {"step": 3})
    follower = LineFollower(path)
    assert list(follower.new_records()) == []  # what was there before is not shown again
    with path.open("a") as file:
        file.write('{"step": 4')
    assert list(follower.new_records()) == []
    with path.open("a") as file:
        file.write("}\n")
    assert list(follower.new_records()) == [{"step": 4}]
    rewrite(path, {"step": 1})  # a resumed run drops what came after its checkpoint
    assert list(follower.new_records()) == []
    resumed = [{"kind": "start", "time": "9:00", "step": 1}, {"step": 2, "again": True}]
    append(path, *resumed)
    assert list(follower.new_records()) == resumed
    # Twice in a row from the same step: the first of the two starts stays in the file and was shown.
    rewrite(path, {"step": 1}, resumed[0])
    assert list(follower.new_records()) == []
    again = [{"kind": "start", "time": "9:01", "step": 1}, *({"step": step} for step in range(2, 9))]
    append(path, *again)
    assert list(follower.new_records()) == again
    rewrite(path, {"step": 1}, resumed[0], *again, {"kind": "start", "time": "9:02", "step": 8}, {"step": 9})
    assert list(follower.new_records()) == [{"kind": "start", "time": "9:02", "step": 8}, {"step": 9}]


def rewrite(path: Path, *records: Any) -> None:
    """As a resumed run does: another file under the name, seen whole or not at all."""
    append(path.with_suffix(".new"), *records)
    path.with_suffix(".new").rename(path)


def test_following_shows_the_last_record(tmp_path: Path) -> None:
    shown: list[dict[str, Any]] = []
    with following(tmp_path / "metrics.jsonl", shown.append):
        append(tmp_path / "metrics.jsonl", {"step": 1}, {"kind": "end"})
    assert shown == [{"step": 1}, {"kind": "end"}]


class GroupError(Exception):
    """As Ray's WorkerGroupError: failures by rank."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("long\ntraceback")
        self.worker_failures = failures


def test_unwrap_prefers_the_users_error_then_the_cause(tmp_path: Path) -> None:
    echo = RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
    complaint = EgmfError("model.width is 17")
    assert root_cause(GroupError({0: echo, 1: complaint}), tmp_path) is complaint
    failure = root_cause(GroupError({0: echo, 1: KeyError("x")}), tmp_path)
    assert isinstance(failure, WorkerFailedError)
    assert str(failure).startswith("rank 1 failed: KeyError: 'x'; ")
    assert str(tmp_path) in str(failure)
    assert "rank 0 failed" in str(root_cause(GroupError({0: echo}), tmp_path))
    # What ends a job without a restart is a user's error alone.
    for machines in (MachineError("a loader process died"), UnreachableError("the store does not answer")):
        assert _complaint({0: machines}) is None
        failure = root_cause(GroupError({0: echo, 1: machines}), tmp_path)
        assert isinstance(failure, WorkerFailedError)
        assert str(failure).startswith(f"rank 1 failed: {machines}; ")
    assert "\n" not in one_line(root_cause(RuntimeError("a\nb"), tmp_path))


def test_run_state(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_state(run) == "absent"
    run.mkdir()
    assert run_state(run) == "interrupted"
    append(run / "metrics.jsonl", {"kind": "start"}, {"kind": "train", "step": 1})
    assert run_state(run) == "interrupted"
    append(run / "metrics.jsonl", {"kind": "end"})
    assert run_state(run) == "complete"
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')  # cut short by a kill
    assert run_state(run) == "complete"
    append(run / "metrics.jsonl", {}, {"kind": "start"})
    assert run_state(run) == "interrupted"


def test_memory_sampler_counts_a_child() -> None:
    import subprocess
    import sys

    script = "x = bytearray(200 * 2**20); print('ready', flush=True); input()"
    with MemorySampler() as memory:
        alone = memory.peak_bytes
        child = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        until = time.monotonic() + 120
        while memory.peak_bytes < 200 * 2**20 and time.monotonic() < until:
            time.sleep(0.05)
        child.communicate("\n")
    assert memory.peak_bytes >= 200 * 2**20
    assert alone < memory.peak_bytes


def test_chosen_slots_reach_deepspeeds_launcher() -> None:
    """As one --include, whichever of the two options was given."""
    hosts = [Host("a", 2), Host("b", 1, (3,))]
    given = ["train", "--hostfile", "hosts", "--exclude=b:0,1,2", "--launcher", "deepspeed", "--run", "x"]
    command = deepspeed_command(hosts, "hosts", given)
    assert command[1:] == [
        *("--hostfile", "hosts", "--include", "a:0,1@b:3"),
        *("--module", "egmf_launcher.cli", "train", "--run", "x"),
    ]
    assert "--include" not in deepspeed_command(hosts[:1], "hosts", ["train", "--hostfile", "hosts"])
