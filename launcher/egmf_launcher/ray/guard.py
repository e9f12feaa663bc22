"""Clears up after a driver that was killed: ``python -m egmf_launcher.ray.guard FOLDER``, started by the driver.

Linux ends Ray's own servers with the driver that started them, but not the agents that those have started, and nobody
is left to remove the cluster's folder with the token in it. Standard input is open for as long as the driver lives. If
it ends without the word that all is in order, Ray's processes that still have a file of the folder open are ended
(their logs are in it; their environment cannot be asked: Ray writes their names over it), and the folder is removed.
A driver that ends by itself takes its cluster down by itself.
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

IN_ORDER = "in order"
_GRACE_S = 5.0


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Have the cluster in ``folder`` cleared up should this process die in the body."""
    command = [sys.executable, "-m", "egmf_launcher.ray.guard", os.fspath(folder)]
    # Its own session: Ctrl-C and a terminal's end reach the driver, not its guard.
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, text=True)
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            guard.communicate(IN_ORDER)


def main() -> int:
    """Wait for the driver's end; clear up if it was killed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    folder = Path(sys.argv[1])
    if sys.stdin.read() == IN_ORDER:
        return 0
    left = list(ray_processes_in(folder))
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(left, timeout=_GRACE_S)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def ray_processes_in(folder: Path) -> Iterator[psutil.Process]:
    """Ray's processes that have a file of the folder open; somebody may be reading its logs as well."""
    folder = folder.resolve()  # as the system names open files
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = any(word.startswith("ray::") or "/ray/" in word for word in process.cmdline()[:3])
            if ours and any(Path(file.path).is_relative_to(folder) for file in process.open_files()):
                yield process


if __name__ == "__main__":
    sys.exit(main())
