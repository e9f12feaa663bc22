"""The model's thread: samples of several requests answered together, in the order in which they came."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from egmf_dist.inference.utterance import Answer
from egmf_shards import Sample

GATHER_SECONDS = 0.005
"""How long the thread waits for others to come along before it answers a batch that is not full."""


@dataclass
class _Job:
    samples: Sequence[Sample]
    also: Callable[[], Any] | None
    future: Future[tuple[list[Answer], Any]] = field(default_factory=Future)


class Batcher:
    """One thread that alone touches the model.

    Args:
        answer: samples to answers, in their order.
        size: samples at once; a job of more comes alone.
        seen: called with the number of samples of each batch.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Sample]], list[Answer]],
        size: int,
        seen: Callable[[int], None] = lambda samples: None,
    ) -> None:
        self._answer, self._size, self._seen = answer, size, seen
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="egmf-model", daemon=True)
        self._thread.start()

    def submit(
        self, samples: Sequence[Sample], also: Callable[[], Any] | None = None
    ) -> Future[tuple[list[Answer], Any]]:
        """Have samples answered.

        Args:
            samples: of one request; they stay together.
            also: done in the same thread behind them, such as a look at the gate.

        Returns:
            Their answers in their order, and what ``also`` gave; an error of theirs alone. Cancelled before its turn
            it costs nothing.
        """
        job = _Job(samples, also)
        self._waiting.put(job)
        return job.future

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        held: _Job | None = None
        while True:
            first = held or self._waiting.get()
            held = None
            if first is None:
                return
            jobs, held, last = self._gathered(first)
            self._do([job for job in jobs if job.future.set_running_or_notify_cancel()])
            if last:
                return

    def _gathered(self, first: _Job) -> tuple[list[_Job], _Job | None, bool]:
        """Jobs that are answered together, one that did not fit in, and whether none comes any more."""
        jobs, count = [first], len(first.samples)
        end = time.monotonic() + GATHER_SECONDS
        while count < self._size:
            try:
                job = self._waiting.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                return jobs, None, True
            if count + len(job.samples) > self._size:
                return jobs, job, False
            jobs.append(job)
            count += len(job.samples)
        return jobs, None, False

    def _do(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        samples = [sample for job in jobs for sample in job.samples]
        self._seen(len(samples))
        try:
            answers = self._answer(samples)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:  # whose fault it is shows alone, and the others are answered
                self._do([job])
            return
        first = 0
        for job in jobs:
            own = answers[first : first + len(job.samples)]
            first += len(job.samples)
            try:
                job.future.set_result((own, job.also() if job.also else None))
            except Exception as error:
                job.future.set_exception(error)
