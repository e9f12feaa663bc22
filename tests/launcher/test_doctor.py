"""``egmf doctor``: each check by itself on fabricated facts, the probe and the all-reduce for real, hosts by a stand-in
for ssh that runs the command here, or does what an ill host does."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hosts
import psutil
import pytest
import yaml

from egmf_dist.config import BackboneConfig, Config, DataConfig, LoggingConfig
from egmf_launcher.cli import main
from egmf_launcher.doctor import cluster, collective, facts, machine, storage, table
from egmf_launcher.doctor.packages import our_packages
from egmf_launcher.doctor.rows import Case, Check, Facts, Row, rows_of
from egmf_launcher.doctor.table import CHECKS
from egmf_launcher.hostfile import Host
from egmf_launcher.ray.environment import without_launcher_variables
from egmf_shards import synthesize

FAKE_SSH = """#!{python}
import os, subprocess, sys, time
host, command = sys.argv[sys.argv.index("--") + 1:][:2]
with open({log!r}, "a") as log:
    log.write(repr(sys.argv[1:]) + "\\n")
if host.startswith("refuses"):
    sys.exit(print(host + ": Permission denied (publickey).", file=sys.stderr) or 255)
if host.startswith("hangs"):
    time.sleep(600)
if host.startswith("bare"):
    command = command.replace(sys.executable, "/nowhere/python")
given = None
if host.startswith("elsewhere") and command.endswith("-P -"):  # its folders of that name are its own
    given = sys.stdin.buffer.read().replace({here!r}.encode(), {there!r}.encode())
print("Welcome to", host, flush=True)
sys.exit(subprocess.run(["sh", "-c", command], input=given).returncode)
"""

Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in on PATH; gives the file that every command is noted in."""
    program, log = tmp_path / "bin" / "ssh", tmp_path / "ssh.log"
    program.parent.mkdir()
    here, there = str(tmp_path / "shared"), str(tmp_path / "own")
    program.write_text(FAKE_SSH.format(python=sys.executable, log=str(log), here=here, there=there))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("RANK", "WORLD_SIZE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return log


def judged(rows: Iterable[Row]) -> dict[str, tuple[str, str]]:
    """Status and finding of each host; of several of one host the worst."""
    order = ("skipped", "ok", "warning", "bad")
    found: dict[str, tuple[str, str]] = {}
    for row in rows:
        if row.host not in found or order.index(row.status) > order.index(found[row.host][0]):
            found[row.host] = (row.status, f"{row.found} {row.advice}")
    return found


def case(here: dict[str, Any], other: dict[str, Any] | Facts, config: Config | None = None) -> Case:
    """This machine and another, as their probes might have answered."""
    hosts = (Host("localhost", 1), Host("other.invalid", 2))
    said = {"localhost": Facts(here), "other.invalid": other if isinstance(other, Facts) else Facts(other)}
    return Case(hosts, True, config, Path("runs"), said)


def device(error: str | None = None) -> dict[str, Any]:
    return {"name": "H100", "mib": 81920.0, "error": error}


def torch_with(*devices: dict[str, Any], cuda: str | None = "12.8") -> dict[str, Any]:
    return {"version": "2.13.0", "cuda": cuda, "devices": list(devices), "available": bool(devices)}


SMI = {"driver": "570.1", "name": "H100", "mib": 81920.0, "used_mib": 0.0}
LIMITS = {"files": 65536, "most_files": 65536, "shm": 2**34, "shm_free": 2**34, "cores": 8, "omp": None}
RUN = {"place": "/r", "there": True, "free": 2**40, "read": "t", "write_error": None}
RIGHT = dict.fromkeys(("torch", "ray"), "2.0")
SHARDS = {"/d": {"sha256": "a", "shards": 3, "bytes": 9}}
MODEL = {"there": True, "sizes": {"config.json": 3, "model.safetensors": 9}, "config": "a", "unreadable": []}
SOURCE = {"egmf_dist": {"sha256": "a", "place": "/x/egmf_dist"}}
ROWS: list[tuple[Callable[[Case], Iterable[Row]], str, Any, Any, str, str]] = [
    (machine.python, "python", {"version": "3.11.7"}, {"version": "3.11.7"}, "ok", ""),
    (machine.python, "python", {"version": "3.11.7"}, {"version": "3.12.1"}, "bad", "3.11.7 on localhost"),
    (machine.python, "python", {"version": "3.11.7"}, {"version": "3.9.1"}, "bad", ">=3.11"),
    (machine.source, "source", SOURCE, SOURCE, "ok", "the same code"),
    (machine.source, "source", SOURCE, {"egmf_dist": {"sha256": "b", "place": "/y"}}, "bad", "another egmf_dist in /y"),
    (machine.source, "source", SOURCE, {"egmf_dist": None}, "bad", "cannot be imported"),
    (machine.open_files, "limits", LIMITS, LIMITS, "ok", "65,536"),
    (machine.open_files, "limits", LIMITS, LIMITS | {"files": 1024}, "warning", "ulimit -n 65536"),
    (machine.open_files, "limits", LIMITS, LIMITS | {"files": 64}, "bad", "64"),
    (machine.shared_memory, "limits", LIMITS, LIMITS, "ok", "16.0 GiB"),
    (machine.shared_memory, "limits", LIMITS, LIMITS | {"shm_free": 2**29}, "warning", "--shm-size"),
    (machine.shared_memory, "limits", LIMITS, LIMITS | {"shm_free": 2**26}, "bad", "--shm-size"),
    (machine.threads, "limits", LIMITS, LIMITS, "ok", "not set"),
    (machine.threads, "limits", LIMITS, LIMITS | {"omp": "8"}, "warning", "60 times slower"),
    (storage.working_folder, "folder", True, True, "ok", ""),
    (storage.working_folder, "folder", True, False, "bad", "mount it there"),
    (storage.run_folder, "run", RUN, RUN, "ok", "1,024.0 GiB free"),
    (storage.run_folder, "run", RUN, RUN | {"there": False}, "bad", "no /r"),
    (storage.run_folder, "run", RUN, RUN | {"write_error": "Read-only file system"}, "bad", "Read-only"),
    (storage.run_folder, "run", RUN, RUN | {"free": 2**31}, "warning", "make room"),
    (storage.run_folder, "run", RUN, RUN | {"free": 2**20}, "bad", "make room"),
    (storage.run_folder, "run", RUN, RUN | {"read": None, "read_error": "No such file"}, "bad", "another /r than"),
    (storage.run_folder, "run", RUN, RUN | {"read": "u"}, "bad", "it holds something else"),
    (cluster.ports, "ports", {"6379": True}, {"6379": True}, "ok", "free"),
    (cluster.ports, "ports", {"6379": True}, {"6379": False}, "warning", "6379 (Ray's head)"),
    (machine.gpus, "torch", torch_with(cuda=None), torch_with(cuda=None), "ok", "none"),
    (machine.triton, "triton", *[{"version": "3.9", "ran": None}] * 2, "ok", "no GPU"),
    (machine.triton, "triton", {"version": "3.9", "ran": True}, {"version": "3.9", "ran": True}, "ok", "ran a kernel"),
    (
        machine.triton,
        "triton",
        {"version": "3.9", "ran": True},
        {"version": "3.9", "ran": False, "error": "no gcc", "compiler": None},
        "bad",
        "install a C compiler",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("check", "fact", "here", "other", "status", "says"), ROWS)
def test_a_fact_of_another_host_is_judged(
    check: Callable[[Case], Iterable[Row]], fact: str, here: Any, other: Any, status: str, says: str
) -> None:
    found = judged(check(case({fact: here}, {fact: other})))
    assert found["localhost"][0] == "ok"
    assert found["other.invalid"][0] == status
    assert says in found["other.invalid"][1]
    hung = judged(check(case({fact: here}, Facts({"x": 1}, {fact: "no answer within 10 s"}))))
    assert hung["other.invalid"][0] == "bad"
    assert "no answer within 10 s" in hung["other.invalid"][1]


@pytest.mark.parametrize(
    ("driver", "torch", "status", "says"),
    [
        ([SMI, SMI], torch_with(device(), device()), "ok", "2 of H100, 80 GiB; torch 2.13.0 for CUDA 12.8; driver 57"),
        ([SMI, SMI], torch_with(cuda=None), "bad", "install torch's build for CUDA"),
        ([SMI], torch_with(device()), "bad", "1 for slots=2"),
        ([SMI, SMI], torch_with(device(), device("out of memory")), "bad", "GPU 1: out of memory"),
        ([SMI, SMI | {"used_mib": 40960.0}], torch_with(device(), device()), "warning", "GPU 1 has 40 GiB taken"),
        (None, torch_with(), "bad", "none, and other hosts have some"),
    ],
)  # fmt: skip
def test_gpus(driver: Any, torch: Any, status: str, says: str) -> None:
    here = {"driver": [SMI], "torch": torch_with(device())}
    found = judged(machine.gpus(case(here, {"driver": driver, "torch": torch})))
    assert found["localhost"][0] == "ok"
    assert found["other.invalid"][0] == status
    assert says in found["other.invalid"][1]


def test_packages_out_of_range_missing_and_other_than_here() -> None:
    assert {"torch", "deepspeed", "ray", "webdataset"} <= our_packages().keys()
    known = {name: "9999" if name == "numpy" else None for name in our_packages()}
    right = {name: next(iter(s)).version if len(s) else "1" for name, s in our_packages().items()}
    for name, specifier in our_packages().items():  # the lower end of each range is in it
        right[name] = next((s.version for s in specifier if s.operator == ">="), right[name])
    assert judged(machine.packages(case({"packages": right}, {"packages": right})))["other.invalid"][0] == "ok"
    for spoilt, says in (({"torch": None}, "torch missing"), ({"ray": "1.0"}, "ray 1.0 (needs")):
        found = judged(machine.packages(case({"packages": right}, {"packages": right | spoilt})))
        assert found["other.invalid"][0] == "bad"
        assert says in found["other.invalid"][1]
    found = judged(machine.packages(case({"packages": right}, {"packages": right | {"numpy": "2.9.9"}})))
    assert "other versions than on localhost: numpy 2.9.9, here" in found["other.invalid"][1]
    assert known


def test_extras_that_these_settings_need(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(data=DataConfig(shards=["s3://b/d"]), logging=LoggingConfig(to=["wandb"]))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1" if name == "wandb" else "9999")
    found = {row.found: row.status for row in machine.extras(replace(Case(), config=config))}
    assert found["wandb 0.1"] == "warning"
    assert found["s3fs 9999"] == "ok"
    assert not any("mlflow" in what or "bitsandbytes" in what for what in found)
    assert list(machine.extras(replace(Case(), config=Config()))) == []


@pytest.mark.parametrize(("ahead", "status"), [(0.0, "ok"), (40.0, "warning"), (-40.0, "warning"), (None, "skipped")])
def test_clocks(ahead: float | None, status: str) -> None:
    found = judged(machine.clock(case({}, Facts({"x": 1}, clock_s=ahead))))
    assert found["other.invalid"][0] == status
    assert "localhost" not in found


def test_a_clock_is_only_called_wrong_where_it_must_be() -> None:
    line = json.dumps({"fact": "python", "value": {}}).encode() + b"\n"

    def ahead(clock: float) -> float | None:
        out = line + json.dumps({"fact": "time", "value": clock}).encode()
        return facts.read_answer("h", out, b"", 0, (100.0, 110.0)).clock_s

    assert (ahead(105.0), ahead(140.0), ahead(70.0)) == (0.0, 30.0, -30.0)


def test_data_and_backbone_of_another_host() -> None:
    config = Config(data=DataConfig(shards=["d", "https://h/d"]), backbone=BackboneConfig(path="b"))

    def data(other: Any) -> tuple[str, str]:
        return judged(storage.data(case({"data": SHARDS}, {"data": other}, config)))["other.invalid"]

    assert data(SHARDS)[0] == "ok"
    assert "another index" in data({"/d": SHARDS["/d"] | {"sha256": "b"}})[1]
    assert "number or size" in data({"/d": SHARDS["/d"] | {"bytes": 8}})[1]
    assert data({"/d": {"error": "/d: No such file"}})[0] == "bad"
    here = judged(storage.data(case({"data": {"/d": {"error": "/d: gone"}}}, {"data": SHARDS}, config)))
    assert here["localhost"][0] == "bad"
    assert "behind a URL" in here[""][1]

    def backbone(other: Any) -> tuple[str, str]:
        return judged(storage.backbone(case({"backbone": MODEL}, {"backbone": other}, config)))["other.invalid"]

    assert backbone(MODEL)[0] == "ok"
    assert "other model.safetensors" in backbone(MODEL | {"sizes": MODEL["sizes"] | {"model.safetensors": 8}})[1]  # type: ignore[operator]
    assert "other config.json" in backbone(MODEL | {"config": "b"})[1]
    assert "cannot read model.safetensors" in backbone(MODEL | {"unreadable": ["model.safetensors (Permission)"]})[1]
    assert backbone({"there": False})[0] == "bad"
    for check in (storage.data, storage.backbone, storage.settings):
        assert judged(check(case({}, {})))[""][0] == "skipped"


def test_a_hostfile_without_this_machine() -> None:
    (row,) = storage.hostfile(Case((Host("other.invalid", 1),), named=True))
    assert row.status == "bad"
    assert "is not among other.invalid" in row.found
    assert list(storage.hostfile(Case())) == []


def test_a_check_that_fails_or_hangs_is_a_row() -> None:
    def fails(case: Case) -> list[Row]:
        raise KeyError("x")

    def hangs(case: Case) -> list[Row]:
        time.sleep(60)
        return []

    since = time.monotonic()
    (failed,), (hung,) = rows_of(Check("a", fails), Case()), rows_of(Check("b", hangs, 0.2), Case())
    assert time.monotonic() - since < 5
    assert (failed.check, failed.status, failed.found) == ("a", "bad", "the check itself failed: KeyError: 'x'")
    assert (hung.check, hung.status, hung.found) == ("b", "bad", "no answer within 0.2 s")


def test_no_check_fails_without_facts() -> None:
    """A host that said nothing, or a probe that ended early."""
    nothing = case({}, Facts(problem="refused", advice="a key"))
    for check in CHECKS:
        if check.function not in (collective.here, cluster.running):
            assert not [row for row in rows_of(check, nothing) if "itself failed" in row.found], check.name


def test_the_probe_says_what_hangs_and_goes_on(tmp_path: Path) -> None:
    program = facts.program_for(facts.wanted_of(Case(), tmp_path, "") | {"limit_s": 0.5})
    slow = b"def slow(wanted):\n    time.sleep(60)\ndef broken(wanted):\n    return 1 / 0\n"
    slow += b"FACTS = (slow, broken, limits)\n"
    start = program.rindex(b"main(json")
    found = facts.ask("localhost", program[:start] + slow + program[start:], 60)
    assert found.problem is None
    assert found.failed["slow"] == "no answer within 0.5 s"
    assert found.failed["broken"].startswith("ZeroDivisionError")
    assert found.said["limits"]["cores"] >= 1
    assert found.clock_s == 0.0


def test_hosts_that_cannot_be_asked(ssh: Path) -> None:
    program = b'print(\'{"fact": "python", "value": {}}\')'
    refused = facts.ask("refuses.invalid", program, 30)
    assert refused.problem == "refuses.invalid: Permission denied (publickey)."
    assert "ssh-copy-id refuses.invalid" in refused.advice
    unreachable = facts.read_answer("h", b"", b"ssh: connect to host h port 22: No route to host", 255, (0.0, 0.0))
    assert unreachable.advice.endswith("see its sshd, its network, its name")
    bare = facts.ask("bare.invalid", program, 30)
    assert bare.problem is not None
    assert bare.problem.startswith(f"no Python at {sys.executable} there")
    hung = facts.ask("hangs.invalid", program, 1)
    assert hung.problem == "no answer in time"
    assert facts.ask("fine.invalid", program, 30).said == {"python": {}}  # its greeting is no fact
    words = ssh.read_text()
    assert "'BatchMode=yes'" in words  # never a question for a password


def test_a_rank_that_hangs_or_cannot_start_is_named_and_ended(ssh: Path) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    places = [collective.Place("localhost", 0), collective.Place("hangs.invalid", 0)]
    found = collective.all_reduce(places, "127.0.0.1", "gloo", limit_s=2)
    assert found.failed["hangs.invalid"] == "no answer within 2 s"
    places = [collective.Place("localhost", 0), collective.Place("refuses.invalid", 0)]
    found = collective.all_reduce(places, "127.0.0.1", "gloo", limit_s=30)
    assert found.failed == {"refuses.invalid": "refuses.invalid: Permission denied (publickey)."}
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    assert [p for p in left if p.status() != psutil.STATUS_ZOMBIE and "all_reduce" in " ".join(p.cmdline())] == []


def test_a_sum_that_is_wrong_or_slow_is_said() -> None:
    assert collective._row("h", "gloo", collective.Sum({}, False, 1.0, 8)).status == "bad"
    row = collective._row("h", "gloo", collective.Sum({}, True, 0.5, 2**20))
    assert (row.status, row.found) == ("ok", "gloo: 1 MiB in 500.0 ms, 2 MB/s")


def test_ray_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        assert cluster.answers(f"127.0.0.1:{port}").status == "ok"
        assert cluster.answers(f"ray://127.0.0.1:{port}").status == "ok"
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        assert [row.status for row in cluster.running(case({}, {})) if row.check == "RAY_ADDRESS"] == ["ok"]
    gone = cluster.answers(f"127.0.0.1:{port}")
    assert gone.status == "bad"
    assert "refused" in gone.found
    assert cluster.answers("nonsense").status == "bad"


@pytest.mark.distributed
def test_hosts_for_real(
    tmp_path: Path, ssh: Path, random_backbone: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    """The verb over four hosts: one is this machine, one like it, one has folders of its own, one refuses."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    (shared / "runs").mkdir(parents=True)
    (own / "runs").mkdir(parents=True)
    synthesize(shared / "data", samples=40)
    monkeypatch.chdir(shared)
    settings = {"data": {"shards": ["data"]}, "backbone": {"path": str(random_backbone), "lora_rank": 4}}
    Path("c.yaml").write_text(yaml.safe_dump(settings))
    hosts = ("localhost", "second.invalid", "elsewhere.invalid", "refuses.invalid")
    Path("hosts").write_text("".join(f"{name} slots=1\n" for name in hosts))
    assert main(["doctor", "--hostfile", "hosts", "--config", "c.yaml", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    rows = [Row(**row) for row in found["rows"]]
    assert found["ok"] is False
    ill = {(row.check, row.host): row.found for row in rows if row.status == "bad"}
    assert ill == {
        ("ssh", "refuses.invalid"): "refuses.invalid: Permission denied (publickey).",
        ("run folder", "elsewhere.invalid"): f"another {own}/runs than localhost's: its file is not there "
        "(No such file or directory)",
        ("data", "elsewhere.invalid"): f"{own}/data/index.npz: No such file or directory",
    }
    said = {(row.check, row.host, row.found.partition(":")[0]): row.found for row in rows}
    assert said["run folder", "second.invalid", "reads what localhost wrote there"]
    assert "3 shards" in said["data", "second.invalid", f"{shared}/data"]
    assert said["settings", "", "they fit data and backbone, on 4 ranks"]
    assert "MB/s" in said["all-reduce", "localhost", "gloo, 2 ranks"]
    assert "MB/s" in said["all-reduce", "", "gloo, 3 ranks on 3 hosts"]
    assert {row.host for row in rows if row.check == "packages"} == {*hosts[:3]}
    assert list((shared / "runs").iterdir()) == []  # the file that was to be read is gone


@pytest.mark.distributed
def test_two_network_hosts_with_a_real_sshd(tmp_path: Path) -> None:
    why_not = hosts.missing()
    if why_not:
        pytest.skip(f"no hosts can be made here: {why_not}")
    environ = without_launcher_variables(os.environ)
    with hosts.small_hosts(2, tmp_path) as (one, two):
        (tmp_path / "hosts").write_text(f"{one.name} slots=1\n{two.name} slots=1\n")
        command = [sys.executable, "-m", "egmf_launcher.cli", "doctor", "--hostfile", "hosts", "--json"]
        done = one.run(command, cwd=tmp_path, env=environ, timeout=240)
    rows = [Row(**row) for row in json.loads(done.stdout)["rows"]]
    ill = [row for row in rows if row.status == "bad"]
    assert (done.returncode, ill) == (0, []), done.stderr
    said = {(row.check, row.host): row.found for row in rows}  # of several the last
    assert said["run folder", two.name] == f"reads what {one.name} wrote there"
    assert said["clock", two.name].startswith("within")
    assert said["all-reduce", ""].startswith("gloo, 2 ranks on 2 hosts: 16 MiB in ")


def test_settings_that_train_would_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (row,) = storage.settings(replace(Case(), config=Config(data=DataConfig(shards=["nowhere"]))))
    assert row.status == "bad"
    assert "nowhere, which holds no manifest.json" in row.found


def test_exit_code_and_table(monkeypatch: pytest.MonkeyPatch, capsys: Capsys) -> None:
    rows = [Row("a", "h", "ok", "[fine]", "never shown"), Row("b", "", "warning", "slow", "mend it")]
    monkeypatch.setattr(table, "examine", lambda case: rows)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "[fine]" in text
    assert "never shown" not in text
    assert "mend it" in text
    assert "1 ok, 1 warning: nothing was found that would stop a training" in text
    rows.append(Row("c", "h", "bad", "broken"))
    assert main(["doctor"]) == 1
    assert "something would stop a training" in capsys.readouterr().out


def test_bad_input_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--hostfile", "nohosts"]) == 2
    assert "no such file" in capsys.readouterr().err
    Path("hosts").write_text("-oProxyCommand=x slots=1\n")
    assert main(["doctor", "--hostfile", "hosts"]) == 2
    assert "no host name" in capsys.readouterr().err
