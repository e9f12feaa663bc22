"""A rank that gets no further is named, with its stack, long before a collective gives up on it.

A thread in every rank looks at what its training thread is doing: its stack, instruction by instruction. Nothing is
asked of the training itself. Every rank says so to all in the process group's own key-value store, through a
connection of its own. Where a training thread has stood at one instruction for ``limit`` seconds its rank reads what
the others say: who does not answer (a stopped process, a host that is gone), who stands outside of a collective while
the others wait in one, and where. One rank that stands still writes a line for a person; each of them writes
its threads' stacks to a file.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch.distributed as dist

from egmf_dist import distributed
from egmf_dist.run.folder import Run
from egmf_dist.training.stacks import stack_of, waits_for_ranks, where

_MOST_INTERVAL_S = 5.0
"""Between two looks; a quarter of the limit where that is less."""
_LOOKS = 4
"""So many looks after the limit a rank that has not been heard does not answer."""


class Beat(NamedTuple):
    """What a rank says of itself."""

    rank: int
    number: int
    """Counts looks: a rank whose number stays does not answer."""
    step: int
    still_s: float
    """Its training thread has stood at one instruction for so long."""
    waits: bool
    """In a collective."""
    where: str
    host: str


def described(beats: Sequence[Beat], silent: Sequence[int], limit: float) -> str:
    """What keeps a training from getting further, in words.

    Args:
        beats: every rank's that has ever said anything.
        silent: ranks that do not answer.
        limit: seconds at one instruction that are too long; a rank that has stood for less may go round in a circle.
    """
    said, heard = [], [beat for beat in beats if beat.rank not in silent]
    for rank in silent:
        last = next((f", last seen in step {beat.step} on {beat.host}" for beat in beats if beat.rank == rank), "")
        said.append(f"rank {rank} does not answer (a stopped process, or its host is gone){last}")
    moving = [beat for beat in heard if beat.still_s < limit]
    said += [
        f"rank {beat.rank} on {beat.host} (step {beat.step}) moved {beat.still_s:.0f} s ago, at {beat.where}"
        for beat in moving
    ]
    guilty = [beat for beat in heard if not beat.waits and beat not in moving]
    said += [f"rank {beat.rank} on {beat.host} (step {beat.step}) is at {beat.where}" for beat in guilty]
    places: dict[str, list[int]] = {}
    for beat in heard:
        if beat.waits and beat not in moving:
            places.setdefault(beat.where, []).append(beat.rank)
    for place, ranks in places.items():
        named = f"rank {ranks[0]} waits" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} wait"
        said.append(f"{named} for others at {place}")
    head = "some ranks have got no further" if moving else "no rank has got further"
    return f"{head} for {limit:g} s: {'; '.join(said)}"


def speaks(beats: Sequence[Beat], silent: Sequence[int], limit: float) -> int:
    """The rank that says so: the lowest that has stood still for too long itself, because no other looks at the rest.

    Args:
        beats: every rank's that has ever said anything.
        silent: ranks that do not answer.
        limit: seconds that are too long.
    """
    return min(beat.rank for beat in beats if beat.rank not in silent and beat.still_s >= limit)


class Watch:
    """The thread of one rank.

    Args:
        run: where stacks and the line go.
        limit: seconds at one instruction that are too long.
        step: which optimiser step the training is in.
    """

    def __init__(self, run: Run, limit: float, step: Callable[[], int]) -> None:
        self.run, self.limit, self.step = run, limit, step
        self.stacks = run.folder / "stacks"
        self.rank, self.ranks = distributed.rank(), distributed.world_size()
        self.interval = min(_MOST_INTERVAL_S, limit / 4)
        self._watched, self._number = threading.get_ident(), 0
        self._seen: tuple[tuple[int, int], ...] = ()
        self._waits, self._where = False, ""
        self._since = time.monotonic()
        self._over = threading.Event()
        self._store = _own_connection() if self.ranks > 1 else None
        self._asking: threading.Thread | None = None
        self._thread = threading.Thread(target=self._go_on, name="egmf-health", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Watch no more."""
        self._over.set()
        self._thread.join(self.interval + 10)

    def _go_on(self) -> None:
        looks, before = 0, dict[int, Beat]()
        while not self._over.wait(self.interval):
            if self._look():
                looks = 0
            answers = self._tell()
            if time.monotonic() - self._since < self.limit:
                continue
            looks += 1
            with contextlib.suppress(OSError):
                if looks == 1:
                    self._write_stacks()
                    before = self._read() if answers else {}
                elif looks == _LOOKS:  # others look at other moments, and it takes them a while
                    self._name(self._read() if answers else {}, before)

    def _look(self) -> bool:
        """Whether the training has moved since the look before; the frames are let go when this returns."""
        frames = stack_of(self._watched)
        seen = tuple((id(f.f_code), f.f_lasti) for f in frames)
        moved = seen != self._seen
        if moved:
            self._seen, self._since = seen, time.monotonic()
            self._waits, self._where = waits_for_ranks(frames), where(frames) if frames else "its end"
        return moved

    def _tell(self) -> bool:
        """Say what this rank is doing; false where the store is gone."""
        self._number += 1
        still = round(time.monotonic() - self._since, 1)
        self._beat = Beat(self.rank, self._number, self.step(), still, self._waits, self._where, platform.node())
        if self._store is None:
            return True
        said = json.dumps(self._beat)
        return self._answer(lambda store: store.set(_key(self.rank), said)) is not None

    def _answer(self, ask: Callable[[Any], Any]) -> tuple[Any] | None:
        """What the store says, as a tuple of one; None where it is gone. A stopped one would be waited for for ever, so
        each question has a thread of its own."""
        if self._asking is not None and self._asking.is_alive():
            return None
        found: list[Any] = []

        def work() -> None:
            with contextlib.suppress(RuntimeError, ValueError, TypeError):
                found.append(ask(self._store))

        self._asking = threading.Thread(target=work, name="egmf-health-asks", daemon=True)
        self._asking.start()
        self._asking.join(self.interval)
        return (found[0],) if found else None

    def _write_stacks(self) -> None:
        self.stacks.mkdir(exist_ok=True)
        with open(self.stacks / f"rank-{self.rank}.txt", "w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)

    def _name(self, now: dict[int, Beat], before: dict[int, Beat]) -> None:
        heard = {rank for rank, beat in now.items() if rank in before and beat.number != before[rank].number}
        silent = [rank for rank in range(self.ranks) if rank not in heard and rank != self.rank]
        beats = [beat for rank, beat in now.items() if rank != self.rank]
        if not now:  # the store is rank 0's, and of the others nothing is known
            silent = [] if self._store is None else [0]
        beats = sorted([*beats, self._beat])
        if not now and self.ranks > 1:
            speaker = min(rank for rank in range(self.ranks) if rank not in silent)
        else:
            speaker = speaks(beats, silent, self.limit)
        if speaker != self.rank:
            return
        message = f"{described(beats, silent, self.limit)}; stacks: {self.stacks}"
        print(f"warning: {message}", file=sys.stderr, flush=True)
        # Rank 0's file, in which any rank may have to write: rank 0 may be the one that hangs.
        with open(self.run.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": "warning", "step": self._beat.step, "message": message}) + "\n")

    def _read(self) -> dict[int, Beat]:
        def read(store: Any) -> dict[int, Beat]:
            there = list(range(self.ranks))
            if not store.check([_key(rank) for rank in there]):  # one has never said anything
                there = [rank for rank in there if store.check([_key(rank)])]
            said = store.multi_get([_key(rank) for rank in there])
            return {rank: Beat(*json.loads(text)) for rank, text in zip(there, said, strict=True)}

        if self._store is None:
            return {}
        (found,) = self._answer(read) or ({},)
        return dict(found)


@contextlib.contextmanager
def watching(run: Run, limit: float, step: Callable[[], int]) -> Iterator[None]:
    """Watch this thread during the body; every rank must enter this. ``limit`` 0 watches nothing."""
    if not limit:
        yield
        return
    watch = Watch(run, limit, step)
    try:
        yield
    finally:
        watch.end()


def _own_connection() -> Any:
    """To the store that the ranks met in: a thread must not wait behind the training's own calls."""
    store: Any = dist.distributed_c10d._get_default_store()
    return store.clone()


def _key(rank: int) -> str:
    return f"egmf-health/{rank}"
