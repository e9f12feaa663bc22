"""Told to stop: a signal sets a flag, and the ranks agree on it where a step begins.

A handler does nothing but note the signal, so it may come at any moment and on any rank: launchers send it to one rank
after another, up to 30 s apart. The all-reduce that every step begins with carries the flag to all, and they save one
checkpoint together (:func:`egmf_dist.training.loop.train`). Under Ray ranks get no signals of a job; there the driver
leaves a file in the run's folder, which rank 0 looks for.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from egmf_dist.errors import EgmfError
from egmf_dist.files import write_json
from egmf_dist.formats import read_stamped, stamped
from egmf_dist.run.folder import Run

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""SIGUSR1 is Slurm's notice before a time limit (``sbatch --signal=B:USR1@120``)."""


class Stopping:
    """Whether this rank was told to stop.

    Args:
        run: the run, in whose folder a driver may leave a note.
        launch: the launch's token; a note of another launch is none.
        looks: this rank looks for the note.
    """

    def __init__(self, run: Run, launch: str | None, looks: bool) -> None:
        self._run, self._launch, self._looks = run, launch, looks
        self._by: str | None = None

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Take a signal. A second Ctrl-C is for somebody who will not wait."""
        if self._by is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._by = signal.Signals(number).name

    @property
    def by(self) -> str | None:
        """What told it so; None: nothing has."""
        if self._by is None and self._looks:
            # None is there, it is being written, or the disk does not answer: it is looked for again.
            with contextlib.suppress(EgmfError, OSError):
                note = read_stamped(self._run.stop) if self._run.stop.exists() else {}
                if note.get("launch") == self._launch:
                    self._by = note.get("signal")
        return self._by


Handler = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def listening(handler: Handler, numbers: Sequence[signal.Signals] = SIGNALS) -> Iterator[None]:
    """Give signals to a handler during the body, and to who had them before it afterwards.

    Only a process's main thread can: elsewhere, as in Ray's workers, nothing is taken.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def ask(run: Run, launch: str | None, number: int) -> None:
    """Leave a note for rank 0 of a launch."""
    write_json(run.stop, stamped({"launch": launch, "signal": signal.Signals(number).name}))
