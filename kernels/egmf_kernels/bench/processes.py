"""Tasks in processes of their own: compiling is what costs time here, and it parallels.

Each task has a fresh process, so an illegal memory access or a crash is one task's failure. No timing runs here.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What became of a task: its value, or in one line why there is none.

    The value of a generator is the list of what it yielded, also where it did not come to its end.
    """

    value: Any = None
    error: str = ""


@dataclass(frozen=True)
class _Item:
    """What a task's generator yielded."""

    value: Any


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
    each: Callable[[Any, Any], None] | None = None,
) -> list[Outcome]:
    """``function`` of every task, ``workers`` processes at a time, in the order of ``tasks``.

    Args:
        function: importable by name; may be a generator, whose items come one by one and outlive their process.
        tasks: picklable.
        workers: 0 runs everything in this process.
        deadline: in ``time.monotonic()``; what has not finished by then is ended and has an error.
        say: called with one line as each task ends.
        each: called with a task and what its generator yielded, as it comes.

    Returns:
        One outcome per task.
    """
    outcomes = [Outcome(error="not started: out of time")] * len(tasks)
    items: list[list[Any]] = [[] for _ in tasks]

    def take(index: int, item: Any) -> None:
        items[index].append(item)
        if each is not None:
            each(tasks[index], item)

    def end(index: int, outcome: Outcome) -> None:
        outcomes[index] = Outcome(items[index], outcome.error) if items[index] else outcome
        if say is not None:
            say(f"{tasks[index]}: {outcome.error or 'done'}")

    if not workers:
        for index, task in enumerate(tasks):
            if time.monotonic() < deadline:
                end(index, _attempt(function, task, partial(take, index)))
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
            index, process = running[receiver]
            try:
                message = receiver.recv()
            except EOFError:
                process.join()
                message = Outcome(error=f"its process ended with code {process.exitcode}")
            if isinstance(message, _Item):
                take(index, message.value)
                continue
            del running[receiver]
            process.join()
            end(index, message)
        if time.monotonic() >= deadline:
            for index, process in running.values():
                process.kill()
                process.join()
                outcomes[index] = Outcome(items[index] or None, "not finished: out of time")
            break
    return outcomes


def _attempt(function: Callable[[Any], Any], task: Any, take: Callable[[Any], None]) -> Outcome:
    try:
        value = function(task)
        if not isinstance(value, Generator):
            return Outcome(value)
        for item in value:
            take(item)
    except Exception as error:
        return Outcome(error=one_line(error))
    return Outcome([])


def _child(sender: Any, function: Callable[[Any], Any], task: Any) -> None:
    sender.send(_attempt(function, task, lambda item: sender.send(_Item(item))))
    sender.close()
