"""What a thread is doing, seen from another one: its stack, and whether it waits for other ranks or for its loader.

Frames are looked at and let go at once: one that is kept holds every local of its function, a step's tensors among
them.
"""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_WAITING = ("torch/distributed/", "deepspeed/comm/", "ray/train/collective/")
"""Parts of files' names in which a thread waits for other ranks."""
_HANDLES = "deepspeed/runtime/"
"""Where a collective is begun in one line and waited for in another, by its handle: ``handle.wait()``, or
``instrument_w_nvtx(handle.wait)()``, which has a frame of its own in between."""
_BETWEEN = "deepspeed/utils/nvtx.py"
_WAIT = re.compile(r"\.wait\b")
_OURS = Path(__file__).parents[1].name
_LOADER = f"{_OURS}/data/loader.py"


def stack_of(thread: int) -> list[FrameType]:
    """A thread's frames, the innermost first; none where it has ended."""
    return list(_frames(sys._current_frames().get(thread)))


def waits_for_ranks(frames: list[FrameType]) -> bool:
    """In a collective, or for one that was begun before."""
    if any(part in f.f_code.co_filename for f in frames for part in _WAITING):
        return True
    inner = next((f for f in frames if not f.f_code.co_filename.endswith(_BETWEEN)), None)
    if inner is None or _HANDLES not in inner.f_code.co_filename:
        return False
    return _WAIT.search(linecache.getline(inner.f_code.co_filename, inner.f_lineno)) is not None


def waits_for_loader(frames: list[FrameType]) -> bool:
    """For the next batch: a loader process is not done, or this process reads itself."""
    return any(f.f_code.co_filename.endswith(_LOADER) for f in frames)


def where(frames: list[FrameType]) -> str:
    """The innermost place in our own code, and the innermost of all where that is another."""
    inner = frames[0]
    ours = next((f for f in frames if f"{_OURS}/" in f.f_code.co_filename), inner)
    said = _place(ours)
    return said if ours is inner else f"{said} (in {_place(inner)})"


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _place(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return f"{path.parent.name}/{path.name}:{frame.f_lineno} {frame.f_code.co_name}"
