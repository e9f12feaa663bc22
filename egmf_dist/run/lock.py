"""Who trains a run: one process, and a second one is told which.

The process that drives a training (Ray's driver, or rank 0 where ranks were started by somebody else) holds
``RUN/lock.json`` for as long as it trains. Three things together say whether a holder is alive:

* an advisory lock (``flock``) on the file, which the operating system gives back however the process ends. Linux's NFS
  client carries it to the server, so it holds between machines, too; some file systems know none, or only a local one;
* host, process id and start time in the file: on this host a number that is gone, or is another process's by now, is a
  dead holder;
* the file's modification time, which the holder moves twice a minute: of a holder on another host nothing else can be
  known where the lock does not reach it. It is compared with a time of the same file server, not with this clock.

A holder that was given up while it only slept must not go on: its launch has a token, which stands in the file, and
ranks compare it before they move a pointer (:func:`check_held`).
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil

from egmf_dist.errors import EgmfError
from egmf_dist.run.folder import Run
from egmf_dist.run.formats import DamagedError, read_stamped, stamped

HEARTBEAT_S = 30.0
SILENCE_S = 300.0
"""A holder on another host that has not touched its lock for this long has stopped."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_descriptors: set[int] = set()


def _forget_in_a_child() -> None:
    # A forked loader process shares the descriptor, and with it the lock: it would outlive the trainer's death.
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_forget_in_a_child)


@contextlib.contextmanager
def held(run: Run, launch: str) -> Iterator[str | None]:
    """Hold a run that exists during the body.

    Args:
        run: the run.
        launch: this launch's token.

    Yields:
        A sentence where the lock of a process that is gone was taken over, else None.

    Raises:
        EgmfError: another process holds it; names host, process and since when.
    """
    descriptor, locked = _open(run)
    _descriptors.add(descriptor)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(descriptor, stop), name="run-lock", daemon=True)
    try:
        said = _take_over(run, locked)
        _write(descriptor, launch)
        beat.start()
        yield said
    finally:
        stop.set()
        if beat.is_alive():
            beat.join()
        # Removed while the lock is held; whoever waits for it looks whether the name still means what it opened.
        if _holder(run).get("launch") == launch:
            run.lock.unlink(missing_ok=True)
        _descriptors.discard(descriptor)
        os.close(descriptor)


def check_held(run: Run, launch: str | None) -> None:
    """Refuse to go on where another launch has taken the run over since.

    Args:
        run: the run.
        launch: this launch's token; None where none was given: then nothing is checked.

    Raises:
        EgmfError: somebody else holds it.
    """
    holder = {} if launch is None else _holder(run)
    if holder.get("launch", launch) != launch:
        raise EgmfError(f"run {run}: {_named(holder)} has taken it over; this start ends here")


def _open(run: Run) -> tuple[int, bool]:
    """The lock file's descriptor, and whether the operating system's lock on it is ours (False: it knows none)."""
    while True:
        descriptor = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = _lock(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            raise _refusal(run) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(run.lock)):
                return descriptor, locked
        os.close(descriptor)  # its holder has just left and removed it


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _take_over(run: Run, locked: bool) -> str | None:
    """What is to be said of the holder that the file still names; None where it names none.

    Raises:
        EgmfError: it may be alive.
    """
    holder = _holder(run)
    if not holder:
        return None
    if holder.get("host") == socket.gethostname():
        # On one host the lock reaches everybody.
        if not locked and _alive(holder):
            raise _refusal(run)
    elif _silence(run) < SILENCE_S:
        raise EgmfError(
            f"run {run}: {_named(holder)} holds it and was alive {_silence(run):.0f} s ago; wait for it or stop it; "
            f"if that process is gone, remove {run.lock}, or wait until {SILENCE_S:.0f} s have passed"
        )
    return f"{_named(holder)} held the run and ended without giving it back; taken over"


def _refusal(run: Run) -> EgmfError:
    for _ in range(20):
        holder = _holder(run)
        if holder:
            break
        time.sleep(0.1)  # it has the lock and is about to write its name
    here = holder.get("host") == socket.gethostname()
    who = _named(holder) if holder else "another process"
    if here and not _alive(holder):
        who = f"a process that {who} left behind"
    return EgmfError(f"run {run}: {who} is training it; wait for it or stop it, or choose another name with --run")


def _alive(holder: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(int(holder["pid"]))
        return abs(process.create_time() - float(holder["started"])) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return False


def _silence(run: Run) -> float:
    """Seconds since the holder last touched its lock, by the clock of the file system."""
    with tempfile.NamedTemporaryFile(dir=run.folder, prefix=".now-") as probe:
        probe.write(b"0")
        probe.flush()
        now = os.stat(probe.name).st_mtime
    try:
        return max(0.0, now - run.lock.stat().st_mtime)
    except FileNotFoundError:
        return SILENCE_S


def _holder(run: Run) -> dict[str, Any]:
    """What the lock file says; empty where there is none, or its holder is just writing it."""
    try:
        return read_stamped(run.lock)
    except DamagedError:
        return {}


def _named(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on host {holder.get('host')} (since {holder.get('since')})"


def _write(descriptor: int, launch: str) -> None:
    """In place: a new file under the name would be without our lock."""
    process = psutil.Process()
    holder = {
        "host": socket.gethostname(),
        "pid": process.pid,
        "started": process.create_time(),
        "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "launch": launch,
    }
    text = (json.dumps(stamped(holder), indent=2) + "\n").encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text, 0)
    os.fsync(descriptor)


def _beat(descriptor: int, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with contextlib.suppress(OSError):
            os.utime(descriptor)
