"""Who trains a run: one process, and a second one is told which.

The process that drives a training (Ray's driver, or rank 0 where ranks were started by somebody else) holds
``RUN/lock.json`` for as long as it trains. Three things together say whether a holder is alive:

* an advisory lock (``flock``) on the file, which the operating system gives back however the process ends. Linux's NFS
  client carries it to the server, so it holds between machines, too; some file systems know none, or only a local one;
* what the file says of the holder. The running kernel is named by its boot id, not by the host's name, which clones and
  containers share, and its pid namespace: within one, a process id with its start time says who is dead;
* the file's modification time, which the holder moves twice a minute: of a holder elsewhere nothing else can
  be known where the lock does not reach it. It is compared with a time of the same file server, not with this clock. A
  start waits until such a holder has been silent for long enough, so that a job that is queued again on another machine
  goes on by itself.

A holder that was given up while it only slept must not go on: its launch has a token, which stands in the file, and
ranks compare it before they move a pointer (:func:`check_held`). A file that is gone or says nothing counts as given
up; one that the system does not give for a moment does not.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from egmf_dist.errors import EgmfError
from egmf_dist.files import naming
from egmf_dist.formats import DamagedError, read_stamped, stamped
from egmf_dist.run.folder import NOW_PREFIX, Run

HEARTBEAT_S = 30.0
SILENCE_S = 300.0
"""A holder elsewhere that has not touched its lock for this long has stopped."""
_WRITING_S = 2.0
"""A lock file that says nothing is looked at again for this long: its holder may be just writing it."""
_SIZE = 1024
"""Bytes of the file, blanks at its end: one write over the old text, so that a reader sees the one or the other."""
LOCKED, BLOCKED, UNKNOWN = "locked", "blocked", "unknown"
"""What asking for the lock came to: it is ours, another's, or the file system knows none."""
_SETTLING_S = 1.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_descriptors: set[int] = set()


def _forget_in_a_child() -> None:
    # A forked loader process shares the descriptor, and with it the lock: it would outlive the trainer's death.
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_forget_in_a_child)


@contextlib.contextmanager
def held(run: Run, launch: str, say: Callable[[str], None] = print) -> Iterator[None]:
    """Hold a run that exists during the body.

    Args:
        run: the run.
        launch: this launch's token.
        say: gets a sentence where a silent holder is waited for, and where one that is gone is taken over.

    Raises:
        EgmfError: another process holds it; names host, process and since when. Or its file cannot be written.
    """
    try:
        with naming(run.lock):
            descriptor = _acquire(run, launch, say)
    except OSError as error:
        raise EgmfError(
            f"run {run}: {error.filename} cannot be written ({error.strerror}), so it is not held"
        ) from error
    _descriptors.add(descriptor)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(descriptor, stop), name="run-lock", daemon=True)
    try:
        beat.start()
        yield
    finally:
        stop.set()
        if beat.is_alive():
            beat.join()
        # Removed while the lock is held; whoever waits for it looks whether the name still means what it opened.
        if _holder(run).get("launch") == launch:
            with contextlib.suppress(OSError):  # a disk that has turned read-only: what ended the body is to be said
                run.lock.unlink(missing_ok=True)
        _descriptors.discard(descriptor)
        os.close(descriptor)


def check_held(run: Run, launch: str | None) -> None:
    """Refuse to go on where another launch has taken the run over since.

    Args:
        run: the run.
        launch: this launch's token; None where none was given: then nothing is checked.

    Raises:
        EgmfError: somebody else holds it, or the file that says who does is gone or damaged.
        OSError: the system does not give the file, so nothing is known: a pointer stays where it is until it does.
    """
    if launch is None:
        return
    holder, refused = _settled(run)
    if refused is not None:
        raise refused
    if holder.get("launch") != launch:
        who = f"{_named(holder)} has taken it over" if holder else f"{run.lock} is gone or damaged, so it is not held"
        raise EgmfError(f"run {run}: {who}; this start ends here")


class Seen(NamedTuple):
    """What a look at a run's lock says."""

    who: str
    """Process, host and since when."""
    launch: str | None
    """Its token."""
    alive: bool
    why: str
    """By what that is known."""


def look(run: Run) -> Seen | None:
    """Who trains a run, without asking for the lock or touching anything; None where nobody says so.

    Of a holder elsewhere only the time is known at which it last touched its lock, which is compared with this
    machine's clock: a file server's would have to be asked by writing.
    """
    try:
        silent = max(0.0, time.time() - run.lock.stat().st_mtime)
    except FileNotFoundError:
        return None
    holder = _holder(run)
    who, launch = _named(holder) if holder else "an unknown process", holder.get("launch")
    if holder and _same(holder, "processes"):
        alive = _alive(holder)
        return Seen(who, launch, alive, "its process is there" if alive else "its process is gone")
    return Seen(who, launch, silent < SILENCE_S, f"it touched its lock {silent:.0f} s ago")


class _AgainError(Exception):
    """Begin once more: the lock file is no longer the one that was opened, or its holder is silent by now."""


def _acquire(run: Run, launch: str, say: Callable[[str], None]) -> int:
    """The descriptor of the lock file, locked where the file system knows locks, with our name in it.

    Raises:
        EgmfError: another process holds the run, or its folder is gone.
    """
    # A file server may keep a dead client's lock for a while.
    patience = time.monotonic() + 2 * SILENCE_S
    waited = False
    while True:
        try:
            descriptor = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError as error:
            raise EgmfError(f"run {run}: its folder is gone; another start has removed it") from error
        try:
            locked = _lock(descriptor)
            _check_same(run, descriptor)
            waited |= _take_over(run, descriptor, locked, say)
            if locked == BLOCKED:
                if time.monotonic() > patience:
                    raise EgmfError(
                        f"run {run}: {_named(_holder(run))} is silent, but its file server keeps its lock; "
                        f"if that process is gone, remove {run.lock}"
                    )
                raise _AgainError  # its holder is silent: perhaps the file server has given the lock up by now
            _write(descriptor, launch)
            if locked == UNKNOWN or waited:
                # A second start that saw nobody, or waited for the same one, writes its name, too: the last one has it.
                time.sleep(_SETTLING_S)
                if _holder(run).get("launch") != launch:
                    raise _refusal(run)
            return descriptor
        except _AgainError:
            os.close(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise


def _check_same(run: Run, descriptor: int) -> None:
    """Whether the file's name still means what was opened."""
    try:
        if os.path.samestat(os.fstat(descriptor), os.stat(run.lock)):
            return
    except OSError as error:
        if not _is_gone(error):
            raise
    raise _AgainError


def _is_gone(error: OSError) -> bool:
    """Whether a file is no longer there: NFS says so of an open one in its own way."""
    return isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE


def _lock(descriptor: int) -> str:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return BLOCKED
    except OSError as error:
        if _is_gone(error):
            raise _AgainError from None
        if error.errno not in _NO_LOCKS:
            raise
        return UNKNOWN
    return LOCKED


def _take_over(run: Run, descriptor: int, locked: str, say: Callable[[str], None]) -> bool:
    """See to it that the holder that the file still names, if any, is gone; whether others may have waited as well.

    Raises:
        EgmfError: it is alive.
    """
    holder = _settled_holder(run) if locked == BLOCKED else _holder(run)
    if _same(holder, "processes"):
        # Two mounts of one store may each have locks of their own, so a lock of ours does not make it dead.
        if locked == BLOCKED or _alive(holder):
            raise _refusal(run)
    elif holder:
        _await_silence(run, descriptor, holder, say)
    elif locked == BLOCKED:
        raise _refusal(run)
    if holder and locked != BLOCKED:
        say(f"run {run}: {_named(holder)} held the run and ended without giving it back; taken over")
    return bool(holder) and not _same(holder, "processes")


def _await_silence(run: Run, descriptor: int, holder: dict[str, Any], say: Callable[[str], None]) -> None:
    """Wait until a holder of whom nothing else can be known has not touched its lock for long enough.

    Raises:
        EgmfError: it touches it.
        _AgainError: it has removed it.
    """
    now, touched = _times(run, descriptor)
    left = SILENCE_S - (now - touched)
    if left > 0:
        say(
            f"run {run}: {_named(holder)} holds it and was alive {max(0.0, now - touched):.0f} s ago; "
            f"going on in {left:.0f} s if it stays silent (if that process is gone, removing {run.lock} saves the wait)"
        )
    else:
        time.sleep(_SETTLING_S)  # a lock that its file server still keeps is asked for again
    while now - touched < SILENCE_S:
        time.sleep(min(HEARTBEAT_S / 6, max(0.01, SILENCE_S - (now - touched))))
        now, seen = _times(run, descriptor)
        if seen != touched:
            raise _refusal(run)


def _refusal(run: Run) -> EgmfError:
    holder = _settled_holder(run)  # it has the lock and may be about to write its name
    who = _named(holder) if holder else "another process"
    if _same(holder, "processes") and not _alive(holder):
        who = f"a process that {who} left behind"
    return EgmfError(f"run {run}: {who} is training it; wait for it or stop it, or choose another name with --run")


def _alive(holder: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(int(holder["pid"]))
        return abs(process.create_time() - float(holder["started"])) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return False


def _times(run: Run, descriptor: int) -> tuple[float, float]:
    """Now, and when the holder last touched its lock, both by the clock of the file system."""
    _check_same(run, descriptor)
    probe = run.folder / f"{NOW_PREFIX}{secrets.token_hex(4)}"
    try:
        probe.write_bytes(b"0")
        now = probe.stat().st_mtime
        with open(run.lock, "rb") as file:  # opening asks an NFS server anew; a plain stat may be a minute old
            return now, os.fstat(file.fileno()).st_mtime
    except OSError as error:
        if not _is_gone(error):
            raise
        raise _AgainError from None
    finally:
        probe.unlink(missing_ok=True)


def _settled_holder(run: Run) -> dict[str, Any]:
    """What the lock file says, a moment allowed for its being written; empty where it stays without a word."""
    return _settled(run)[0]


def _settled(run: Run) -> tuple[dict[str, Any], OSError | None]:
    """The same, and why the system did not give the file, where that was so to the end."""
    until = time.monotonic() + _WRITING_S
    while True:
        holder, refused = _read(run)
        if holder or time.monotonic() > until:
            return holder, refused
        time.sleep(0.1)


def _holder(run: Run) -> dict[str, Any]:
    """What the lock file says; empty where there is none, or it cannot be read."""
    return _read(run)[0]


def _read(run: Run) -> tuple[dict[str, Any], OSError | None]:
    try:
        return read_stamped(run.lock), None
    except DamagedError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            return {}, cause
        return {}, None


def _here() -> dict[str, str | None]:
    """What names this host, its running kernel, and the pid namespace in it; None where the system does not say."""

    def said(read: Callable[[], str]) -> str | None:
        try:
            return read().strip()
        except OSError:
            return None

    kernel = said(lambda: Path("/proc/sys/kernel/random/boot_id").read_text())
    namespace = said(lambda: os.readlink("/proc/self/ns/pid"))
    return {"host": socket.gethostname(), "kernel": kernel, "processes": kernel and f"{kernel} {namespace}"}


def _same(holder: dict[str, Any], what: str) -> bool:
    """Whether ``kernel`` or ``processes`` of a holder are this process's; by the host's name where one does not say."""
    here = _here()
    if holder.get(what) is None or here[what] is None:
        return holder.get("host") == here["host"]
    return bool(holder[what] == here[what])


def _named(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on host {holder.get('host')} (since {holder.get('since')})"


def _write(descriptor: int, launch: str) -> None:
    """In place: a new file under the name would be without our lock."""
    process = psutil.Process()
    holder = _here() | {
        "pid": process.pid,
        "started": process.create_time(),
        "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "launch": launch,
    }
    text = json.dumps(stamped(holder), indent=2).encode()
    os.pwrite(descriptor, text.ljust(_SIZE - 1) + b"\n", 0)
    os.ftruncate(descriptor, max(_SIZE, len(text) + 1))
    os.fsync(descriptor)


def _beat(descriptor: int, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with contextlib.suppress(OSError):
            os.utime(descriptor)
