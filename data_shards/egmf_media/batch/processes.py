"""Processes that extract, one clip each at a time. A clip that ends or hangs its process harms no other.

Processes are spawned (a forked one would share FFmpeg's and OpenCV's state), with one thread each, and results come in
the order of the tasks.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from egmf_media.errors import MediaError
from egmf_media.extract import FAILED, Outcome, extract_one
from egmf_media.extractors import Plan, extractors_of
from egmf_media.limits import Limits
from egmf_media.messages import one_line

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_AHEAD = 8
"""Results a process that may wait for an earlier one's."""


class Task(NamedTuple):
    """What is to be done with one clip."""

    path: Path
    streams: Sequence[str]


@dataclass
class Result:
    """What came of a task."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    peak: int = 0
    """The most bytes that its process has held so far."""


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    number: int | None = None
    """Of its task."""
    deadline: float = float("inf")
    left: list[str] = field(default_factory=list)
    ready: bool = False


def run_tasks(tasks: Sequence[Task], plan: Plan, limits: Limits, processes: int) -> Iterator[Result]:
    """The results of tasks, in their order.

    Args:
        tasks: what is to be done.
        plan: by stream the settings of its extractor.
        limits: of a clip.
        processes: how many at once.

    Raises:
        MediaError: processes cannot be started.
    """
    pool = _Pool(tasks, plan, limits, min(processes, len(tasks)))
    try:
        yield from pool.results()
    finally:
        pool.close()


class _Pool:
    def __init__(self, tasks: Sequence[Task], plan: Plan, limits: Limits, processes: int) -> None:
        self.tasks, self.plan, self.limits, self.processes = tasks, plan, limits, processes
        self.waiting = deque((number, list(task.streams)) for number, task in enumerate(tasks))
        self.done: dict[int, Result] = {number: Result() for number in range(len(tasks))}
        self.finished: set[int] = set()
        self.workers: list[_Worker] = []

    def results(self) -> Iterator[Result]:
        for number in range(len(self.tasks)):
            while number not in self.finished:
                self._start_and_assign(number)
                self._wait()
            yield self.done.pop(number)

    def _start_and_assign(self, oldest: int) -> None:
        busy = sum(worker.number is not None for worker in self.workers)
        while len(self.workers) < min(self.processes, len(self.waiting) + busy):
            self.workers.append(self._started())
        for worker in self.workers:
            if worker.ready and worker.number is None and self.waiting:
                if self.waiting[0][0] > oldest + self.processes * _AHEAD:
                    return
                worker.number, worker.left = self.waiting.popleft()
                worker.deadline = time.monotonic() + self.limits.max_wall_seconds
                with suppress(OSError):  # it has died: its end is seen below
                    worker.pipe.send((self.tasks[worker.number].path, worker.left))

    def _started(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.plan, self.limits), daemon=True)
        with one_thread_each():
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def _wait(self) -> None:
        now = time.monotonic()
        soonest = min((worker.deadline for worker in self.workers), default=now + 1)
        readable = wait([worker.pipe for worker in self.workers], max(0.0, min(soonest - now, 5.0)))
        for worker in list(self.workers):
            if worker.pipe in readable:
                self._hear(worker)
            elif worker.number is not None and time.monotonic() > worker.deadline:
                worker.process.kill()
                self._lost(worker, f"took longer than {self.limits.max_wall_seconds:.0f} s (max_wall_seconds)")

    def _hear(self, worker: _Worker) -> None:
        try:
            kind, *said = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(10)
            self._lost(worker, f"ended its process ({ended(worker.process.exitcode)})")
            return
        if kind == "ready":
            worker.ready = True
        elif kind == "broken":
            raise MediaError(f"a process for extraction cannot begin: {said[0]}")
        else:
            assert worker.number is not None
            result = self.done[worker.number]
            if kind == "outcome":
                stream, outcome = said
                result.outcomes[stream] = outcome
                worker.left = worker.left[1:]
                worker.deadline = time.monotonic() + self.limits.max_wall_seconds
            else:
                result.peak = said[0]
                self.finished.add(worker.number)
                worker.number, worker.deadline = None, float("inf")

    def _lost(self, worker: _Worker, reason: str) -> None:
        """The stream that it was at has failed; those behind it are tried by another process."""
        self.workers.remove(worker)
        worker.pipe.close()
        if not worker.ready:
            raise MediaError(
                f"a process for extraction {reason} before it began; a script that extracts needs "
                "`if __name__ == '__main__':` around what it does"
            )
        if worker.number is None:
            return
        if worker.left:
            self.done[worker.number].outcomes[worker.left[0]] = Outcome(FAILED, reason, lasting=False)
        if worker.left[1:]:
            self.waiting.appendleft((worker.number, worker.left[1:]))
        else:
            self.finished.add(worker.number)

    def close(self) -> None:
        """End all."""
        for worker in self.workers:
            worker.process.kill()
            worker.process.join(5)
            worker.pipe.close()


def ended(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


@contextmanager
def one_thread_each() -> Iterator[None]:
    """One thread for each library of a process that starts in here."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ |= dict.fromkeys(_THREADS, "1")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(pipe: Connection, plan: Plan, limits: Limits) -> None:
    """What a process does until nobody sends anything any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; who started this one ends it
    try:
        extractors = extractors_of(plan)
    except Exception as error:
        pipe.send(("broken", one_line(error)))
        return
    with suppress(EOFError, OSError):
        pipe.send(("ready",))
        while True:
            path, streams = pipe.recv()
            for stream in streams:
                pipe.send(("outcome", stream, extract_one(path, extractors[stream], limits)))
            pipe.send(("done", peak_bytes()))


def peak_bytes() -> int:
    """The most memory that this process has held."""
    with suppress(OSError, StopIteration):
        # On Linux what getrusage says begins with the memory of the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line.split()[1] for line in status if line.startswith("VmHWM"))) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
