"""A run's records as a person reads them: a progress bar on a terminal, one line per record elsewhere."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Console:
    """Shows the records of ``metrics.jsonl``; use as a context manager so that the bar is taken down."""

    def __init__(self, total_steps: int | None = None, console: RichConsole | None = None) -> None:
        self.console = console or RichConsole(highlight=False, soft_wrap=True)
        self.progress: Progress | None = None
        if self.console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
            )
            self.task = self.progress.add_task("training", total=total_steps, note="")
        self.total = total_steps

    def __enter__(self) -> Console:
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def show(self, record: dict[str, Any]) -> None:
        """Render one record (kinds: start, train, valid, warning, end; others are passed over)."""
        kind = record.get("kind")
        if kind == "start":
            self.total = int(record["steps"])
            if self.progress is not None:
                self.progress.update(self.task, total=self.total, completed=record.get("step", 0))
            self._line(
                f"training: {self.total} steps of {record['global_batch']} samples on {record['ranks']} ranks, "
                f"ZeRO stage {record['zero_stage']}, {record['precision']}; "
                f"{record['trained_parameters']:,} of {record['parameters']:,} parameters are trained"
            )
            for key in ("backbone", "kernels", "scoring"):
                if record.get(key):
                    self._line(record[key])
            for name, where in record.get("trackers", {}).items():
                self._line(f"{name}: {where}")
            for key, (was, now) in record.get("changed", {}).items():
                self._line(f"changed: {key} was {was} and is now {now}")
            if record.get("step"):
                self._line(f"resumed after step {record['step']} (position {record['position']})")
        elif kind == "train":
            loss, grad_norm = (math.nan if record[key] is None else record[key] for key in ("loss", "grad_norm"))
            note = f"loss {loss:.3f}  lr {record['lr']:.1e}  {rate(record['samples_per_s'])} samples/s"
            if self.progress is not None:
                self.progress.update(self.task, completed=record["step"], note=note)
            else:
                self._line(f"step {record['step']}/{self.total}  {note}  grad {grad_norm:.2f}")
        elif kind == "valid":
            shown = "  ".join(
                f"{task} {name} {value:.3f}"
                for task, result in record["tasks"].items()
                for name, value in result["metrics"].items()
                if name in ("weighted_f1", "corr") and value is not None
            )
            best = "  (best so far)" if record["best"] else ""
            self._line(f"step {record['step']}: validation  {shown}{best}")
        elif kind == "warning":
            self._line(f"warning: {record['message']}")
        elif kind == "end":
            if self.progress is not None:
                self.progress.update(self.task, completed=record["step"])
            ended = f"training ended after step {record['step']}: {record['reason']}"
            self._line(f"{ended}; best adapter from step {record['best_step']}")

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False)


def rate(per_second: float) -> str:
    """Samples per second in two significant digits or more: a slow step's rate is not 0."""
    return f"{per_second:.0f}" if per_second >= 10 else f"{per_second:.2g}"
