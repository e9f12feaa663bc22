"""Foreign values and errors in a message of one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import NoneType
from typing import Any


def shown(value: Any) -> str:
    """A value of a file; a container by its type alone, because it may be of any size."""
    if isinstance(value, str | float | bool | NoneType):
        return repr(value)[:60]
    if isinstance(value, int):
        return repr(value) if abs(value) < 1 << 63 else "a number beyond 2^63"
    return f"a {type(value).__name__}"


def unbroken(text: str) -> str:
    """``text`` in one line: every run of white space becomes one space."""
    return " ".join(text.split())


def one_line(error: BaseException) -> str:
    """What a parser says about hostile input; its type where it says nothing."""
    return unbroken(str(error))[:200] or type(error).__name__


def listed(items: Sequence[str], most: int = 10) -> str:
    """Names of a file, in one line and at most ``most`` of them."""
    return ", ".join(ascii(item)[:80] for item in items[:most]) + (", ..." if len(items) > most else "")


def json_reason(error: BaseException) -> str:
    """Why a text is no JSON, from what :func:`json.loads` or its like raised."""
    if isinstance(error, json.JSONDecodeError):
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return f"{error.msg}, {place}"
    if isinstance(error, RecursionError | MemoryError):
        return "nested too deeply"
    if "integer string conversion" in str(error):  # Python's own limit, which its message tells how to lift
        return "a whole number of more than 4300 digits"
    return one_line(error)
