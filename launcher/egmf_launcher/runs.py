"""``egmf runs show``: how runs stand, as tables or JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from json import dumps
from pathlib import Path

from rich.console import Console
from rich.table import Table

from egmf_dist.run.status import Kept, Status, find_runs, read_status


def runs_show(path: str = "runs", /, quick: bool = False, json: bool = False) -> None:
    """Runs, their checkpoints and what --resume auto would go on from; nothing is written.

    Args:
        path: a run's folder, or a folder of runs
        quick: do not read checkpoints to compare them with their hashes
        json: print one JSON object in place of tables
    """
    found = [read_status(run, hashes=not quick) for run in find_runs(Path(path))]
    if json:
        print(dumps({"runs": [asdict(status) for status in found]}, ensure_ascii=False, indent=2))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)  # a file or a pipe has no width of its own
    if len(found) > 1:
        console.print(_overview(found, path), markup=False)
        return
    _show(found[0], console)


def _overview(found: Sequence[Status], folder: str) -> Table:
    table = Table(box=None, header_style="bold")
    for name in ("run", "state", "step", "loss", "checkpoints", "best", "resumes", "size"):
        table.add_column(name, justify="right" if name in ("step", "loss", "size") else "left", overflow="fold")
    for status in found:
        table.add_row(
            os.path.relpath(status.run, folder),
            status.state,
            _steps(status),
            _number(status.loss),
            ", ".join(f"{kept.step}{_mark(kept)}" for kept in status.checkpoints) or "none",
            "none" if status.best is None else f"{status.best.step}{_mark(status.best)} {_number(status.best.score)}",
            "refused" if not status.resume.possible else f"after step {status.resume.step}",
            size(status.bytes),
        )
    return table


def _show(status: Status, console: Console) -> None:
    def line(what: str, said: str) -> None:
        console.print(f"{what:<14} {said}", markup=False, soft_wrap=True)

    line("run", f"{status.run}, {size(status.bytes)}")
    line("state", f"{status.state}: {status.says}")
    logged = "" if status.logged_step is None else f"; loss {_number(status.loss)} at step {status.logged_step}"
    line("step", f"{_steps(status)}{logged}")
    best = status.best
    if best is None:
        line("best adapter", "none yet")
    else:
        chosen = "" if best.score is None else f", {_number(best.score)} ({best.selected_by})"
        line("best adapter", f"step {best.step}{chosen}, {size(best.bytes)}: {best.says}")
    line("--resume auto", status.resume.says)
    for reason in status.resume.passed_over:
        line("", reason)
    if status.checkpoints:
        table = Table(box=None, header_style="bold")
        for name in ("checkpoint", "size", "ranks", "sound", ""):
            table.add_column(name, justify="right" if name in ("size", "ranks") else "left", overflow="fold")
        for kept in status.checkpoints:
            sound = {True: "yes", False: "NO", None: "?"}[kept.sound]
            says = "" if kept.sound else kept.says
            table.add_row(f"step-{kept.step}", size(kept.bytes), str(kept.ranks or "?"), sound, says)
        console.print(table, markup=False)
    for name in status.unfinished:
        line("unfinished", f"{name}: being written, or left by a killed save; the next start removes it")


def _steps(status: Status) -> str:
    return f"{'-' if status.step is None else status.step}/{'?' if status.steps is None else status.steps}"


def _mark(kept: Kept) -> str:
    return {True: "", False: " (damaged)", None: "?"}[kept.sound]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def size(count: int) -> str:
    """Bytes in a unit that a person reads: ``1.3 MiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
