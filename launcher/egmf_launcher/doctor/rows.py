"""What a check says, and how one is run: with a time limit of its own, and never with a traceback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from egmf_dist.config import Config
from egmf_launcher.errors import one_line
from egmf_launcher.hostfile import Host
from egmf_launcher.network import is_this_machine

T = TypeVar("T")
Status = Literal["ok", "warning", "bad", "skipped"]
"""``bad`` would stop a training; ``warning`` would make it slow or fragile; ``skipped`` could not be looked at."""
HERE = "localhost"


class Row(NamedTuple):
    """One finding."""

    check: str
    host: str
    """Empty where it is about all of them."""
    status: Status
    found: str
    advice: str = ""
    """What to do; empty where nothing is needed."""


@dataclass(frozen=True)
class Facts:
    """What one machine's probe said."""

    said: dict[str, Any] = field(default_factory=dict)
    """A value for each fact that came."""
    failed: dict[str, str] = field(default_factory=dict)
    """For each other fact why it did not come."""
    problem: str | None = None
    """Why the machine could not be asked at all."""
    advice: str = ""
    clock_s: float | None = None
    """How far its clock is ahead of this one's at the least; 0 where it may be right."""


@dataclass(frozen=True)
class Case:
    """What is looked at."""

    hosts: tuple[Host, ...] = (Host(HERE, 1),)
    """The hostfile's machines; without a hostfile this one."""
    named: bool = False
    """A hostfile named them."""
    config: Config | None = None
    """Settings of the training that is meant; None: none were given."""
    run: Path = Path("runs")
    """Its folder; need not exist."""
    facts: dict[str, Facts] = field(default_factory=dict)
    """By the hosts' names."""

    @property
    def here(self) -> str:
        """This machine's name in the hostfile; the first host where it is not in there."""
        return next((host.name for host in self.hosts if is_this_machine(host.name)), self.hosts[0].name)

    def reached(self) -> dict[str, Facts]:
        """The facts of the hosts that answered."""
        return {name: facts for name, facts in self.facts.items() if facts.problem is None}


class Check(NamedTuple):
    """An entry of the list."""

    name: str
    function: Callable[[Case], Iterable[Row]]
    limit_s: float = 10.0


def limited(action: Callable[[], T], limit_s: float) -> T:
    """Do ``action`` within a time limit. One that hangs is left behind: its thread ends with the process.

    Raises:
        TimeoutError: it took longer.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(action())
        except BaseException as error:  # whatever it is, it is raised where somebody waits for it
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if failed:
        raise failed[0]
    if not done:
        raise TimeoutError(f"no answer within {limit_s:g} s")
    return done[0]


def rows_of(check: Check, case: Case) -> list[Row]:
    """The rows of one check; where it fails or hangs, the row that says so."""
    try:
        return list(limited(lambda: list(check.function(case)), check.limit_s))
    except TimeoutError as error:
        advice = "something it asks does not answer: a file server, a host, a driver; look for it, then run this again"
        return [Row(check.name, "", "bad", one_line(error).removeprefix("TimeoutError: "), advice)]
    except (Exception, SystemExit) as error:
        return [Row(check.name, "", "bad", f"the check itself failed: {one_line(error)}", "report this")]


def by_fact(case: Case, check: str, fact: str, judge: Callable[[str, Any], Row | Iterable[Row]]) -> Iterable[Row]:
    """A check of one fact: ``judge(host, value)`` for every host that said it, a row for every other that was reached.

    Args:
        case: what is looked at.
        check: name of the rows.
        fact: the probe's.
        judge: gives the row or rows of a host.
    """
    for host, facts in case.reached().items():
        if fact in facts.said:
            judged = judge(host, facts.said[fact])
            yield from [judged] if isinstance(judged, Row) else judged
        elif fact in facts.failed:
            yield Row(check, host, "bad", facts.failed[fact], "see what hangs or fails there with the same command")
        else:
            yield Row(check, host, "skipped", "its probe ended before that")


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names in a row, the first few of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
