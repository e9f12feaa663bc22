"""A progress bar for long work: on standard error, and only where that is a terminal, so that logs stay readable."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """``items``, unchanged, with a bar while they are consumed; ``total`` is needed where ``items`` has no length."""
    console = Console(stderr=True)
    return track(items, description, total=total, console=console, transient=True, disable=not console.is_terminal)
