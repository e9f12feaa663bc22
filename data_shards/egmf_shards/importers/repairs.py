"""What every importer does to a feature array, and the counts that the manifest's ``source`` tells.

Four rules, the same for all importers:

* axes of 1 beside frames and dimensions are taken off;
* a number that is not finite in float32 becomes 0;
* **a clip that then holds nothing but zeros lacks the modality**: no face was found, or there was no sound;
* a number beyond fp16's 65504 is kept, because shards hold float32, and counted, because training in fp16 would
  overflow on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from egmf_shards.format.rules import FP16_MAX
from egmf_shards.importers.padding import FRONT, used_rows


def without_axes_of_1(array: np.ndarray) -> np.ndarray:
    """``array`` with as few as possible of its axes of 1 taken off, from the left, until it has two dimensions."""
    return array.reshape(shape_without_axes_of_1(array.shape))


def shape_without_axes_of_1(shape: Sequence[int]) -> tuple[int, ...]:
    """``[1, T, d]``, ``[T, 1, d]`` and the like as ``[T, d]``; other shapes as they are, or with the 1s that there are
    taken off."""
    left = list(shape)
    while len(left) > 2 and 1 in left:
        left.remove(1)
    return tuple(left)


@dataclass
class Repairs:
    """Counts over the arrays of one modality; the names are those of the manifest."""

    clips_with_axes_of_1_taken_off: int = 0
    clips_of_zeros: int = 0
    clips_with_non_finite_set_to_0: int = 0
    numbers_not_finite_set_to_0: int = 0
    clips_beyond_fp16: int = 0
    numbers_beyond_fp16: int = 0

    def whole(self, array: np.ndarray) -> np.ndarray | None:
        """One clip's array at its real length, numbers ``[frames, dim]`` or ``[dim]`` (one frame), axes of 1 aside, as
        float32 ``[frames, dim]``; None: it lacks the modality."""
        return self.present(self.finite(np.atleast_2d(self.matrix(array))))

    def matrix(self, array: np.ndarray) -> np.ndarray:
        """One clip's array without axes of 1, counted where it had any."""
        flat = without_axes_of_1(array)
        self.clips_with_axes_of_1_taken_off += flat.ndim != array.ndim
        return flat

    def finite(self, array: np.ndarray) -> np.ndarray:
        """A float32 copy of ``array`` (numbers of any type, any shape) with 0 for what is not finite in float32."""
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, hence 0
            array = array.astype(np.float32)
        wrong = ~np.isfinite(array)
        if wrong.any():
            self.clips_with_non_finite_set_to_0 += 1
            self.numbers_not_finite_set_to_0 += int(wrong.sum())
            array[wrong] = 0
        return array

    def present(self, array: np.ndarray) -> np.ndarray | None:
        """One clip's finite ``array``, or None where it is nothing but zeros."""
        if not array.any():
            self.clips_of_zeros += 1
            return None
        beyond = int((np.abs(array) > FP16_MAX).sum())
        self.clips_beyond_fp16 += beyond > 0
        self.numbers_beyond_fp16 += beyond
        return array


@dataclass
class PaddedReport(Repairs):
    """What happened to one modality's padded arrays."""

    clips_found: int = 0
    clips_without_frames: int = 0
    clips_longer_than_the_array_cut: int = 0
    clips_with_frames_outside_their_length_cut: int = 0
    clips_with_zeros_at_an_end_kept: int = 0
    frames_kept: int = 0
    padding_frames_removed: int = 0

    def take(self, padded: np.ndarray, length: int | None, side: str) -> np.ndarray | None:
        """float32 ``[frames, dim]`` of ``padded`` ``[T, dim]`` at its real length; None: the clip lacks the modality.

        Args:
            padded: numbers ``[T, dim]``, axes of 1 aside.
            length: its frames; None: the rows of zeros on ``side`` are padding.
            side: where the padding is, ``front`` or ``end`` (``padding.py``).
        """
        padded = self.matrix(padded)
        total = len(padded)
        used = used_rows(padded)
        if length is None:
            # A row of NaN among the padding is counted: it is a failed extraction all the same.
            padded = self.finite(padded)
            first, last = _without_zeros(used, side)
            array = padded[first:last].copy()
        else:
            self.clips_longer_than_the_array_cut += length > total
            length = min(length, total)
            first, last = (total - length, total) if side == FRONT else (0, length)
            self.clips_with_frames_outside_their_length_cut += bool(used[:first].any() or used[last:].any())
            array = self.finite(padded[first:last])
        if not len(array) and length is not None:
            self.clips_without_frames += 1
            found = None
        else:
            found = self.present(array)
            # Nothing was found in these frames; or the length is the array's, and they are padding after all.
            self.clips_with_zeros_at_an_end_kept += found is not None and not (used[first] and used[last - 1])
        kept = 0 if found is None else len(found)
        self.clips_found += found is not None
        self.frames_kept += kept
        self.padding_frames_removed += total - kept
        return found

    def to_json(self) -> dict[str, int]:
        """The counts as the manifest stores them."""
        first = ("clips_found", "clips_without_frames", "frames_kept", "padding_frames_removed")
        return {name: self.__dict__[name] for name in (*first, *(n for n in self.__dict__ if n not in first))}


def _without_zeros(used: np.ndarray, side: str) -> tuple[int, int]:
    """First row and the one behind the last, without the rows of zeros on ``side``."""
    rows = np.flatnonzero(used)
    if not rows.size:
        return 0, 0
    return (int(rows[0]), len(used)) if side == FRONT else (0, int(rows[-1]) + 1)
