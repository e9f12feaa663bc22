"""Ray itself: the only two tests of this folder that start it, so each proves several things at once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed

JOB = """
    from dataclasses import dataclass
    from pathlib import Path
    from typing import ClassVar

    @dataclass(frozen=True)
    class Job:
        \"\"\"A verb from outside the package: nothing else knows of it.\"\"\"

        verb: ClassVar[str] = "train"
        run: Path
        launch: str
        steps: None = None

        def __call__(self, console):
            return run(self)

"""

DIES_ONCE = """
    import os, signal
    import psutil
    import torch, torch.distributed as dist

    NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "CROSS_SIZE")

    def run(job):
        flag = job.run / "died"
        if os.environ["RANK"] == "1" and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        total = torch.ones(1)
        dist.all_reduce(total)
        storage = sorted(str(p) for p in job.run.glob(".ray/*"))
        ours = [psutil.Process(int(os.environ["TEST_DRIVER"]))]
        ours += ours[0].children(recursive=True)
        listens = [(process.pid, connection.laddr.ip) for process in ours
                   for connection in process.net_connections(kind="inet") if connection.status == "LISTEN"]
        dist.all_reduce(total)  # the other rank is asked, too
        return {"listens": listens, "pid": os.getpid(), "launch": job.launch, "storage": storage,
                "ranks": total.item() / 2, "folder": os.getcwd(),
                "backend": dist.get_backend(), "nice": os.nice(0),
                "environment": {name: os.environ.get(name) for name in NAMES}, "master": os.environ["MASTER_ADDR"]}
"""

REFUSES = """
    import torch, torch.distributed as dist
    from egmf_dist.errors import EgmfError

    def run(job):
        import ray  # in a worker only: the driver must not import it before its environment is set

        total = torch.ones(1)
        dist.all_reduce(total)
        nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        here = [None, None]
        dist.all_gather_object(here, ray.get_runtime_context().get_node_id())
        raise EgmfError(f"shard 7 is torn; {int(total)} ranks on {len(set(here))} of {len(nodes)} nodes")
"""

FAKE_SSH = """#!{python}
import subprocess, sys
with open({log!r}, "w") as log:
    log.write("\\n".join(sys.argv[1:]))
command = sys.argv[sys.argv.index("--") + 2]
sys.exit(subprocess.run(["sh", "-c", command]).returncode)
"""

# A process starts one cluster in its life, so each test's driver is a process of its own.
DRIVER = """
    import json, os, sys
    import psutil
    from egmf_dist.config import LaunchConfig
    from egmf_launcher.errors import report
    from egmf_launcher.hostfile import Host
    from egmf_launcher.ray.train import run_under_ray
    from pathlib import Path
    from stand_in import Job

    os.environ["TEST_DRIVER"] = str(os.getpid())
    folder, hosts, failures = json.loads(sys.argv[1])
    job = Job(Path(folder), "abc")
    before = dict(os.environ)
    out = {"code": 0, "result": None}
    try:
        hosts = [Host(name, slots) for name, slots in hosts]
        out["result"] = run_under_ray(job, hosts, LaunchConfig(max_failures=failures))
    except Exception as error:
        out["code"] = report(error, debug=False)
    out["environment_kept"] = dict(os.environ) == before
    below = psutil.Process().children(recursive=True)
    psutil.wait_procs(below, timeout=60)
    out["left"] = [p.name() for p in below if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    print(json.dumps(out))
"""


def drive(
    folder: Path, worker: str, hosts: list[tuple[str, int]], failures: int = 0, **environ: str
) -> tuple[dict[str, Any], str]:
    """Run the stand-in job under Ray from a new process; what the driver saw, and its stderr."""
    (folder / "stand_in.py").write_text(textwrap.dedent(JOB) + textwrap.dedent(worker))
    (folder / "run").mkdir()
    path = [str(folder), *(p for p in [os.environ.get("PYTHONPATH")] if p)]
    (folder / "run" / ".ray" / "evaluate-def").mkdir(parents=True)  # another launch's, beside this one
    driver = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DRIVER), json.dumps([str(folder / "run"), hosts, failures])],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"} | environ,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert driver.returncode == 0, driver.stderr
    return json.loads(driver.stdout.splitlines()[-1]), driver.stderr


def test_killed_worker_is_started_again_and_resumes(tmp_path: Path) -> None:
    # What DeepSpeed's launcher leaves in the driver's environment must reach no worker.
    stale = {"RANK": "0", "WORLD_SIZE": "7", "LOCAL_RANK": "0", "CROSS_SIZE": "3", "MASTER_ADDR": "203.0.113.9"}
    seen, stderr = drive(tmp_path, DIES_ONCE, [("localhost", 2)], failures=1, **stale)
    assert seen["code"] == 0, stderr
    result = seen["result"]
    assert result["ranks"] == 2.0
    assert result["backend"] in ("gloo", "nccl")
    assert result["launch"] == "abc"  # the same one after the restart
    assert [Path(path).name for path in result["storage"]] == ["evaluate-def", "train-abc"]
    assert result["folder"] == str(tmp_path)
    assert result["nice"] == os.nice(0)  # Ray's default would put every rank behind whatever else runs
    assert result["master"] == "127.0.0.1"
    assert result["environment"] == {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CROSS_SIZE": None,
    }
    # On one machine nothing is open to others, but for torch's rendezvous: it knows no address to listen on.
    outside = [pid for pid, ip in result["listens"] if not ip.endswith("127.0.0.1")]
    assert len(result["listens"]) > 5
    assert outside in ([], [result["pid"]])
    assert seen["environment_kept"]
    assert seen["left"] == []
    left = sorted(str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*"))
    assert left == [".ray", ".ray/evaluate-def", "died"]  # its own files of Ray are gone, and nobody else's


def test_two_machines_and_a_workers_complaint(tmp_path: Path) -> None:
    """Two Ray nodes on this machine, the second started through a stand-in for ssh that runs the command here."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(FAKE_SSH.format(python=sys.executable, log=str(tmp_path / "ssh.log")))
    ssh.chmod(0o755)
    path = f"{ssh.parent}{os.pathsep}{os.environ['PATH']}"
    seen, stderr = drive(tmp_path, REFUSES, [("localhost", 1), ("second.invalid", 1)], PATH=path)
    assert seen["code"] == 2, stderr
    lines = [line for line in stderr.splitlines() if line.startswith("egmf: error:")]
    assert lines == ["egmf: error: shard 7 is torn; 2 ranks on 2 of 2 nodes"]
    assert "Traceback" not in stderr
    command = (tmp_path / "ssh.log").read_text()
    assert "second.invalid" in command.split("\n")
    assert re.search(r"[0-9a-f]{64}", command) is None  # the token stands on no command line
    assert seen["left"] == []
    assert [p.name for p in (tmp_path / "run").rglob("*")] == [".ray", "evaluate-def"]
