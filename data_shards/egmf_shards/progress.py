"""A progress bar for long work: on standard error, and only where that is a terminal, so that logs stay readable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, track

T = TypeVar("T")


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """``items``, unchanged, with a bar while they are consumed; ``total`` is needed where ``items`` has no length."""
    console = Console(stderr=True)
    return track(items, description, total=total, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def byte_progress(description: str, total: int, position: Callable[[], int]) -> Iterator[None]:
    """A bar of ``total`` bytes that asks ``position`` how far the work is, ten times a second.

    The work itself calls nothing: a parser that reads single bytes would be slowed by a call for each.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with _Polled(*columns, console=console, transient=True, position=position) as bar:
        bar.add_task(description, total=total)
        yield


class _Polled(Progress):
    """Rich's bars; each time they are drawn, every task is where ``position`` says."""

    def __init__(
        self, *columns: TextColumn | BarColumn | DownloadColumn | TimeRemainingColumn, position: Callable[[], int],
        console: Console, transient: bool,
    ) -> None:  # fmt: skip
        self._position = position
        super().__init__(*columns, console=console, transient=transient)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Called by rich, from its own thread, for every frame."""
        for task_id in self.task_ids:
            self.update(task_id, completed=self._position())
        return super().get_renderables()
