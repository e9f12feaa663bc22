"""Reading a data set's CSV: UTF-8 with or without a byte-order mark, needed columns checked before any row is used."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from egmf_shards.errors import ShardError
from egmf_shards.messages import shown

MAX_DIGITS = 15
"""Of a whole number in a cell; Python itself refuses to read one of more than 4,300."""


@dataclass(frozen=True)
class Row:
    """One row: its cells by column, and its place for messages."""

    cells: dict[str, str]
    where: str

    def integer(self, column: str) -> int:
        """The cell as a whole number from 0.

        Raises:
            ShardError: it is none.
        """
        text = self.cells[column].strip()
        if not text.isascii() or not text.isdigit() or len(text) > MAX_DIGITS:
            raise ShardError(f"{self.where}: {column} is {shown(text)}; a whole number is needed")
        return int(text)


def read_csv(path: str | os.PathLike[str], columns: Sequence[str]) -> list[Row]:
    """All rows of a CSV file that must have ``columns`` (it may have more).

    Raises:
        ShardError: the file is missing, not UTF-8, lacks a column, holds no row, or a row has more or fewer cells than
            the header, or a quote where none belongs; the message names the line in which the row begins.
    """
    path = Path(path)
    rows: list[Row] = []
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header: list[str] = []
            for cells in reader:
                where = f"{path}, line {line}"
                line = reader.line_num + 1
                if not cells:  # a blank line
                    continue
                if header:
                    rows.append(_row(cells, header, where))
                else:
                    header = cells
                    _check_header(header, columns, where)
    except FileNotFoundError as error:
        raise ShardError(f"{path}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise ShardError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise ShardError(f"{path}, line {line}: {_quote_fault(error)}") from error
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from error
    if not header:
        raise ShardError(f"{path}: is empty; a header with {', '.join(columns)} is needed")
    if not rows:
        raise ShardError(f"{path}: holds no row below its header")
    return rows


def _check_header(header: list[str], columns: Sequence[str], where: str) -> None:
    """Refuse a header that lacks one of ``columns`` or names it twice."""
    for column in columns:
        if header.count(column) == 1:
            continue
        if column in header:
            raise ShardError(f"{where}: the column {column!r} occurs {header.count(column)} times")
        alike = next((name for name in header if name.strip().lower() == column.lower()), None)
        if alike is not None:
            raise ShardError(
                f"{where}: the header says {alike!r} where {column!r} is needed; write it so, blanks and case too"
            )
        raise ShardError(f"{where}: has no column {column!r}; its columns are {', '.join(header) or '(none)'}"[:400])


def _row(cells: list[str], header: list[str], where: str) -> Row:
    if len(cells) < len(header):
        raise ShardError(
            f"{where}: the row ends before column {header[len(cells)]!r}: {len(cells)} cells, and the header has "
            f"{len(header)}"
        )
    if len(cells) > len(header):
        raise ShardError(
            f"{where}: the row has {len(cells)} cells, and the header has {len(header)}: a cell that holds a comma "
            'needs quotes around it ("so, and so")'
        )
    return Row(dict(zip(header, cells, strict=True)), where)


def _quote_fault(error: csv.Error) -> str:
    """What a quote that is not CSV's does to a row, and what would be right."""
    right = 'a cell with quotes in it is written "so, ""and"" so"'
    if "unexpected end" in str(error):
        return f"the row opens a quote that never closes; {right}"
    if "field larger" in str(error):
        return f"a cell of more than {csv.field_size_limit()} characters: a quote that never closes? {right}"
    if "expected after" in str(error):
        return f"something follows a closing quote; {right}"
    return f"not a readable CSV row ({error})"
