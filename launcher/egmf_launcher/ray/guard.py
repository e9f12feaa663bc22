"""Clears up after a driver that was killed: ``python -m egmf_launcher.ray.guard FOLDER``, started by the driver.

Linux ends Ray's own servers with the driver that started them, but not the agents that those have started, and nobody
removes the cluster's folder with the token in it. Standard input is open for as long as the driver lives. At its end,
whatever process still has a file of that folder open is ended (their logs are in it; their environment cannot be asked:
Ray writes their names over it), and the folder goes, unless the driver has said ``keep`` (a worker failed, and Ray's
logs are in it).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

TOKEN = "token"
"""Name of the file in a cluster's folder that holds its token."""
_GRACE_S = 5.0


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[list[str]]:
    """Have the cluster in ``folder`` cleared up after the body, or after this process's death in it.

    Yields:
        What to say to the guard at the end: empty, or ``["keep"]``.
    """
    command = [sys.executable, "-m", "egmf_launcher.ray.guard", os.fspath(folder)]
    # Its own session: Ctrl-C and a terminal's end reach the driver, not its guard.
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, text=True)
    said: list[str] = []
    try:
        yield said
    finally:
        with contextlib.suppress(BrokenPipeError):
            guard.communicate(" ".join(said))


def main() -> int:
    """Wait for the driver's end, then clear up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    folder = Path(sys.argv[1])
    keep = sys.stdin.read() == "keep"
    left = list(processes_in(folder))
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(left, timeout=_GRACE_S)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    (folder / TOKEN).unlink(missing_ok=True)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def processes_in(folder: Path) -> Iterator[psutil.Process]:
    """The processes that have a file of the folder open."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(Path(file.path).is_relative_to(folder) for file in process.open_files()):
                yield process


if __name__ == "__main__":
    sys.exit(main())
