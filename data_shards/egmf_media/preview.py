"""What a page shows of a clip: the outline of its sound, and some moments with the face that was found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from egmf_media.decode.pictures import read_pictures
from egmf_media.decode.sound import read_sound
from egmf_media.errors import AbsentError, MediaError
from egmf_media.limits import Limits
from egmf_media.vision.face import Face, one_thread

BINS = 400
"""Of the sound's outline."""
RATE = 2.0
"""Pictures a second among which moments are chosen."""
LONGEST = 240
"""Pixels of a moment's longer side."""
QUALITY = 75
"""Of its JPEG."""


@dataclass(frozen=True)
class Moment:
    """One picture."""

    second: float
    """Of the clip's clock."""
    jpeg: bytes
    box: tuple[float, float, float, float] | None
    """Of the largest face: left, top, width, height, as shares of the picture's width and height; None: no face was
    found, or nothing looks for one here."""
    faces: int
    """How many were found."""


@dataclass(frozen=True)
class Preview:
    """A clip as it is shown."""

    seconds: float
    """Long, as far as it was decoded."""
    outline: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32), repr=False)
    """float32 ``[bins, 2]``: the least and the largest sample of each piece, in -1 to 1; no bin where there is no
    sound."""
    moments: tuple[Moment, ...] = ()


def preview(path: Path, limits: Limits, moments: int) -> Preview | None:
    """What can be shown of a clip; None where it cannot be read at all.

    Args:
        path: of it.
        limits: see there.
        moments: how many pictures at most.
    """
    seen: tuple[Moment, ...] = ()
    outline, seconds = np.zeros((0, 2), np.float32), 0.0
    failed = 0
    try:
        sound = read_sound(path, limits)
        outline, seconds = _outline(sound.samples), len(sound.samples) / sound.rate
    except AbsentError:
        pass
    except Exception:  # a picture of a clip that fails is left out; what failed is said by its extraction
        failed += 1
    try:
        seen, length = _moments(path, limits, moments)
        seconds = max(seconds, length)
    except AbsentError:
        pass
    except Exception:
        failed += 1
    return Preview(seconds, outline, seen) if failed < 2 else None


def _outline(x: np.ndarray) -> np.ndarray:
    pieces = np.array_split(x, min(BINS, len(x)))
    return np.array([[piece.min(), piece.max()] for piece in pieces], np.float32)


def _moments(path: Path, limits: Limits, most: int) -> tuple[tuple[Moment, ...], float]:
    import cv2

    face, kept = Face(), []
    counts: dict[str, Any] = {}
    with one_thread():
        for picture in read_pictures(path, limits, RATE, LONGEST, counts):
            if picture.image is not None:
                kept.append((picture.second, picture.image))
        chosen = sorted({round(place) for place in np.linspace(0, len(kept) - 1, min(most, len(kept)))})
        looks = not face.missing
        found = []
        for second, image in (kept[number] for number in chosen):
            done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
            if not done:
                raise MediaError("a picture of it cannot be written")
            one = face.find(image) if looks else None
            height, width = image.shape[:2]
            box = None if one is None else tuple(float(x) for x in one.box / [width, height, width, height])
            found.append(Moment(second, data.tobytes(), box, one.count if one else 0))  # type: ignore[arg-type]
    return tuple(found), float(counts.get("seconds", 0.0))
