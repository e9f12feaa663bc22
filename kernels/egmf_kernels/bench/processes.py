"""Tasks in processes of their own: compiling is what costs time here, and it parallels.

Each task has a fresh process, so an illegal memory access or a crash is one task's failure. No timing runs here.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What became of a task: its value, or in one line why there is none."""

    value: Any = None
    error: str = ""


def default_workers() -> int:
    """Half of the cores, at most 8: each worker holds a CUDA context and feeds a compiler."""
    return max(1, min(8, len(os.sched_getaffinity(0)) // 2))


def one_line(error: BaseException) -> str:
    """Type and first line of an exception."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def run_tasks(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    workers: int,
    deadline: float,
    say: Callable[[str], None] | None = None,
) -> list[Outcome]:
    """``function`` of every task, ``workers`` processes at a time, in the order of ``tasks``.

    Args:
        function: importable by name.
        tasks: picklable.
        workers: 0 runs everything in this process.
        deadline: in ``time.monotonic()``; what has not finished by then is ended and has an error.
        say: called with one line as each task ends.

    Returns:
        One outcome per task.
    """
    outcomes = [Outcome(error="not started: out of time")] * len(tasks)
    if not workers:
        for index, task in enumerate(tasks):
            if time.monotonic() < deadline:
                outcomes[index] = _attempt(function, task)
                _tell(say, index, tasks, outcomes)
        return outcomes
    context = multiprocessing.get_context("spawn")
    waiting = list(enumerate(tasks))
    running: dict[Any, tuple[int, Any]] = {}
    while waiting or running:
        while waiting and len(running) < workers and time.monotonic() < deadline:
            index, task = waiting.pop(0)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(sender, function, task), daemon=False)
            process.start()
            sender.close()
            running[receiver] = (index, process)
        ready = wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
        for receiver in [r for r in running if r in ready]:
            index, process = running.pop(receiver)
            try:
                outcomes[index] = receiver.recv()
            except EOFError:
                process.join()
                outcomes[index] = Outcome(error=f"its process ended with code {process.exitcode}")
            process.join()
            _tell(say, index, tasks, outcomes)
        if time.monotonic() >= deadline:
            for index, process in running.values():
                process.kill()
                process.join()
                outcomes[index] = Outcome(error="not finished: out of time")
            break
    return outcomes


def _attempt(function: Callable[[Any], Any], task: Any) -> Outcome:
    try:
        return Outcome(function(task))
    except Exception as error:
        return Outcome(error=one_line(error))


def _child(sender: Any, function: Callable[[Any], Any], task: Any) -> None:
    sender.send(_attempt(function, task))
    sender.close()


def _tell(say: Callable[[str], None] | None, index: int, tasks: Sequence[Any], outcomes: list[Outcome]) -> None:
    if say is not None:
        say(f"{tasks[index]}: {outcomes[index].error or 'done'}")
