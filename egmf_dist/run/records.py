"""What a run writes while it trains: ``metrics.jsonl``, TensorBoard events, and the console."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

from egmf_dist.files import write_json_lines
from egmf_dist.run.console import Console
from egmf_dist.run.folder import Run


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; a line that a kill or a full disk cut short is left out, and no other."""
    records = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records


class Records:
    """Rank 0's sink of records; on other ranks every method does nothing.

    Args:
        run: the run.
        active: this is rank 0.
        console: also show records here (False where the launcher's driver follows the file and shows them).
        resumed_step: drop records after this step: the run repeats them.
    """

    def __init__(self, run: Run, active: bool, console: bool, resumed_step: int) -> None:
        self.active = active
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = run.metrics
        if path.exists():
            keep = [r for r in read_records(path) if r.get("step", 0) <= resumed_step and r["kind"] != "end"]
            write_json_lines(path, keep)
        self.file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (held for the whole run, closed in close)
        self.board = SummaryWriter(str(run.tensorboard), purge_step=resumed_step + 1 if resumed_step else None)
        self.console = Console() if console else None
        if self.console is not None:
            self.console.__enter__()

    def write(self, record: dict[str, Any]) -> None:
        """Append a record and show it; numbers of training and validation also go to TensorBoard."""
        if not self.active:
            return
        # NaN and infinities are no JSON: a number that is not finite stands as null.
        record = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self.file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        step = record.get("step", 0)
        if record["kind"] == "train":
            for name, value in record.items():
                if isinstance(value, int | float) and name != "step":
                    self.board.add_scalar(f"train/{name}", value, step)
        if record["kind"] == "valid":
            for task, result in record["tasks"].items():
                for name, value in result["metrics"].items():
                    if value is not None:
                        self.board.add_scalar(f"valid/{task}/{name}", value, step)
        if self.console is not None:
            self.console.show(record)

    def close(self) -> None:
        """Flush and close everything."""
        if not self.active:
            return
        self.file.close()
        self.board.close()
        if self.console is not None:
            self.console.__exit__()
