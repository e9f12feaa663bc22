"""``--include`` and ``--exclude``: which of a hostfile's machines and slots take part, in DeepSpeed's syntax.

``NAME[:SLOT[,SLOT ...]][@NAME...]``: ``worker-0@worker-1:0,2`` is all of worker-0 and two slots of worker-1. A slot is
a GPU by its number. DeepSpeed's own parser names no place in what it refuses, and importing it takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from egmf_dist.errors import EgmfError
from egmf_launcher.hostfile import Host

RIGHT = "NAME or NAME:SLOT,SLOT of the hostfile, joined by @, such as worker-0@worker-1:0,2"


def select(hosts: Sequence[Host], include: str | None, exclude: str | None) -> list[Host]:
    """The machines that take part, in the hostfile's order.

    Args:
        hosts: the hostfile's.
        include: these alone; None: all.
        exclude: all but these; None: all.

    Raises:
        EgmfError: both are given, neither fits the hostfile, or nothing is left.
    """
    if include is not None and exclude is not None:
        raise EgmfError("--include and --exclude exclude each other: leave one of them out")
    text, option = (include, "--include") if include is not None else (exclude, "--exclude")
    if text is None:
        return list(hosts)
    named = _named(text, option, hosts)
    chosen = []
    for host in hosts:
        slots = set(range(host.slots))
        given = named.get(host.name, set())
        left = sorted(slots & given if include is not None else slots - given)
        if left:
            chosen.append(host if len(left) == host.slots else replace(host, slots=len(left), chosen=tuple(left)))
    if not chosen:
        raise EgmfError(f"{option} {text}: no slot of the hostfile is left")
    return chosen


def _named(text: str, option: str, hosts: Sequence[Host]) -> dict[str, set[int]]:
    """Slots by machine."""
    known = {host.name: host.slots for host in hosts}
    named: dict[str, set[int]] = {}
    for part in text.split("@"):
        name, colon, slots = part.strip().partition(":")
        if name not in known:
            raise EgmfError(f"{option} {text}: {name!r} is no machine of the hostfile; it must be {RIGHT}")
        if not colon:
            named.setdefault(name, set()).update(range(known[name]))
            continue
        for slot in slots.split(","):
            if not slot.strip().isdecimal() or int(slot) >= known[name]:
                raise EgmfError(
                    f"{option} {text}: {name} has no slot {slot.strip()!r}, but 0 to {known[name] - 1}; "
                    f"it must be {RIGHT}"
                )
            named.setdefault(name, set()).add(int(slot))
    return named
