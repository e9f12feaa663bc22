"""A driver of Ray beside DeepSpeed's launcher instead of below it.

``deepspeed launcher/train.py --hostfile hosts`` starts this program under ``deepspeed.launcher.launch``, which answers
SIGTERM and Ctrl-C by ending the whole tree of processes below it: Ray's servers and workers with the driver, at the
moment in which they should save a checkpoint. So the process that it has started stays in front, hands signals on and
gives the exit code, and the driver with all that it starts is another's child::

    deepspeed - launch.py - front          keeper - driver - Ray's servers and workers

If the front is killed, the driver is told to stop, unless it was told before and saves; if the keeper is, the driver
gets a SIGTERM by the system.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from egmf_dist.training.stopping import listening
from egmf_launcher.decide import LaunchArguments, started_rank
from egmf_launcher.errors import FAILURE_EXIT

_DRIVER = "EGMF_DRIVER_APART"
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, prctl(2)


def goes_apart(launch: LaunchArguments) -> bool:
    """Whether this process was started by DeepSpeed's launcher to drive Ray, and is the one in front."""
    drives = launch.hostfile is not None and launch.launcher != "deepspeed" and started_rank(os.environ) == 0
    if drives and os.environ.pop(_DRIVER, ""):
        with contextlib.suppress(OSError, AttributeError):  # another system than Linux
            ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, int(signal.SIGTERM))
        return False
    return drives


def run_apart(command: Sequence[str]) -> int:
    """Run a command as another's child, and be it for whoever started this process.

    Args:
        command: program and arguments; it inherits folder, environment and output, and no input.

    Returns:
        Its exit code; 128 and the signal's number where one ended it, 1 where nobody could say.
    """
    told_reads, told = os.pipe()
    said, said_writes = os.pipe()
    between = [sys.executable, "-m", __name__, str(told_reads), str(said_writes), *command]
    # Its own session: a terminal's Ctrl-C comes by the front alone.
    middle = subprocess.Popen(
        between, pass_fds=(told_reads, said_writes), stdin=subprocess.DEVNULL, start_new_session=True
    )
    os.close(told_reads)
    os.close(said_writes)

    def pass_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(told, bytes([number]))

    with listening(pass_on):
        middle.wait()
        answer = b"".join(iter(lambda: os.read(said, 16), b""))
    os.close(told)
    os.close(said)
    if not answer:
        print("launch: the driver's keeper ended without a word", file=sys.stderr)
        return FAILURE_EXIT
    code = int(answer)
    return code if code >= 0 else 128 - code


def _keep(told: int, said: int, command: Sequence[str]) -> None:
    """Start the driver, hand on what it is told, and say how it ended."""
    driver = subprocess.Popen(command, env=os.environ | {_DRIVER: "1"})
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # not before: a child inherits what is ignored

    def hand_on() -> None:
        stops = False
        while number := os.read(told, 1):
            stops = True
            driver.send_signal(number[0])
        if not stops:
            driver.terminate()  # nobody is in front any more
        # A driver that was told is saving: a second signal would end its workers in the middle of that. DeepSpeed's
        # launcher kills the front 30 s after the first.

    threading.Thread(target=hand_on, daemon=True).start()
    code = driver.wait()
    with contextlib.suppress(BrokenPipeError):
        os.write(said, str(code).encode())


def main() -> int:
    """``python -m egmf_launcher.apart FD FD COMMAND``: leave the tree of whoever started this, and keep a driver."""
    if os.fork():
        os._exit(0)  # what is left behind is the child of nobody in the tree
    told, said, *command = sys.argv[1:]
    _keep(int(told), int(said), command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
