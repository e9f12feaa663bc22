"""Reading a data set's CSV: UTF-8 with or without a byte-order mark, needed columns checked before any row is used."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from egmf_shards.errors import ShardError

# U+0080 to U+009F are control codes nobody types: they are Windows-1252 bytes that somebody decoded as Latin-1.
_CONTROL_1 = re.compile("[\x80-\x9f]")


@dataclass(frozen=True)
class Row:
    """One row: its cells by column, and where it stands for messages."""

    cells: dict[str, str]
    where: str

    def integer(self, column: str) -> int:
        """The cell as a whole number from 0.

        Raises:
            ShardError: it is none.
        """
        text = self.cells[column].strip()
        if not text.isascii() or not text.isdigit():
            raise ShardError(f"{self.where}: {column} is {text!r}; a whole number is needed")
        return int(text)


def read_csv(path: str | os.PathLike[str], columns: Sequence[str]) -> list[Row]:
    """All rows of a CSV file that must have ``columns`` (it may have more).

    Raises:
        ShardError: the file is missing, not UTF-8, lacks a column, holds no row, or a row has too few cells.
    """
    path = Path(path)
    rows = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            found = list(reader.fieldnames or ())
            for column in columns:
                if column not in found:
                    raise ShardError(
                        f"{path}: has no column {column!r}; its columns are {', '.join(found) or '(none)'}"
                    )
            for cells in reader:
                where = f"{path}, line {reader.line_num}"
                short = [column for column in columns if cells[column] is None]
                if short:
                    raise ShardError(f"{where}: the row ends before column {short[0]!r}")
                rows.append(Row({column: cells[column] or "" for column in found}, where))
    except FileNotFoundError as error:
        raise ShardError(f"{path}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise ShardError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise ShardError(f"{path}: not a readable CSV file ({error})") from error
    if not rows:
        raise ShardError(f"{path}: holds no row below its header")
    return rows


def clean_text(text: str) -> str:
    """The text as people typed it, by two rules and nothing else.

    1. A character U+0080 to U+009F is replaced by the Windows-1252 character of that byte (``\\x92`` is ``’``); the
       five bytes that Windows-1252 leaves undefined are dropped.
    2. Every run of white space (line breaks and no-break spaces too) becomes one space; none stays at the ends.
    """
    text = _CONTROL_1.sub(_windows_1252, text)
    return " ".join(text.split())


def _windows_1252(match: re.Match[str]) -> str:
    return match[0].encode("latin-1").decode("cp1252", errors="ignore")
