"""``egmf predict``: a file of utterances answered by a model, with a progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def predict(
    path: Path, source: Path, out: Path, tasks: Sequence[str] | None, backbone: str | None, explain: Path | None = None
) -> int:
    """Answer and say how it went.

    Returns:
        0, or 1 where an utterance has no answer.

    Raises:
        EgmfError: the model cannot be loaded, the input cannot be read, or the output is another's.
    """
    from egmf_dist.inference.model import load
    from egmf_dist.inference.predict import predict_file

    model = load(path, backbone=backbone)
    print(model, flush=True)
    console = Console(stderr=True)
    columns = (TextColumn("answering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    start = time.perf_counter()
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        done = predict_file(model, source, out, tasks, advance, explain)
    seconds = time.perf_counter() - start
    answered = done.lines - done.before
    earlier = f", {done.before} by an earlier start" if done.before else ""
    print(f"{out}: {done.lines} utterances{earlier}; {answered / max(seconds, 1e-9):.1f} a second")
    if explain is not None and explain.is_dir():
        print(f"explanations: {explain}")
    if done.failed:
        print(f"warning: {done.failed} could not be answered, the first: {done.first_error}")
    return 1 if done.failed else 0
