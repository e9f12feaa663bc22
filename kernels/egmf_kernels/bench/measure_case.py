"""Each timed case in a process of its own: checked and compiled beside the others, timed when nothing else runs.

An illegal memory access, a crash or a compilation that never ends costs that one case. What a process finds goes to its
parent at once: the verdict on the case's own inputs, that it is ready, and after the parent's word rows and launches.
The parent gives that word to one process after the other, so whatever is timed has the GPU to itself.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from egmf_kernels import tiles
from egmf_kernels.bench import correct, measure_rows, processes
from egmf_kernels.bench.cases import Case, Inputs, Runner, gradients, pad, padded_pool
from egmf_kernels.bench.measure_time import Memory, Rates, Timing, launch_times, memory, patiently, timings

LONGEST = 60.0
"""Seconds after which a case that is being timed is given up."""
UNTIMED = "rehearsal, not a measurement"

Tell = Callable[[str, Any], None]
"""Called with what was found and its value: ``verdict`` a :class:`.correct.Verdict`, ``ready`` None, ``left`` a line,
``rows`` a list of rows, ``launches`` a list of launches. A parent hears ``fault`` and a line where a case broke off."""


@dataclass(frozen=True)
class Task:
    """One case and where it runs."""

    case: Case
    device: str
    rehearse: bool


class Prepared:
    """A case whose inputs are made, whose kernels and baseline are compiled, and whose correctness is known."""

    def __init__(self, task: Task, alone: Path, tell: Tell) -> None:
        """``alone`` is a file to lock: checks in fp64 are large, and many at once would not fit the memory."""
        self.task, self.tell = task, tell
        case = task.case
        self.inputs: Inputs = case.make(task.device, 1)
        try:
            patiently(lambda: _both(case.fused(), self.inputs))
            with _locked(alone):
                self.verdict = patiently(lambda: correct.check(case, self.inputs))
                self._release()
        except Exception as problem:
            self.verdict = correct.Verdict(case.name, case.operator, complaints=(processes.one_line(problem),))
        tell("verdict", self.verdict)
        self._synchronize()
        self.runners: dict[str, Runner] = {
            "eager": case.eager(),
            "compile": case.compiled("eager" if task.rehearse else "inductor"),
            "fused": case.fused(),
        }
        self.given = dict.fromkeys(self.runners, self.inputs)
        try:
            patiently(lambda: _both(self.runners["compile"], self.inputs))
        except Exception as problem:
            tell("left", f"not measured: {case.name} compile: {processes.one_line(problem)}")
            self._synchronize()
            del self.runners["compile"]
        self._release()

    def measure(self, rates: Rates | None) -> None:
        """Tell rows and launches; an implementation that fails is left out and named. Without rates nothing is timed.

        Every implementation of a case is timed the same way.
        """
        case = self.task.case
        if case.operator == "ragged_pool_gate":
            self.runners["padded"], self.given["padded"] = padded_pool(case), pad(case, self.inputs)
        memories: dict[str, Memory] = {}
        calls: dict[str, Callable[[], Any]] = {}
        for name, run in self.runners.items():
            inputs = self.given[name]
            try:
                _both(run, inputs)
                if rates is not None:
                    memories[name] = memory(run, inputs)
            except Exception as problem:
                self.tell("left", f"not measured: {case.name} {name}: {processes.one_line(problem)}")
                self._synchronize()
                continue
            calls[f"{name} forward"] = lambda run=run, inputs=inputs: run(inputs)  # type: ignore[misc]
            calls[f"{name} both"] = lambda run=run, inputs=inputs: _both(run, inputs)  # type: ignore[misc]
        times: dict[str, dict[str, Timing]] = {name: {} for name in self.runners if f"{name} both" in calls}
        method = UNTIMED
        if rates is not None:
            method, taken = timings(calls)
            for key, timing in taken.items():
                name, direction = key.split()
                times[name][direction] = timing
        table = tiles.current(torch.device(self.task.device))
        self.tell("rows", measure_rows.case_rows(case, self.verdict.correct, times, memories, method, rates, table))
        if "fused" in times:
            self.tell("launches", launch_times(self.runners["fused"], self.inputs, timed=rates is not None))

    def _synchronize(self) -> None:
        """Raise where the device has failed: nothing that this process says after that is a finding."""
        if self.task.device == "cuda":
            torch.cuda.synchronize()

    def _release(self) -> None:
        """Memory that this process does not need while it waits is there for the others."""
        if self.task.device == "cuda":
            torch.cuda.empty_cache()


class Cases:
    """The processes of all cases: at most ``at_once`` prepare at a time, those that are ready wait."""

    def __init__(self, tasks: Sequence[Task], at_once: int, tell: Callable[[Case, str, Any], None]) -> None:
        self.waiting = list(tasks)
        self.order = {task: place for place, task in enumerate(tasks)}
        self.at_once = at_once
        self.tell = tell
        self.preparing: dict[Any, tuple[Task, Any]] = {}
        self.ready: dict[Any, tuple[Task, Any]] = {}
        self._context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()

    def poll(self, timeout: float = 0.0) -> None:
        """Take what has come and start what may start."""
        while self.waiting and len(self.preparing) < self.at_once:
            task = self.waiting.pop(0)
            ours, theirs = self._context.Pipe()
            alone = Path(self._folder.name) / "alone"
            process = self._context.Process(target=_serve, args=(theirs, task, alone))
            process.start()
            theirs.close()
            self.preparing[ours] = (task, process)
        for connection in wait(list(self.preparing), timeout=timeout):
            task, process = self.preparing[connection]
            kind = self._take(connection, task, process)
            if kind in ("ready", "end"):
                del self.preparing[connection]
            if kind == "ready":
                self.ready[connection] = (task, process)

    def prepare(self, deadline: float) -> None:
        """Wait until every process is ready; what is not by ``deadline`` (``time.monotonic()``) is ended and named."""
        self.poll()
        while (self.preparing or self.waiting) and time.monotonic() < deadline:
            self.poll(timeout=min(1.0, max(0.0, deadline - time.monotonic())))
        for task, process in self.preparing.values():
            _end(process)
            self.tell(task.case, "left", f"not measured: {task.case.name}: not compiled in time")
        for task in self.waiting:
            self.tell(task.case, "left", f"not measured: {task.case.name}: not started in time")
        self.preparing, self.waiting = {}, []

    def measure(self, rates: Rates | None, end: float) -> None:
        """Let one process after the other take its times, in the order of the cases, until ``end``."""
        for connection, (task, process) in sorted(self.ready.items(), key=lambda item: self.order[item[1][0]]):
            limit = min(end, time.monotonic() + LONGEST)
            if time.monotonic() >= end:
                self.tell(task.case, "left", f"not measured: {task.case.name}: out of time")
                continue
            with suppress(OSError):  # where it is gone, its end is read below
                connection.send(rates)
            kind = ""
            while kind != "end" and (left := limit - time.monotonic()) > 0:
                if connection.poll(left):
                    kind = self._take(connection, task, process)
            if kind != "end":
                self.tell(task.case, "left", f"not measured: {task.case.name}: not finished in {LONGEST:g} s")
            _end(process)
        self.close()

    def close(self) -> None:
        """End every process that is left."""
        for _, process in [*self.preparing.values(), *self.ready.values()]:
            _end(process)
        self.preparing, self.ready, self.waiting = {}, {}, []
        self._folder.cleanup()

    def _take(self, connection: Any, task: Task, process: Any) -> str:
        """Pass one message on; an "end" without the process's own word is a fault of that case."""
        try:
            kind, value = connection.recv()
        except (EOFError, OSError):
            process.join()
            kind, value = "end", f"its process ended with code {process.exitcode}"
        if kind == "end":
            if value:
                self.tell(task.case, "fault", value)
        else:
            self.tell(task.case, kind, value)
        return str(kind)


def in_this_process(
    tasks: Sequence[Task], rates: Rates | None, end: float, tell: Callable[[Case, str, Any], None]
) -> None:
    """Prepare and measure one case after the other here (a rehearsal, tests)."""
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks:
            case = task.case
            if time.monotonic() >= end:
                tell(case, "left", f"not measured: {case.name}: out of time")
                continue
            torch._dynamo.reset()
            try:
                Prepared(task, Path(folder) / "alone", partial(tell, case)).measure(rates)
            except Exception as problem:
                tell(case, "fault", processes.one_line(problem))


def _serve(connection: Any, task: Task, alone: Path) -> None:
    """A case's process; it ends with its parent."""

    def tell(kind: str, value: Any) -> None:
        connection.send((kind, value))

    torch.set_num_threads(1)
    try:
        fault = ""
        try:
            prepared = Prepared(task, alone, tell)
            tell("ready", None)
            prepared.measure(connection.recv())
        except (EOFError, OSError):
            raise
        except Exception as problem:
            fault = processes.one_line(problem)
        tell("end", fault)
    except (EOFError, OSError):
        return  # the parent is gone


def _both(run: Runner, inputs: Inputs) -> dict[str, torch.Tensor]:
    return gradients(run(inputs)[0], inputs)


def _end(process: Any) -> None:
    if process.is_alive():
        process.kill()
    process.join()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock; the system gives it up for a process that dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
