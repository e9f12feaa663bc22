"""What a run writes while it trains: ``metrics.jsonl``, what its trackers are given, and the console."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egmf_dist.config import Config
from egmf_dist.files import WaitingLines, write_json_lines
from egmf_dist.run.console import Console
from egmf_dist.run.folder import Run
from egmf_dist.run.tracking import Trackers, numbers_of

if TYPE_CHECKING:  # checkpoints are looked for with the help of records
    from egmf_dist.run.checkpoints import Progress

TOLD_TO_STOP = "told to stop by "
"""How the reason in an ``end`` record begins where a signal ended the training."""


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; a line that a kill or a full disk cut short is left out, and no other."""
    records = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records


def _stays(record: Mapping[str, Any], resumed: Progress) -> bool:
    """A validation that a checkpoint does not know of is done again, too."""
    step, kind = record.get("step", 0), record["kind"]
    return step <= (resumed.validated if kind == "valid" and step == resumed.step else resumed.step) and kind != "end"


def last_start_or_end(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The record that says how a run stands, empty where there is none: a tracker may still complain after the end, and
    a watch of a rank after anything."""
    return next((r for r in reversed(records) if r.get("kind") in ("start", "end")), {})


def ended(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether training came to its end, or was told to stop, and did not begin again."""
    return last_start_or_end(records).get("kind") == "end"


def _is_whole(path: Path, records: list[dict[str, Any]]) -> bool:
    """Whether a file holds its records and nothing that a kill or a full disk cut short."""
    lines = path.read_bytes().split(b"\n")
    return lines[-1] == b"" and len(lines) - 1 == len(records)


class Records:
    """Rank 0's sink of records; on other ranks every method does nothing.

    Args:
        run: the run.
        config: its settings, which name its trackers.
        active: this is rank 0.
        console: also show records here (False where the launcher's driver follows the file and shows them).
        resumed: where the run stands: records after it are dropped, because the run repeats them.
    """

    def __init__(self, run: Run, config: Config, active: bool, console: bool, resumed: Progress) -> None:
        self.active, self.finished, self.step = active, False, resumed.step
        if not active:
            return
        path = run.metrics
        if path.exists():
            there = read_records(path)
            kept = [r for r in there if _stays(r, resumed)]
            # A disk that is full lets a run go on where nothing changes.
            if len(kept) < len(there) or not _is_whole(path, there):
                write_json_lines(path, kept)
        path.open("ab").close()  # a folder that takes no file ends the start, not a step
        self._lines = WaitingLines(path)
        self.trackers = Trackers(run, config, resumed.step)
        self.console = Console() if console else None
        if self.console is not None:
            self.console.__enter__()

    def write(self, record: dict[str, Any]) -> None:
        """Append a record and show it; numbers of training and validation also go to the trackers."""
        if not self.active:
            return
        # NaN and infinities are no JSON: a number that is not finite stands as null.
        record = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        if record["kind"] == "start" and self.trackers.where:
            record["trackers"] = self.trackers.where
        self.finished = record["kind"] == "end"
        self.step = record.get("step", 0)
        self._append(record)
        numbers = numbers_of(record)
        if numbers:
            self.trackers.add(self.step, numbers)
        self._complain()

    def close(self) -> None:
        """Flush and close everything."""
        if not self.active:
            return
        self.trackers.close(self.finished)
        self._complain()
        if self.console is not None:
            self.console.__exit__()

    def _append(self, record: dict[str, Any]) -> None:
        self._lines.append(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        if self.console is not None:
            self.console.show(record)

    def _complain(self) -> None:
        for complaint in self.trackers.complaints():
            self._append({"kind": "warning", "step": self.step, "message": complaint})
