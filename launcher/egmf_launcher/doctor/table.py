"""``egmf doctor``: the list of checks, the verb, and its table."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from json import dumps
from pathlib import Path

from rich.console import Console
from rich.table import Table

from egmf_dist.config import AllSettings
from egmf_launcher.doctor import cluster, collective, machine, storage
from egmf_launcher.doctor.facts import gather
from egmf_launcher.doctor.rows import Case, Check, Row, rows_of
from egmf_launcher.errors import FAILURE_EXIT
from egmf_launcher.hostfile import parse_hostfile

CHECKS = (
    Check("hostfile", storage.hostfile),
    Check("ssh", machine.reached),
    Check("Python", machine.python),
    Check("packages", machine.packages),
    Check("extras", machine.extras),
    Check("egmf-dist", machine.source),
    Check("clock", machine.clock),
    Check("GPU", machine.gpus),
    Check("Triton", machine.triton),
    Check("ulimit -n", machine.open_files),
    Check("/dev/shm", machine.shared_memory),
    Check("OMP_NUM_THREADS", machine.threads),
    Check("folder", storage.working_folder),
    Check("run folder", storage.run_folder),
    Check("data", storage.data),
    Check("backbone", storage.backbone),
    Check("settings", storage.settings, 180.0),
    Check("Ray's ports", cluster.ports),
    Check("Ray", cluster.running, 15.0),
    Check("all-reduce", collective.here, collective.LIMIT_S + 15.0),
    Check("all-reduce", collective.between, collective.LIMIT_S + 15.0),
)
_STYLES = {"ok": "green", "warning": "yellow", "bad": "bold red", "skipped": "dim"}


def doctor(hostfile: str | None = None, run: str | None = None, json: bool = False, *, settings: AllSettings) -> int:
    """Look for what would stop a training on these machines, or make it slow.

    Args:
        hostfile: the machines to look at, 'name slots=N' a line; null: this one
        run: the folder of the run that is meant; null: runs/NAME of the config file, or runs
        json: print one JSON object in place of the table
        settings: of the training that is meant; without them data and backbone are not looked at.

    Returns:
        1 where something would stop a training, else 0.

    Raises:
        EgmfError: the hostfile or the settings are malformed.
    """
    named = Path("runs", settings.file.stem) if settings.file is not None else Path("runs")
    case = Case(
        config=settings.config() if settings.name_data else None,
        run=Path(os.path.normpath(run)) if run else named,
    )
    if hostfile is not None:
        case = replace(case, hosts=tuple(parse_hostfile(hostfile)), named=True)
    # Libraries talk while they are asked; what is printed here is the table, or JSON, alone.
    with contextlib.redirect_stdout(sys.stderr):
        rows = examine(case)
    ill = any(row.status == "bad" for row in rows)
    if json:
        print(dumps({"ok": not ill, "rows": [row._asdict() for row in rows]}, ensure_ascii=False, indent=2))
    else:
        show(rows)
    return FAILURE_EXIT if ill else 0


def examine(case: Case, checks: Sequence[Check] = CHECKS) -> list[Row]:
    """Ask the machines, then make every check."""
    case = replace(case, facts=gather(case))
    return [row for check in checks for row in rows_of(check, case)]


def show(rows: Sequence[Row]) -> None:
    """Print the table and one line that counts."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)  # a file or a pipe has no width of its own
    table = Table(box=None, header_style="bold")
    for name in ("check", "host", "", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for row in rows:
        style = _STYLES[row.status]
        cells = [row.check, row.host, row.status, row.found, row.advice if row.status != "ok" else ""]
        table.add_row(*[cell.replace("[", r"\[") for cell in cells], style=style if row.status != "ok" else None)
    console.print(table)
    count: Counter[str] = Counter(row.status for row in rows)
    said = ", ".join(f"{count[status]} {status}" for status in _STYLES if count[status])
    verdict = "something would stop a training" if count["bad"] else "nothing was found that would stop a training"
    console.print(f"{said}: {verdict}")
