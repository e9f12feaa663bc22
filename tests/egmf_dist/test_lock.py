"""Who holds a run: seen from a second process, after a death, and from another host."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from egmf_dist.errors import EgmfError
from egmf_dist.run import lock
from egmf_dist.run.folder import Run
from egmf_dist.run.lock import check_held, held

HOLDER = """
import sys, time
from pathlib import Path
from egmf_dist.run.folder import Run
from egmf_dist.run.lock import held
with held(Run(Path(sys.argv[1])), "other"):
    print("held", flush=True)
    {then}
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def start(run: Run, then: str = "sys.stdin.readline()") -> subprocess.Popen[str]:
    """Another process that holds the run until it is told to leave."""
    command = [sys.executable, "-c", HOLDER.format(then=then), str(run)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_holds_the_run(run):
    process = start(run)
    with pytest.raises(EgmfError) as caught, held(run, "mine"):
        pass
    assert f"process {process.pid} on host {socket.gethostname()} (since 20" in str(caught.value)
    assert "is training it; wait for it or stop it" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert json.loads(run.lock.read_text())["launch"] == "other", "the holder was not disturbed"
    process.communicate("\n")
    assert take(run) == []
    assert list(run.folder.iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken_over_and_that_is_said(run):
    process = start(run)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (said,) = take(run)
    assert f"process {process.pid} on host {socket.gethostname()}" in said
    assert said.endswith("ended without giving it back; taken over")
    assert list(run.folder.iterdir()) == []


def test_a_loader_process_does_not_keep_the_lock_of_its_dead_trainer(run):
    """DataLoader forks; what a fork inherits must not be the lock."""
    process = start(run, "import os; os.fork() or print(os.getpid(), flush=True); time.sleep(60)")
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(child, 0)  # it is there
        assert len(take(run)) == 1
    finally:
        os.kill(child, signal.SIGKILL)


def write(run: Run, **holder: object) -> None:
    run.lock.write_text(json.dumps({"format": 2, "pid": 7, "since": "9:00", "launch": "other"} | holder))


def take(run: Run) -> list[str]:
    """Hold the run for a moment; what was said."""
    said: list[str] = []
    with held(run, "mine", said.append):
        assert json.loads(run.lock.read_text())["launch"] == "mine"
    return said


def silent_since(run: Run, seconds: float) -> None:
    touched = run.lock.stat().st_mtime - seconds
    os.utime(run.lock, (touched, touched))


def test_a_holder_on_another_host_is_waited_for_until_it_has_been_silent(run, monkeypatch):
    write(run, host="elsewhere.invalid", started=0.0)
    silent_since(run, lock.SILENCE_S - 1.5)
    waits, taken = take(run)
    assert "process 7 on host elsewhere.invalid (since 9:00) holds it and was alive 29" in waits
    assert "if it stays silent" in waits
    assert f"removing {run.lock} saves the wait" in waits
    assert "host elsewhere.invalid" in taken

    write(run, host="elsewhere.invalid", started=0.0)
    silent_since(run, 10)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: os.utime(run.lock))  # it beats
    with pytest.raises(EgmfError, match=r"process 7 on host elsewhere.invalid .* is training it; wait for it or stop"):
        held(run, "mine", lambda said: None).__enter__()
    assert [p.name for p in run.folder.iterdir()] == [run.lock.name]


@pytest.mark.parametrize("named", ["kernel", "processes"])
def test_a_name_shared_by_two_machines_or_containers_does_not_make_them_one(run, named):
    """Clones and containers share host names, and each mount of a store may have locks of its own."""
    here = lock._here()
    assert here["kernel"]
    assert here["processes"]
    # A process of the same number and time lives here; it is not the holder.
    process = psutil.Process()
    holder = here | {"pid": process.pid, "started": process.create_time(), "processes": "another", named: "another"}
    write(run, **holder)
    silent_since(run, lock.SILENCE_S - 0.2)
    waits, _ = take(run)
    assert "if it stays silent" in waits
    write(run, **(here | {"host": "another.invalid", "pid": process.pid, "started": 1.0}))
    (said,) = take(run)
    assert "another.invalid" in said, "the same processes under another name, and this one is gone"
    write(run, **(here | {"pid": process.pid, "started": process.create_time()}))
    with pytest.raises(EgmfError, match=f"process {process.pid} on host .* is training it"):
        take(run)


def test_a_holder_that_leaves_while_it_is_waited_for_is_no_holder(run, monkeypatch):
    """In its scheduler's grace period, or the user removes the file as the line says: the run is free."""
    write(run, host="elsewhere.invalid", started=0.0)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: run.lock.unlink())
    (waits,) = take(run)
    assert "if it stays silent" in waits


def test_a_lock_that_its_file_server_keeps_is_asked_for_again(run, monkeypatch):
    """NFS keeps a dead client's lock until its lease ends: who is silent for long enough is waited for, not obeyed."""
    write(run, host="elsewhere.invalid", started=0.0)
    silent_since(run, lock.SILENCE_S + 1)
    keeps = os.open(run.lock, os.O_RDWR)
    fcntl.flock(keeps, fcntl.LOCK_EX)
    monkeypatch.setattr(lock, "_SETTLING_S", 0.3)
    threading.Timer(1.0, os.close, [keeps]).start()
    (said,) = take(run)
    assert "host elsewhere.invalid" in said
    monkeypatch.setattr(lock, "SILENCE_S", 0.0)
    write(run, host="elsewhere.invalid", started=0.0)
    keeps = os.open(run.lock, os.O_RDWR)
    fcntl.flock(keeps, fcntl.LOCK_EX)
    with pytest.raises(EgmfError, match=r"elsewhere.invalid .* is silent, but its file server keeps its lock"):
        take(run)
    os.close(keeps)


def test_of_two_starts_without_locks_the_last_writer_has_the_run(run, monkeypatch):
    monkeypatch.setattr(lock, "_lock", lambda descriptor: lock.UNKNOWN)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: write(run, host="elsewhere.invalid"))
    with pytest.raises(EgmfError, match=r"elsewhere.invalid .* is training it"):
        take(run)


def test_without_locks_of_the_file_system_the_process_is_looked_for(run, monkeypatch):
    def unknown(descriptor: int, operation: int) -> None:
        raise OSError(lock._NO_LOCKS[0], "no locks available")

    process = start(run)
    monkeypatch.setattr(fcntl, "flock", unknown)
    with pytest.raises(EgmfError, match=f"process {process.pid} on host .* is training it"), held(run, "mine"):
        pass
    holder = json.loads(run.lock.read_text())
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(take(run)) == 1
    write(run, **(holder | {"pid": os.getpid()}))  # the number is another process's by now
    assert len(take(run)) == 1


def test_the_holder_shows_that_it_lives_and_notices_that_it_was_given_up(run, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(lock, "_WRITING_S", 0.1)
    with held(run, "mine"):
        os.utime(run.lock, (1.0, 1.0))
        for _ in range(500):
            if run.lock.stat().st_mtime > 1.0:
                break
            lock.time.sleep(0.01)
        assert run.lock.stat().st_mtime > 1.0
        check_held(run, "mine")
        check_held(run, None)
        write(run, host="elsewhere.invalid")
        with pytest.raises(EgmfError, match=r"process 7 on host elsewhere.invalid .* has taken it over"):
            check_held(run, "mine")
        for left in ("", '{"format": 2, "host', '{"format": 2}'):
            run.lock.write_text(left)
            with pytest.raises(EgmfError, match=r"this start ends here"):
                check_held(run, "mine")
        run.lock.unlink()
        with pytest.raises(EgmfError, match=r"lock.json is gone or damaged, so it is not held; this start ends here"):
            check_held(run, "mine")
        write(run, host="elsewhere.invalid")
    assert run.lock.exists(), "it is not this launch's to remove"


def test_a_lock_that_cannot_be_read_is_not_one_that_is_gone(run, monkeypatch):
    """A file server that does not answer for a moment: nothing is known, and nobody is told that it was given up."""
    monkeypatch.setattr(lock, "_WRITING_S", 0.2)
    real = Path.read_text

    def stale(path: Path, **arguments: str) -> str:
        if path == run.lock:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return real(path, **arguments)

    with held(run, "mine"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", stale)
            with pytest.raises(OSError, match="Stale file handle"):
                check_held(run, "mine")
        check_held(run, "mine")
        asked: list[float] = []
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", stale)
            patch.setattr(lock.time, "sleep", lambda seconds: asked.append(seconds) or patch.undo())
            check_held(run, "mine")
        assert asked, "it was asked again"


def test_a_lock_that_is_just_being_written_is_looked_at_again(run, monkeypatch):
    with held(run, "mine"):
        text = run.lock.read_text()
        run.lock.write_text("")
        monkeypatch.setattr(lock.time, "sleep", lambda seconds: run.lock.write_text(text))
        check_held(run, "mine")
        assert len(text) == lock._SIZE, "one write over the old text, whole or not there"


def test_whoever_waits_for_the_lock_does_not_get_a_removed_file(run, monkeypatch):
    """The holder removes its file while it holds it; the second then has a lock on a file without a name."""
    real, calls = lock._lock, []

    def leave_first(descriptor: int) -> str:
        calls.append(descriptor)
        if len(calls) == 1:
            run.lock.unlink()
        return real(descriptor)

    monkeypatch.setattr(lock, "_lock", leave_first)
    with held(run, "mine"):
        assert json.loads(run.lock.read_text())["launch"] == "mine"
    assert len(calls) == 2


def test_a_handle_that_nfs_calls_stale_is_a_file_that_is_gone(run, monkeypatch):
    write(run, host="elsewhere.invalid", started=0.0)
    real, held_first = os.fstat, run.lock.stat().st_ino

    def fstat(descriptor: int) -> os.stat_result:
        if real(descriptor).st_ino == held_first and real(descriptor).st_nlink == 0:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(descriptor)

    monkeypatch.setattr(lock.os, "fstat", fstat)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: run.lock.unlink())
    (waits,) = take(run)
    assert "if it stays silent" in waits


def test_who_waited_for_one_silent_holder_do_not_both_have_the_run(run, monkeypatch):
    """Where locks are local to a host both are locked, and both wake at the same moment."""
    write(run, host="elsewhere.invalid", started=0.0)
    silent_since(run, lock.SILENCE_S + 1)
    monkeypatch.setattr(lock, "_lock", lambda descriptor: lock.LOCKED)
    calls: list[float] = []

    def sleep(seconds: float) -> None:
        calls.append(seconds)
        if len(calls) == 2:  # settling, after our name was written
            write(run, host="third.invalid")

    monkeypatch.setattr(lock.time, "sleep", sleep)
    with pytest.raises(EgmfError, match=r"third.invalid .* is training it"):
        take(run)
