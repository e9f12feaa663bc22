"""Progress on the driver's terminal, read from the run folder's ``metrics.jsonl`` instead of through Ray's log
forwarding.

Ray would print every worker's every line with a prefix. The file holds exactly what a person wants to see, and is
there for resumed runs, too: following begins at the file's end, so that old lines are not shown again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_POLL_S = 0.5


class LineFollower:
    """New complete lines of a growing file; a line that is still being written waits for its end.

    A run that is started again replaces the file by one without the lines after its checkpoint, and goes on with a
    record of kind ``start``, which holds its time: what stands before the last of those in a new file was shown before,
    and so was all of it where that one is the last that was met here.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._file: tuple[int, int] | None = None
        """Device and number of the file that was read last."""
        self._start = b""
        """The last line of kind ``start`` that was met."""
        for _ in self._new_lines():
            pass

    def new_records(self) -> Iterator[dict[str, Any]]:
        """The JSON objects of the lines that were completed since the last call."""
        for line in self._new_lines():
            record = _object(line)
            if record is not None:
                yield record

    def _new_lines(self) -> Iterator[bytes]:
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            number = (status.st_dev, status.st_ino)
            if self._file is not None and (number != self._file or status.st_size < self._offset):
                self._offset = self._resumed_at(file)
            self._file = number
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                if _is_start(line):
                    self._start = line
                yield line

    def _resumed_at(self, file: BinaryIO) -> int:
        """Where in a replaced file lines begin that were not shown."""
        found, offset = None, 0
        for line in file:
            if _is_start(line):
                found = None if line == self._start else offset
            offset += len(line) if line.endswith(b"\n") else 0
        return offset if found is None else found


def _is_start(line: bytes) -> bool:
    record = _object(line)
    return record is not None and record.get("kind") == "start"


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None  # cut short by a kill
    return record if isinstance(record, dict) else None


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
