"""The voice's fundamental frequency, by autocorrelation (Boersma 1993, "Accurate short-term analysis")."""

from __future__ import annotations

from functools import cache

import numpy as np

WIDTH, FFT = 640, 1024
"""Samples at 16 kHz: 40 ms, three periods of 75 Hz; the transform."""
LOWEST, HIGHEST = 75.0, 500.0
"""Hertz."""
VOICED = 0.5
"""The normalised autocorrelation from which a frame is voiced."""
OCTAVE = 0.05
"""What an octave lower costs: a whole number of periods fits as well as one."""
_QUIET = 1e-5
"""Mean power below which nothing is voiced."""


@cache
def _window(width: int) -> tuple[np.ndarray, np.ndarray]:
    window = np.hanning(width + 2)[1:-1].astype(np.float32)
    own = np.fft.irfft(np.abs(np.fft.rfft(window, FFT)) ** 2)
    return window, (own / own[0]).astype(np.float32)


def pitch(x: np.ndarray, rate: int = 16_000) -> tuple[np.ndarray, np.ndarray]:
    """Fundamental frequency and how periodic each frame is.

    Args:
        x: float32 ``[T, WIDTH]``.
        rate: samples a second.

    Returns:
        float32 ``[T]`` hertz, 0 where it is not voiced; float32 ``[T]`` in 0 to 1, the normalised autocorrelation.
    """
    window, own = _window(x.shape[1])
    x = x - x.mean(1, keepdims=True)
    quiet = (x**2).mean(1) < _QUIET
    spectrum = np.fft.rfft(x * window, FFT).astype(np.complex64)
    r = np.fft.irfft(spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    first, last = int(rate / HIGHEST), int(np.ceil(rate / LOWEST))
    near = r[:, first - 1 : last + 2] / (r[:, :1] * own[first - 1 : last + 2] + 1e-12)
    lags = np.arange(first, last + 1)
    middle = near[:, 1:-1]
    peak = (middle >= near[:, :-2]) & (middle >= near[:, 2:])
    worth = np.where(peak, middle - OCTAVE * np.log2(LOWEST * lags / rate)[None], -np.inf)
    best = np.argmax(worth, 1)
    rows = np.arange(len(x))
    left, top, right = near[rows, best], near[rows, best + 1], near[rows, best + 2]
    curve = left - 2 * top + right
    shift = np.where(np.abs(curve) > 1e-9, 0.5 * (left - right) / np.where(curve == 0, 1, curve), 0)
    strength = np.clip(np.where(quiet | ~peak.any(1), 0, top), 0, 1).astype(np.float32)
    hertz = rate / (lags[best] + np.clip(shift, -0.5, 0.5))
    return np.where(strength >= VOICED, hertz, 0).astype(np.float32), strength
