"""What every importer does to a feature array, and the counts that the manifest's ``source`` tells.

Two rules: a number that is not finite in float32 becomes 0; a number beyond fp16's 65504 is kept, because shards hold
float32, and counted, because training in fp16 would overflow on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FP16_MAX = 65504.0


@dataclass
class Repairs:
    """Counts over the arrays of one modality; the names are those of the manifest."""

    clips_with_non_finite_set_to_0: int = 0
    numbers_not_finite_set_to_0: int = 0
    clips_beyond_fp16: int = 0
    numbers_beyond_fp16: int = 0

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

    def count_beyond_fp16(self, array: np.ndarray) -> None:
        """Count one clip's numbers whose size fp16 cannot hold."""
        beyond = int((np.abs(array) > FP16_MAX).sum())
        self.clips_beyond_fp16 += beyond > 0
        self.numbers_beyond_fp16 += beyond


@dataclass
class PaddedReport(Repairs):
    """What happened to one modality's padded arrays."""

    clips_found: int = 0
    clips_without_frames: int = 0
    clips_longer_than_the_array_cut: int = 0
    frames_kept: int = 0
    padding_frames_removed: int = 0

    def take(self, padded: np.ndarray, length: int | None) -> np.ndarray | None:
        """float32 ``[frames, dim]`` of ``padded`` ``[T, dim]`` at its real length; None: the clip lacks the modality.

        ``length`` None: the rows of zeros at the end are padding.
        """
        self.clips_longer_than_the_array_cut += length is not None and length > len(padded)
        # Before padding is looked for: a row of NaN in the end is a failed extraction all the same.
        array = self.finite(padded[:length])
        used = np.flatnonzero(array.any(axis=1))
        if length is None:
            array = array[: used[-1] + 1 if used.size else 0].copy()
        self.count_beyond_fp16(array)
        if not used.size:
            self.clips_without_frames += 1
            self.padding_frames_removed += len(padded)
            return None
        self.clips_found += 1
        self.frames_kept += len(array)
        self.padding_frames_removed += len(padded) - len(array)
        return array

    def to_json(self) -> dict[str, int]:
        """The counts as the manifest stores them."""
        first = ("clips_found", "clips_without_frames", "frames_kept", "padding_frames_removed")
        return {name: self.__dict__[name] for name in (*first, *(n for n in self.__dict__ if n not in first))}
