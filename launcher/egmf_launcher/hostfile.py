"""The hostfile: which machines take part and how many workers each gives.

One line a machine, ``name slots=N``; ``#`` begins a comment; blank lines are skipped. DeepSpeed never sees the
hostfile that stands after the script's name, and silently trains on one machine where its own is missing, so this file
is read strictly: anything unexpected is an error that names the line. A name later becomes an argument of ``ssh``;
therefore only the characters of host names and addresses are let through, and never a leading ``-``, which ssh would
take for an option.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from egmf_dist.errors import EgmfError

RIGHT = "one line a machine such as 'localhost slots=2'"
# Letters, digits, dot, underscore and hyphen of DNS names; colons of IPv6; user@host as ssh takes it.
_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_:][A-Za-z0-9_.:-]*", re.ASCII)
_SLOTS = re.compile(r"slots=([0-9]{1,6})", re.ASCII)


@dataclass(frozen=True)
class Host:
    """One machine of a run."""

    name: str
    """As ssh knows it; ``localhost`` is the machine the run starts on."""
    slots: int
    """How many workers it gives, one for each GPU where there are GPUs; at least 1."""
    chosen: tuple[int, ...] = ()
    """Which of its GPUs, where not the first ``slots`` (:mod:`.selection`)."""


def parse_hostfile(path: str | os.PathLike[str]) -> list[Host]:
    """Read a hostfile.

    Returns:
        The machines in the file's order; at least one, no name twice.

    Raises:
        EgmfError: the file is missing, unreadable or empty, or a line is malformed; names file, line and what would be
            right.
    """
    file = Path(path)
    if not file.is_file():
        raise EgmfError(f"hostfile {file}: no such file; write {RIGHT} (see hostfile.example)")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EgmfError(f"hostfile {file}: cannot be read ({error}); it must be a text file with {RIGHT}") from error
    hosts: list[Host] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        content = line.split("#", 1)[0].strip()
        if not content:
            continue
        host = _parse_line(content, f"hostfile {file}, line {number}: {content!r}")
        if host.name in seen:
            raise EgmfError(
                f"hostfile {file}, line {number}: {content!r} repeats {host.name} of line {seen[host.name]}; "
                f"name each machine once, with all its slots"
            )
        seen[host.name] = number
        hosts.append(host)
    if not hosts:
        raise EgmfError(f"hostfile {file}: names no machine; write {RIGHT}")
    return hosts


def _parse_line(content: str, where: str) -> Host:
    """One stripped, non-empty line as a host; ``where`` begins the error's message."""
    words = content.split()
    if len(words) != 2:
        raise EgmfError(f"{where} is not a name and a number of slots; it must be {RIGHT}")
    name, slots = words
    if not _NAME.fullmatch(name):
        raise EgmfError(f"{where} has a name that is no host name or address; it must be {RIGHT}")
    match = _SLOTS.fullmatch(slots)
    if match is None:
        raise EgmfError(f"{where} ends in {slots!r} instead of slots=N; it must be {RIGHT}")
    if int(match[1]) < 1:
        raise EgmfError(f"{where} gives no slot; slots must be 1 or more, or leave the line out")
    return Host(name, int(match[1]))
