"""What 468 points of a face mesh say: a chosen part of them, how far eyes, mouth and brows are open, how the head is
turned."""

from __future__ import annotations

import numpy as np

LIPS = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185,
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191,
)  # fmt: skip
EYES = (
    33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246,
    263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466,
)  # fmt: skip
BROWS = (46, 53, 52, 65, 55, 70, 63, 105, 66, 107, 276, 283, 282, 295, 285, 300, 293, 334, 296, 336)
NOSE = (168, 6, 197, 195, 5, 4, 1, 2, 98, 327)
OUTLINE = (10, 234, 454, 172, 397, 152)
CHOSEN = (*LIPS, *EYES, *BROWS, *NOSE, *OUTLINE)
"""Numbers of MediaPipe's face mesh. "Right" and "left" are the person's own."""
OPENINGS = (
    ("eye_right", 159, 145),
    ("eye_left", 386, 374),
    ("mouth", 13, 14),
    ("mouth_wide", 61, 291),
    ("brow_right", 105, 159),
    ("brow_left", 334, 386),
    ("brows", 107, 336),
    ("jaw", 1, 152),
)
"""Distances between two points, by that between the outer corners of the eyes."""
ANGLES = ("yaw", "pitch", "roll")
_RIGHT_EYE, _LEFT_EYE, _TOP, _CHIN = 33, 263, 10, 152


def normalised(points: np.ndarray) -> np.ndarray:
    """The chosen points around their middle, by their size in the picture.

    Args:
        points: float32 ``[468, 3]``, x to the right, y down, z away.

    Returns:
        float32 ``[len(CHOSEN), 3]`` whose x and y have a mean of 0 and a mean square of 1.
    """
    own = points[list(CHOSEN)]
    own = own - own.mean(0)
    size = float(np.sqrt((own[:, :2] ** 2).sum(1).mean()))
    return np.asarray(own / max(size, 1e-6), np.float32)


def openings(points: np.ndarray) -> np.ndarray:
    """float32 ``[len(OPENINGS)]``."""
    eyes = float(np.linalg.norm(points[_LEFT_EYE] - points[_RIGHT_EYE]))
    return np.array([np.linalg.norm(points[a] - points[b]) / max(eyes, 1e-6) for _, a, b in OPENINGS], np.float32)


def angles(points: np.ndarray, rolled: float) -> np.ndarray:
    """How the head is turned, by the line between the eyes and that from forehead to chin.

    Args:
        points: float32 ``[468, 3]`` of a crop that was turned upright.
        rolled: by how many degrees it was.

    Returns:
        float32 ``[3]``, in right angles: yaw (to the person's left is positive), pitch (down is positive), roll.
    """
    across = points[_LEFT_EYE] - points[_RIGHT_EYE]
    down = points[_CHIN] - points[_TOP]
    ahead = np.cross(across, down)
    ahead = ahead / max(float(np.linalg.norm(ahead)), 1e-6)
    yaw = np.degrees(np.arctan2(ahead[0], ahead[2]))
    pitch = np.degrees(np.arcsin(np.clip(ahead[1], -1, 1)))
    roll = np.degrees(np.arctan2(across[1], across[0])) + rolled
    return np.array([yaw, pitch, (roll + 180) % 360 - 180], np.float32) / np.float32(90)
