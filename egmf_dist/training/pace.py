"""A rank that keeps the others waiting, and one whose loader keeps it waiting, are named while the training goes on.

All ranks take the same time for a step: the slowest one's. What differs is how they spend it. A thread in every rank
looks at its training thread a few times a second: it waits for other ranks, or for its loader, or it works. At every
line of metrics the ranks share their sums in one small all-reduce between the hosts, and rank 0 judges a window of
them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from egmf_dist import distributed
from egmf_dist.training.stacks import stack_of, waits_for_loader, waits_for_ranks

_LOOK_S = 0.05
_WINDOW_S = 5.0
"""The least that is judged: at 20 looks a second a share is known to about one in ten."""
_WINDOWS = 3
"""So many in a row make a rank slow; a burst is none."""
_SLOWER = 0.2
"""Of the time: a rank works so much longer than half of the others do."""
_STARVES = 0.25
"""Of the time, waiting for its loader."""


class Spent(NamedTuple):
    """How a rank has spent a window, in seconds; what is neither is its own work."""

    all: float
    ranks: float
    """Waiting for other ranks."""
    loader: float
    """Waiting for its next batch."""


class Looking:
    """The thread of one rank: how the thread that makes it spends its time."""

    def __init__(self) -> None:
        self._watched, self._over = threading.get_ident(), threading.Event()
        self._looks = [0, 0, 0]
        self.restart()
        self._thread = threading.Thread(target=self._go_on, name="egmf-pace", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join(10)

    def restart(self) -> None:
        """Begin a new window."""
        self._since, self._looks = time.monotonic(), [0, 0, 0]

    def read(self) -> Spent:
        """How the time since the last reading was spent; begins a new window."""
        seconds, (ranks, loader, own) = time.monotonic() - self._since, self._looks
        self.restart()
        looks = max(1, ranks + loader + own)
        return Spent(seconds, seconds * ranks / looks, seconds * loader / looks)

    def _go_on(self) -> None:
        while not self._over.wait(_LOOK_S):
            self._looks[self._look()] += 1

    def _look(self) -> int:
        frames = stack_of(self._watched)
        # A complaint of the loader is shared with the others inside of it: who waits for ranks waits for ranks.
        return 0 if waits_for_ranks(frames) else 1 if waits_for_loader(frames) else 2


class Pace:
    """What rank 0 makes of all ranks' windows.

    Args:
        hosts: each rank's.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = hosts
        self._window = [Spent(0.0, 0.0, 0.0)] * len(hosts)
        self._row: dict[tuple[int, str], int] = {}
        self._said: set[tuple[int, str]] = set()

    def add(self, spent: Sequence[Spent]) -> list[str]:
        """Take what the ranks have spent since the call before.

        Returns:
            What a person should know, each once.
        """
        self._window = [Spent(*map(sum, zip(*pair, strict=True))) for pair in zip(self._window, spent, strict=True)]
        if min(one.all for one in self._window) < _WINDOW_S:
            return []
        found = judged(self._window, self.hosts)
        self._window = [Spent(0.0, 0.0, 0.0)] * len(self.hosts)
        self._row = {key: self._row.get(key, 0) + 1 for key in found}
        new = [key for key, times in self._row.items() if times >= _WINDOWS and key not in self._said]
        self._said.update(new)
        return [found[key] for key in new]


def judged(spent: Sequence[Spent], hosts: Sequence[str]) -> dict[tuple[int, str], str]:
    """Which ranks are slow or starve, by rank and reason, each with a line for a person."""
    found: dict[tuple[int, str], str] = {}
    works = [(one.all - one.ranks) / one.all for one in spent]
    for rank, (one, work) in enumerate(zip(spent, works, strict=True)):
        others = sorted(works[:rank] + works[rank + 1 :])
        usual = others[(len(others) - 1) // 2] if others else work
        starves = one.loader / one.all
        slow = work - usual
        if starves >= _STARVES:
            found[rank, "loader"] = (
                f"rank {rank} on {hosts[rank]} waits for its loader {starves:.0%} of the time"
                + (f", and the others for it {slow:.0%}" if slow >= _SLOWER else "")
                + "; more data.workers, or a faster place for the shards (data.cache_dir), would make steps shorter"
            )
        elif slow >= _SLOWER:
            found[rank, "slow"] = (
                f"rank {rank} on {hosts[rank]} is slower than the others: it works {work:.0%} of a step where half of "
                f"them need {usual:.0%} at most, and they wait for it; look at what else runs there, and at its clocks"
            )
    return found


@contextlib.contextmanager
def looking() -> Iterator[Looking]:
    """Look at this thread during the body."""
    looks = Looking()
    try:
        yield looks
    finally:
        looks.end()


def shared(spent: Spent) -> list[Spent]:
    """Every rank's, on every rank; a collective between the hosts."""
    return [Spent(*one) for one in distributed.share_numbers(spent)]
