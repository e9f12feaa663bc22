"""A run's trackers beside its training: each in a thread of its own, off at its first failure, found again later."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from egmf_dist.config import Config
from egmf_dist.files import write_json
from egmf_dist.formats import DamagedError, read_stamped, stamped
from egmf_dist.run.folder import Run
from egmf_dist.run.trackers import OPEN_S, TRACKERS, Opening, Tracker
from egmf_shards.messages import one_line

CLOSE_S = 60
"""The longest that an end waits for all of them together."""


class Worker:
    """One tracker in a thread: what it is asked for is done in that order, and the first thing that fails ends it.

    Args:
        name: what ``logging.to`` calls it.
        opening: what it is opened with.
    """

    def __init__(self, name: str, opening: Opening) -> None:
        self.name, self.failure = name, ""
        self.known: dict[str, str] = {}
        self._asked: SimpleQueue[Callable[[Tracker], None] | None] = SimpleQueue()
        self._opened = threading.Event()
        # A daemon: a process ends though a server may never answer.
        self._thread = threading.Thread(target=self._work, args=(opening,), name=f"tracker-{name}", daemon=True)
        self._thread.start()
        # Opened one after another, before loader processes are forked: imports in several threads lock each other out.
        if not self._opened.wait(OPEN_S):
            self.close(False)  # should it open after all
            self.failure = f"it did not open within {OPEN_S} s"

    def ask(self, action: Callable[[Tracker], None]) -> None:
        """Have something done; the caller waits for nothing."""
        if not self.failure:
            self._asked.put(action)

    def close(self, finished: bool) -> None:
        """Have it close after all it was asked for."""
        self.ask(lambda tracker: tracker.close(finished))
        self._asked.put(None)

    def wait(self, until: float) -> None:
        """Wait for its end, and no longer than until then (``time.monotonic``)."""
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive() and not self.failure:
            self.failure = f"it did not close within {CLOSE_S} s; the last records may be missing there"

    def _work(self, opening: Opening) -> None:
        tracker = None
        try:
            tracker = TRACKERS.find(self.name)(opening)
            self.known = dict(tracker.known)
            self._opened.set()
            for action in iter(self._asked.get, None):
                action(tracker)
        except BaseException as error:  # of a library in a thread: a SystemExit is nobody's wish to end here
            self.failure = f"{type(error).__name__}: {one_line(error)}"
            if tracker is not None:
                with contextlib.suppress(BaseException):
                    tracker.close(False)
        finally:
            self._opened.set()


class Trackers:
    """The trackers that a run's settings name, opened on rank 0.

    Args:
        run: the run.
        config: its settings.
        resumed_step: steps after this one are repeated.
    """

    def __init__(self, run: Run, config: Config, resumed_step: int) -> None:
        known = read_trackers(run)
        settings = asdict(config) | {"run": str(run.folder.absolute())}
        project, names = config.logging.project, config.logging.to
        self._workers = [
            Worker(name, Opening(run, settings, project, resumed_step, known.get(name, {}))) for name in names
        ]
        self._complaints: list[str] = []
        opened = {worker.name: worker.known for worker in self._workers if worker.known}
        self.where = {name: said["where"] for name, said in opened.items() if "where" in said}
        """Where a person finds the run, by tracker; those that were switched off are not among them."""
        if opened:
            try:
                write_json(run.trackers, stamped({"trackers": known | opened}))
            except OSError as error:
                self._complaints.append(f"{run.trackers} cannot be written ({error.strerror})")
        self.attach([run.config])

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Give every tracker numbers of a step."""
        for worker in self._workers:
            worker.ask(lambda tracker: tracker.add(step, numbers))

    def attach(self, files: Sequence[Path]) -> None:
        """Have every tracker keep copies of files in the run's folder, as they are when it comes to them."""
        for worker in self._workers:
            worker.ask(lambda tracker: tracker.attach(files))

    def complaints(self) -> list[str]:
        """Which trackers were switched off since this was asked last, and why: a line each."""
        failed = [worker for worker in self._workers if worker.failure]
        for worker in failed:
            self._workers.remove(worker)
            self.where.pop(worker.name, None)
        said = [f"logging.to: {worker.name} is switched off: {worker.failure}" for worker in failed]
        said, self._complaints = [*self._complaints, *said], []
        return said

    def close(self, finished: bool) -> None:
        """Close them all, as far as they do so in time. ``finished``: training came to its end."""
        for worker in self._workers:
            worker.close(finished)
        until = time.monotonic() + CLOSE_S
        for worker in self._workers:
            worker.wait(until)


def read_trackers(run: Run) -> dict[str, dict[str, str]]:
    """Each tracker's :attr:`egmf_dist.run.trackers.Tracker.known` of the run's newest start with it.

    Raises:
        EgmfError: a later version wrote it.
    """
    try:
        found = read_stamped(run.trackers).get("trackers")
    except DamagedError:
        return {}
    return found if isinstance(found, dict) else {}


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in a record of training or validation, by the names they have in every tracker."""
    if record["kind"] == "train":
        return _numbers({f"train/{name}": value for name, value in record.items() if name != "step"})
    return numbers_of_tasks("valid", record["tasks"]) if record["kind"] == "valid" else {}


def numbers_of_tasks(split: str, tasks: Mapping[str, Any]) -> dict[str, float]:
    """Every task's metrics on a split, by the names they have in every tracker."""
    return _numbers({f"{split}/{task}/{name}": v for task, one in tasks.items() for name, v in one["metrics"].items()})


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, int | float)}
