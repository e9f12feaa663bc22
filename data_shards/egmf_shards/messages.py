"""Foreign values and errors in a message of one line."""

from __future__ import annotations

from types import NoneType
from typing import Any


def shown(value: Any) -> str:
    """A value of a file; a container by its type alone, because it may be of any size."""
    if isinstance(value, str | float | bool | NoneType):
        return repr(value)[:60]
    if isinstance(value, int):
        return repr(value) if abs(value) < 1 << 63 else "a number beyond 2^63"
    return f"a {type(value).__name__}"


def one_line(error: BaseException) -> str:
    """What a parser says about hostile input; its type where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__
