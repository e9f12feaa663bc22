"""Progress on the driver's terminal, read from the run folder's ``metrics.jsonl`` instead of through Ray's log
forwarding.

Ray would print every worker's every line with a prefix. The file holds exactly what a person wants to see, and is
there for resumed runs, too: following begins at the file's end, so that old lines are not shown again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_POLL_S = 0.5


class LineFollower:
    """New complete lines of a growing file; a line that is still being written waits for its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        # A resumed run rewrites the file without the lines after its checkpoint; what was shown is known by its bytes.
        self._seen: set[bytes] = set()
        for _ in self._new_lines():
            pass

    def new_records(self) -> Iterator[dict[str, Any]]:
        """The JSON objects of the lines that were completed since the last call."""
        for line in self._new_lines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the rest of a line whose beginning was cut
            if isinstance(record, dict):
                yield record

    def _new_lines(self) -> Iterator[bytes]:
        if not self._path.exists():
            return
        if self._path.stat().st_size < self._offset:
            self._offset = 0
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                if line not in self._seen:
                    self._seen.add(line)
                    yield line


@contextmanager
def following(path: Path, show: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call ``show`` from a thread with every record that reaches ``path`` during the body, the last ones included."""
    follower = LineFollower(path)
    done = threading.Event()

    def loop() -> None:
        while True:
            last = done.wait(_POLL_S)
            for record in follower.new_records():
                show(record)
            if last:
                return

    thread = threading.Thread(target=loop, name="follow-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
