"""``prosody``: how something was said. Log-mel bands and their slopes, energy, spectral shape, pitch, voicing.

Every 10 ms is described, and ten of them are pooled to a frame of 100 ms: mean and standard deviation over what was
heard. Frame k is about seconds k / 10 to (k + 1) / 10 of the clip; one in which nothing was heard is zeros with
``heard`` 0. Less than half a frame at the end is left out. No weights, no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from egmf_media.audio.mel import BANDS, FFT, HIGHEST, HOP, LOWEST, SHAPE, WINDOW, deltas, frames, spectra
from egmf_media.audio.pitch import HIGHEST as HIGHEST_PITCH
from egmf_media.audio.pitch import LOWEST as LOWEST_PITCH
from egmf_media.audio.pitch import OCTAVE, VOICED, WIDTH, pitch
from egmf_media.audio.pooling import POOLED, heard_hops, pooled, rows_of
from egmf_media.decode.container import DECODING
from egmf_media.decode.sound import RATE, Sound, read_sound
from egmf_media.limits import Limits
from egmf_media.specification import SOUND, Specification

VERSION = 1
_BLOCK = 3000
"""Hops that are looked at together: 30 s."""
_MEL = tuple(f"mel{n}" for n in range(BANDS))
_BOTH = (*_MEL, *SHAPE, "voicing", *(f"d_{name}" for name in (*_MEL, "energy")))
"""Of which mean and deviation are taken."""
COLUMNS = (
    *(f"{name}_mean" for name in _BOTH),
    *(f"{name}_std" for name in _BOTH),
    "f0_mean",
    "f0_std",
    "voiced",
    "heard",
)
"""Names of a frame's numbers. ``f0`` is in semitones above 27.5 Hz over what is voiced, 0 where nothing is; ``voiced``
and ``heard`` are shares of the frame."""


class Prosody:
    """The extractor."""

    missing = ""
    """Nothing is: it needs no weights."""
    specification = Specification(
        "prosody",
        VERSION,
        SOUND,
        RATE / HOP / POOLED,
        len(COLUMNS),
        DECODING,
        {
            "sample_rate": RATE,
            "hop": HOP,
            "window": WINDOW,
            "fft": FFT,
            "mel": [BANDS, LOWEST, HIGHEST],
            "f0": [WIDTH, LOWEST_PITCH, HIGHEST_PITCH, VOICED, OCTAVE],
            "pooled": POOLED,
        },
    )

    def extract(self, path: Path, limits: Limits, counts: dict[str, Any]) -> np.ndarray:
        """float32 ``[frames, dim]`` of a clip; ``counts`` is filled.

        Raises:
            AbsentError, MediaError: see :func:`read_sound`.
        """
        sound = read_sound(path, limits)
        counts |= sound.counts
        return prosody(sound)


def prosody(sound: Sound) -> np.ndarray:
    """float32 ``[frames, len(COLUMNS)]`` of 16 kHz mono sound; the last frame may be of five hops and more."""
    hops = max(1, -(-len(sound.samples) // HOP))
    rows = rows_of(hops)
    base = np.empty((hops, BANDS + len(SHAPE) + 1), np.float32)
    hertz = np.empty(hops, np.float32)
    before = None
    for first in range(0, hops, _BLOCK):
        here = slice(first, min(first + _BLOCK, hops))
        count = here.stop - first
        base[here, :-1], before = spectra(frames(sound.samples, first, count, WINDOW), before)
        hertz[here], base[here, -1] = pitch(frames(sound.samples, first, count, WIDTH))
    described = np.concatenate([base, deltas(base[:, : BANDS + 1])], 1)
    heard = heard_hops(sound, hops)
    voiced = heard & (hertz > 0)
    tone = np.where(voiced, 12 * np.log2(np.maximum(hertz, 1) / 27.5), 0).astype(np.float32)[:, None]
    mean, deviation, share = pooled(described, heard, rows)
    tone_mean, tone_deviation, voiced_share = pooled(tone, voiced, rows)
    return np.concatenate([mean, deviation, tone_mean, tone_deviation, voiced_share, share], 1)
