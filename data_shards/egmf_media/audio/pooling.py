"""From hops of 10 ms to frames of 100 ms: mean, deviation and share of what was heard, or voiced."""

from __future__ import annotations

import numpy as np

from egmf_media.audio.mel import HOP
from egmf_media.decode.sound import Sound

POOLED = 10
"""Hops of a frame."""


def rows_of(hops: int) -> int:
    """Frames of so many hops: not one more for the few milliseconds by which an encoder fills its last packet up,
    which one container remembers and another does not."""
    return max(1, round(hops / POOLED))


def heard_hops(sound: Sound, hops: int) -> np.ndarray:
    """Whether more than half of a hop is decoded sound; bool ``[hops]``."""
    edges = np.zeros(hops * HOP + 1, np.int32)
    for first, last in sound.heard:
        edges[first] += 1
        edges[min(last, hops * HOP)] -= 1
    there = np.cumsum(edges[:-1]).reshape(hops, HOP)
    inside = np.minimum(HOP, np.maximum(len(sound.samples) - np.arange(hops) * HOP, 1))
    return np.asarray(2 * (there > 0).sum(1) >= inside)


def pooled(x: np.ndarray, weight: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and deviation of the hops that count, and their share of each frame.

    Args:
        x: float32 ``[hops, C]``.
        weight: bool ``[hops]``, which count.
        rows: frames, of :data:`POOLED` hops each; what a last one lacks counts for nothing.

    Returns:
        float32 ``[rows, C]`` twice, and ``[rows, 1]``.
    """
    x, weight = x[: rows * POOLED], weight[: rows * POOLED]
    lacking = rows * POOLED - len(x)
    w = np.pad(weight, (0, lacking)).reshape(rows, POOLED, 1).astype(np.float32)
    there = np.pad(np.ones(len(x), np.float32), (0, lacking)).reshape(rows, POOLED, 1).sum(1)
    blocks = np.pad(x, ((0, lacking), (0, 0))).reshape(rows, POOLED, -1)
    n = np.maximum(w.sum(1), 1)
    mean = (blocks * w).sum(1) / n
    deviation = np.sqrt(((blocks - mean[:, None]) ** 2 * w).sum(1) / n)
    return mean, deviation, w.sum(1) / there
