"""What the ``egmf bench`` verbs share: their console, tables, progress and files."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from egmf_dist.errors import EgmfError
from egmf_launcher.network import single_rank_environment

_FILE_WIDTH = 160
"""Characters a line where the tables go to a file or a pipe."""


def new_console() -> Console:
    """Wide enough for the tables where it is no terminal."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = max(console.width, _FILE_WIDTH)
    return console


@contextlib.contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Takes what is done, how many parts are, and how many there are."""
    columns = (BarColumn(bar_width=30), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda doing, done, total: bar.update(task, description=escape(doing), completed=done, total=total)


def make_folder(out: Path) -> None:
    """The folder exists afterwards and can be written.

    Raises:
        EgmfError: it cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise EgmfError(f"--out {out}: {error.strerror or error}; it must be a folder that can be written") from error


def kind_before(out: Path) -> str | None:
    """The ``kind`` of the summary that lies there; None where there is none, empty where it is nobody's."""
    before = out / "summary.json"
    if not before.is_file():
        return None
    try:
        return str(json.loads(before.read_text(encoding="utf-8"))["kind"])
    except (ValueError, KeyError, TypeError):
        return ""


def own_folder(out: Path, kinds: Sequence[str], command: str) -> None:
    """:func:`make_folder`, and another command's report does not lose its place.

    Raises:
        EgmfError: also where the summary there is of none of ``kinds``.
    """
    make_folder(out)
    if kind_before(out) not in (None, *kinds):
        raise EgmfError(f"{out / 'summary.json'}: not a report of {command}; give --out another folder")


def begin_on_one_rank(out: Path, kind: str, command: str) -> Console:
    """:func:`own_folder` and :func:`new_console`, in a process that is a world of one rank from here on.

    Raises:
        EgmfError: see :func:`own_folder`.
    """
    import torch

    console = new_console()
    own_folder(out, [kind], command)
    single_rank_environment()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return console


def say_notes(console: Console, summary: Mapping[str, Any], out: Path, written: Iterable[Path | None]) -> None:
    """The summary's notes, and which files were written."""
    for note in summary["notes"]:
        console.print(f"- {note}", markup=False)
    console.print(f"written to {out}: {', '.join(path.name for path in written if path)}", markup=False)


def write_files(summary: dict[str, Any], out: Path) -> list[Path]:
    """``summary.json``, and its ``rows`` as ``results.csv``."""
    from egmf_dist.files import write_json, write_text

    table = io.StringIO()
    writer = csv.DictWriter(table, list(summary["rows"][0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(summary["rows"])
    write_text(out / "results.csv", table.getvalue())
    write_json(out / "summary.json", summary)
    return [out / "summary.json", out / "results.csv"]


def make_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Rows with the same keys, which are the headings; numbers to the right."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in rows[0] if rows else ():
        numbers = any(isinstance(row[heading], int | float) for row in rows)
        table.add_column(heading, no_wrap=True, justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    return table


def picked(columns: Mapping[str, str], rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each row the columns that are wanted, under their headings."""
    return [{heading: row.get(key) for key, heading in columns.items()} for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return escape(str(value))
