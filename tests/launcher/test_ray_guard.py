"""What is left of a cluster after its driver's end; stand-ins for Ray's processes, so no Ray is started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from egmf_launcher.ray.guard import ray_processes_in

# The driver has a file of the folder open itself, as Ray's has.
DRIVER = """
    import os, subprocess, sys, time
    from pathlib import Path
    from egmf_launcher.ray.guard import guarded

    folder = Path(sys.argv[1])
    own = open(folder / "driver.log", "a")
    with guarded(folder):
        for name, path in (("ray::Agent", folder / "log"), ("sleep", folder / "log"), ("ray::A", folder / "../other")):
            with open(path, "a") as log:
                agent = subprocess.Popen([name, "60"], executable="sleep", stdout=log, start_new_session=True)
            print(agent.pid, flush=True)
        sys.stdin.readline()
    print("goes on", flush=True)
"""


@pytest.mark.parametrize("ends", ["returns", "is killed"])
def test_agents_and_token_go_with_a_killed_driver(tmp_path: Path, ends: str) -> None:
    (tmp_path / "real").mkdir()
    folder = tmp_path / "real" / "egmf-1"
    folder.mkdir()
    (folder / "token").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "real")  # a temporary folder may be reached by a link
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path / "link" / "egmf-1")]
    driver = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    agent, reader, other = (psutil.Process(int(driver.stdout.readline())) for _ in range(3))
    try:
        assert [p.pid for p in ray_processes_in(tmp_path / "link" / "egmf-1")] == [agent.pid]
        if ends == "returns":
            said, _ = driver.communicate("\n")
            assert (driver.returncode, said) == (0, "goes on\n")
            assert agent.is_running(), "a driver that lives takes its cluster down itself"
            assert (folder / "token").exists()
        else:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            agent.wait(timeout=30)
            until = time.monotonic() + 30
            while folder.exists() and time.monotonic() < until:
                time.sleep(0.05)
            assert not folder.exists()
        assert reader.is_running(), "somebody who reads the logs"
        assert other.is_running(), "another cluster's"
    finally:
        for process in (agent, reader, other):
            if process.is_running():
                os.kill(process.pid, signal.SIGKILL)
