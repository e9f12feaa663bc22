"""Processes that stay and wait for clips, for a server: what a stranger sends is decoded in one of them alone.

Each has a limit of memory beyond what it needs itself, and each clip a limit of time; a process that a clip ends, or
that runs out of time, is replaced, and the clip has failed. Nothing of it reaches who asked, but a line.
"""

from __future__ import annotations

import multiprocessing
import queue
import resource
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from egmf_media.batch.processes import ended, one_thread_each
from egmf_media.errors import AbsentError, MediaError
from egmf_media.extract import FAILED, Outcome, extract_one
from egmf_media.extractors import Plan, extractors_of
from egmf_media.limits import Limits
from egmf_media.messages import one_line
from egmf_media.preview import Preview, preview

BEGIN_SECONDS = 300.0
"""How long a process may take to begin: it loads the extractors' weights."""


@dataclass(frozen=True)
class Recipe:
    """What each process is made of."""

    plan: Plan
    """By stream the settings of its extractor."""
    limits: Limits
    """Of a clip; ``max_wall_seconds`` is of all its streams together."""
    memory: int
    """Bytes that a clip may need beyond what the process holds when it is ready (Linux; elsewhere none is set)."""
    warm: Path | None = None
    """A clip that each extracts before it is ready, so that weights are loaded and count for no clip."""
    transcriber: str | None = None
    """A Whisper, for :meth:`Standing.transcribe`."""


@dataclass
class Extracted:
    """What came of a clip."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By stream."""
    preview: Preview | None = None
    """What is shown of it; None: it was not asked for, or failed."""


@dataclass(eq=False)
class _Process:
    process: Any
    pipe: Connection
    begun: float
    ready: bool = False

    def end(self) -> None:
        self.process.kill()
        self.process.join(5)
        self.pipe.close()


class Standing:
    """The processes. Methods may be called by several threads; each waits for a process that is free.

    Args:
        recipe: of each.
        count: how many.

    Raises:
        MediaError: an extractor cannot be made, or a process does not begin.
    """

    def __init__(self, recipe: Recipe, count: int = 1) -> None:
        self.recipe = recipe
        self._closed = threading.Event()
        self._free: queue.Queue[_Process | None] = queue.Queue()
        """Who waits for a clip; None is the place of one that could not be begun, which whoever takes it tries again.
        A place is never lost."""
        self._all: set[_Process] = set()
        self._lock = threading.Lock()
        try:
            begun = [self._begin() for _ in range(count)]
            for one in begun:
                self._await_ready(one)
        except BaseException:  # also SystemExit of a signal: processes that wait on would keep this one from its end
            self.close()
            raise
        for one in begun:
            self._free.put(one)

    def extract(self, path: Path, streams: Sequence[str], show: int = 0) -> Extracted:
        """Extract streams of a clip; whatever goes wrong is said in the outcomes.

        Args:
            path: of the clip, which nobody changes meanwhile.
            streams: of the plan.
            show: how many moments of it are shown, too; 0: no preview is made.

        Raises:
            MediaError: the processes are closed, or none can be begun any more.
        """
        found, left = Extracted(), list(streams)
        deadline = None
        while left or (show and found.preview is None):
            one = self._take()
            # The time begins with the clip's, not with that of who came before.
            deadline = deadline or time.monotonic() + self.recipe.limits.max_wall_seconds
            try:
                self._say(one, "extract", path, left, show)
                while True:
                    kind, *said = self._hear(one, deadline)
                    if kind == "outcome":
                        found.outcomes[said[0]] = said[1]
                        left = left[1:]
                    else:
                        found.preview = said[0]
                        break
                self._give_back(one)
                break
            except _LostError as lost:
                self._replace(one)
                if lost.late or not left:
                    for stream in left:
                        found.outcomes[stream] = Outcome(FAILED, str(lost), lasting=False)
                    break
                found.outcomes[left[0]] = Outcome(FAILED, str(lost), lasting=False)
                left = left[1:]
        return found

    def transcribe(self, path: Path) -> tuple[str, str, str]:
        """Text, language and model of what is said in a clip.

        Raises:
            AbsentError: nothing is said, or it cannot be made out.
            MediaError: the clip cannot be read, took too long, or no Whisper was named.
        """
        if self.recipe.transcriber is None:
            raise MediaError("no model for transcripts was named (--transcribe)")
        one = self._take()
        try:
            self._say(one, "transcribe", path)
            kind, *said = self._hear(one, time.monotonic() + self.recipe.limits.max_wall_seconds)
        except _LostError as lost:
            self._replace(one)
            raise MediaError(str(lost)) from lost
        self._give_back(one)
        if kind == "absent":
            raise AbsentError(said[0])
        if kind == "failed":
            raise MediaError(said[0])
        return said[0], said[1], said[2]

    def close(self) -> None:
        """End all, at once; who waits for one hears a MediaError."""
        self._closed.set()
        with self._lock:
            for one in self._all:
                one.end()
            self._all.clear()

    def _take(self) -> _Process:
        while not self._closed.is_set():
            with suppress(queue.Empty):
                one = self._free.get(timeout=0.2) or self._begun_again()
                try:
                    if one.ready and (one.pipe.poll() or not one.process.is_alive()):  # ended while nobody used it
                        raise MediaError(f"a process for clips ended ({ended(one.process.exitcode)})")
                    self._await_ready(one)
                except MediaError:
                    self._replace(one)
                    if self._closed.is_set() or not one.ready:
                        raise
                    continue
                return one
        raise MediaError("clips are no longer taken: the server stops")

    def _give_back(self, one: _Process) -> None:
        self._free.put(one)

    def _begun_again(self) -> _Process:
        """A process for a place that has none."""
        try:
            return self._begin()
        except MediaError:
            self._free.put(None)
            raise

    def _begin(self) -> _Process:
        context = multiprocessing.get_context("spawn")
        try:
            ours, theirs = context.Pipe()
        except OSError as error:
            raise MediaError(f"a process for clips cannot begin: {one_line(error)}") from error
        process = context.Process(target=_work, args=(theirs, self.recipe), daemon=True)
        try:
            with one_thread_each():
                process.start()
        except OSError as error:  # no memory, files or processes left, perhaps for a moment
            ours.close()
            raise MediaError(f"a process for clips cannot begin: {one_line(error)}") from error
        finally:
            theirs.close()
        one = _Process(process, ours, time.monotonic())
        with self._lock:
            if not self._closed.is_set():
                self._all.add(one)
                return one
        one.end()
        raise MediaError("clips are no longer taken: the server stops")

    def _await_ready(self, one: _Process) -> None:
        if one.ready:
            return
        try:
            kind, *said = self._hear(one, one.begun + BEGIN_SECONDS)
        except _LostError as lost:
            raise MediaError(f"a process for clips {lost} before it was ready") from lost
        if kind == "broken":
            raise MediaError(f"a process for clips cannot begin: {said[0]}")
        one.ready = True

    def _say(self, one: _Process, *what: Any) -> None:
        try:
            one.pipe.send(what)
        except OSError as error:
            one.process.join(5)
            raise _LostError(f"met a process that has ended ({ended(one.process.exitcode)})") from error

    def _hear(self, one: _Process, deadline: float) -> tuple[Any, ...]:
        try:
            while not one.pipe.poll(min(1.0, max(0.0, deadline - time.monotonic()))):
                if time.monotonic() >= deadline:
                    seconds = self.recipe.limits.max_wall_seconds
                    raise _LostError(f"took longer than {seconds:.0f} s to decode", late=True)
            said: tuple[Any, ...] = one.pipe.recv()
        except (EOFError, OSError) as error:
            one.process.join(5)
            raise _LostError(f"ended the process that decodes it ({ended(one.process.exitcode)})") from error
        return said

    def _replace(self, one: _Process) -> None:
        one.end()
        with self._lock:
            self._all.discard(one)
        if self._closed.is_set():
            return
        fresh = None
        with suppress(MediaError):  # whoever takes its place tries again, and says why it cannot be
            fresh = self._begin()
        self._free.put(fresh)


class _LostError(Exception):
    """A process is of no use any more; why."""

    def __init__(self, reason: str, late: bool = False) -> None:
        super().__init__(reason)
        self.late = late


def _work(pipe: Connection, recipe: Recipe) -> None:
    """What a process does until nobody sends anything any more."""
    for one in (signal.SIGINT, signal.SIGTERM):  # who started this one ends it, when it has answered
        signal.signal(one, signal.SIG_IGN)
    try:
        extractors = extractors_of(recipe.plan) if recipe.plan else {}
        transcriber = None
        if recipe.transcriber is not None:
            from egmf_media.encoders.whisper import Transcriber

            transcriber = Transcriber(recipe.transcriber)
        if recipe.warm is not None:
            for extractor in extractors.values():
                extract_one(recipe.warm, extractor, recipe.limits)
            preview(recipe.warm, recipe.limits, 1)
            if transcriber is not None:
                with suppress(AbsentError):
                    transcriber.read(recipe.warm, recipe.limits)
        limit_memory(recipe.memory)
    except Exception as error:
        pipe.send(("broken", one_line(error)))
        return
    with suppress(EOFError, OSError):
        pipe.send(("ready",))
        while True:
            kind, path, *rest = pipe.recv()
            if kind == "extract":
                streams, show = rest
                for stream in streams:
                    pipe.send(("outcome", stream, extract_one(path, extractors[stream], recipe.limits)))
                pipe.send(("done", preview(path, recipe.limits, show) if show else None))
            else:
                pipe.send(_transcribed(transcriber, path, recipe.limits))


def _transcribed(transcriber: Any, path: Path, limits: Limits) -> tuple[str, ...]:
    try:
        found = transcriber.read(path, limits)
    except AbsentError as error:
        return "absent", str(error)
    except MemoryError:
        return "failed", "needs more memory than there is"
    except Exception as error:  # as in extract_one: one clip's, not all's
        return "failed", one_line(error)
    return "done", found.text, found.language, found.model


def limit_memory(extra: int) -> None:
    """Let this process hold ``extra`` bytes beyond what it holds now, and no more; not where that cannot be said."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        held = int(next(line.split()[1] for line in lines if line.startswith("VmData"))) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (held + extra, held + extra))
