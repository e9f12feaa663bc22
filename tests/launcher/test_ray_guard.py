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

from egmf_launcher.ray.guard import processes_in

DRIVER = """
    import os, subprocess, sys, time
    from pathlib import Path
    from egmf_launcher.ray.guard import guarded

    folder = Path(sys.argv[1])
    with guarded(folder) as say:
        for path in (folder / "log", folder.with_name("egmf-10")):
            with open(path, "a") as log:
                agent = subprocess.Popen(["sleep", "60"], stdout=log, start_new_session=True)
            print(agent.pid, flush=True)
        say += sys.argv[2:]
        sys.stdin.readline()
"""


@pytest.mark.parametrize("ends", ["returns", "keeps", "is killed"])
def test_agents_and_token_go_with_the_driver(tmp_path: Path, ends: str) -> None:
    folder = tmp_path / "egmf-1"
    folder.mkdir()
    (folder / "token").write_text("secret")
    (folder / "log").write_text("why")
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(folder), *(["keep"] if ends == "keeps" else [])]
    driver = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    agent, other = (psutil.Process(int(driver.stdout.readline())) for _ in range(2))
    try:
        assert [p.pid for p in processes_in(folder)] == [agent.pid]
        if ends == "is killed":
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        else:
            driver.communicate("\n")
        assert driver.returncode == (-signal.SIGKILL if ends == "is killed" else 0)
        agent.wait(timeout=30)
        until = time.monotonic() + 30
        while (folder / "token").exists() and time.monotonic() < until:
            time.sleep(0.05)
        while folder.exists() and ends != "keeps" and time.monotonic() < until:
            time.sleep(0.05)
        assert [p.name for p in folder.rglob("*")] == (["log"] if ends == "keeps" else [])
        assert folder.exists() == (ends == "keeps")
        assert other.is_running(), "another cluster's process"
    finally:
        for process in (agent, other):
            if process.is_running():
                os.kill(process.pid, signal.SIGKILL)
