"""A clip's pictures, as many a second as are wanted: picture k is what was seen at second k / rate of its clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from egmf_media.decode.container import frames_of, opened
from egmf_media.errors import AbsentError, MediaError
from egmf_media.limits import Limits

HOLD = 2.0
"""Seconds that a frame is seen while no other follows. Longer is no video that changes slowly, but damage."""
_EARLY = 0.002
"""Seconds that a frame's time may be late by rounding."""


@dataclass(frozen=True)
class Picture:
    """What was seen at one time."""

    second: float
    """Of the clip's clock."""
    image: np.ndarray | None
    """uint8 BGR ``[height, width, 3]``, upright; None: nothing was seen then. Where :attr:`same`, the one before."""
    same: bool = False
    """Whether no frame has come since the picture before: what was found on it holds."""


def read_pictures(path: Path, limits: Limits, rate: float, longest: int, counts: dict[str, Any]) -> Iterator[Picture]:
    """Decode all and give some, one after another.

    Args:
        path: the clip.
        limits: see there.
        rate: pictures a second.
        longest: pixels of a picture's longer side; larger frames are made smaller, smaller ones stay.
        counts: filled: ``frames_seen``, ``bad_packets``, ``rotation``, ``offset`` (where video begins), ``seconds``.

    Raises:
        AbsentError: the clip has no video.
        MediaError: it cannot be read.
    """
    counts |= {"bad_packets": 0, "frames_seen": 0}
    with opened(path, limits) as (container, streams):
        counts["video_streams"] = streams.video_count
        if streams.video is None:
            raise AbsentError("no video stream", counts)
        stream = container.streams[streams.video]
        limits.check_picture(stream.codec_context.width or 0, stream.codec_context.height or 0)
        guess = stream.average_rate or stream.guessed_rate
        usual = 1 / float(guess) if guess and 0.1 <= float(guess) <= 1000 else 0.04
        aspect = float(stream.sample_aspect_ratio or 1)
        timing = _Timing(streams.start, usual, rate, aspect if 0.2 < aspect < 5 else 1.0)
        yield from _sampled(frames_of(container, stream, counts), timing, longest, limits, counts)


def _sampled(
    frames: Iterator[Any], timing: _Timing, longest: int, limits: Limits, counts: dict[str, Any]
) -> Iterator[Picture]:
    """At every k / rate the last frame that has begun."""
    held = _Held(longest, timing.aspect)
    end, k = 0.0, 0
    for frame in frames:
        at = end if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base) - timing.start
        counts["frames_seen"] += 1
        limits.check_frames(counts["frames_seen"])
        limits.check_picture(frame.width, frame.height)
        limits.check_seconds(at)
        if held.frame is None:
            counts |= {"rotation": int(frame.rotation or 0), "offset": round(max(at, 0.0), 3)}
        elif at <= held.since:
            continue  # out of order: a damaged time
        while k / timing.rate + _EARLY < at:
            yield held.at(k / timing.rate)
            k += 1
        held.show(frame, at)
        own = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else timing.usual
        end = at + (own if 0 < own <= HOLD else timing.usual)
    if held.frame is None:
        if counts["bad_packets"]:
            raise MediaError(f"not one of {counts['bad_packets']} packets of its video can be decoded")
        raise AbsentError("the video stream is empty", counts)
    while k / timing.rate < end - _EARLY or not k:
        yield held.at(k / timing.rate)
        k += 1
    counts["seconds"] = round(end, 3)


@dataclass(frozen=True)
class _Timing:
    """Of a video stream."""

    start: float
    usual: float
    """Seconds that a frame is shown."""
    rate: float
    aspect: float
    """A pixel's width by its height."""


class _Held:
    """The frame that is seen, and its image once it was asked for."""

    def __init__(self, longest: int, aspect: float) -> None:
        self.longest, self.aspect = longest, aspect
        self.frame: Any = None
        self.since = 0.0
        self._image: np.ndarray | None = None

    def show(self, frame: Any, since: float) -> None:
        """Another one."""
        self.frame, self.since, self._image = frame, since, None

    def at(self, second: float) -> Picture:
        """What is seen then."""
        if self.frame is None or second - self.since > HOLD:
            return Picture(second, None)
        same = self._image is not None
        if self._image is None:
            self._image = upright(self.frame, self.longest, self.aspect)
        return Picture(second, self._image, same)


def upright(frame: Any, longest: int, aspect: float = 1.0) -> np.ndarray:
    """A frame as it is meant to be seen: square pixels, turned as its display matrix says.

    Args:
        frame: PyAV's.
        longest: pixels of the longer side at most.
        aspect: a pixel's width by its height.

    Returns:
        uint8 BGR ``[height, width, 3]``.
    """
    width, height = frame.width * aspect, float(frame.height)
    scale = min(1.0, longest / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = frame.to_ndarray(format="bgr24", width=size[0], height=size[1])
    turns = round((frame.rotation or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image
