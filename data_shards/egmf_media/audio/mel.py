"""Short-time spectra of sound, their mel bands, and what shape they have."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

HOP, WINDOW, FFT = 160, 400, 512
"""Samples at 16 kHz: 10 ms, 25 ms."""
BANDS, LOWEST, HIGHEST = 40, 20.0, 7600.0
"""Mel bands, and the hertz between which they lie."""
SHAPE = ("energy", "centroid", "spread", "flatness", "rolloff", "flux", "crossings")
"""Columns of :func:`spectra` behind the mel bands: log energy; centroid, spread and roll-off (85 %) in kHz; log
flatness; flux of the normalised spectrum; zero crossings a sample."""
_FLOOR = 1e-8


@cache
def mel_filters(rate: int = 16_000) -> np.ndarray:
    """Triangular filters, HTK's mel scale ``2595 log10(1 + f / 700)`` (Young et al., The HTK Book); float32
    ``[BANDS, FFT // 2 + 1]``."""
    low, high = (2595 * np.log10(1 + f / 700) for f in (LOWEST, HIGHEST))
    edges = np.linspace(low, high, BANDS + 2)
    hertz = 700 * (10 ** (edges / 2595) - 1)
    f = np.fft.rfftfreq(FFT, 1 / rate)
    up = (f[None] - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    down = (hertz[2:, None] - f[None]) / (hertz[2:] - hertz[1:-1])[:, None]
    return np.maximum(0, np.minimum(up, down)).astype(np.float32)


def frames(samples: np.ndarray, first: int, count: int, width: int) -> np.ndarray:
    """``count`` windows of ``width`` samples, window j around the middle of hop ``first + j``; zeros outside.

    Args:
        samples: float32 ``[n]``.
        first: number of the first hop.
        count: how many.
        width: samples, even.

    Returns:
        float32 ``[count, width]``.
    """
    begin = first * HOP + HOP // 2 - width // 2
    end = begin + (count - 1) * HOP + width
    part = samples[max(begin, 0) : max(end, 0)]
    padded = np.pad(part, (max(-begin, 0), max(end - max(begin, 0) - len(part) - max(-begin, 0), 0)))
    if len(padded) < end - begin:
        padded = np.pad(padded, (0, end - begin - len(padded)))
    return sliding_window_view(padded, width)[::HOP][:count]


def spectra(x: np.ndarray, before: np.ndarray | None, rate: int = 16_000) -> tuple[np.ndarray, np.ndarray]:
    """Log mel bands and the spectrum's shape.

    Args:
        x: float32 ``[T, WINDOW]`` of :func:`frames`.
        before: the normalised spectrum of the frame before the first, for its flux; None: there is none.
        rate: samples a second.

    Returns:
        float32 ``[T, BANDS + len(SHAPE)]``, and the last frame's normalised spectrum ``[FFT // 2 + 1]``.
    """
    window = np.hanning(WINDOW).astype(np.float32)
    spectrum = np.fft.rfft(x * window, FFT).astype(np.complex64)
    power = spectrum.real**2 + spectrum.imag**2
    # Not a matrix product of BLAS, whose last bits hang on its number of threads.
    bands = np.log(np.einsum("tf,mf->tm", power, mel_filters(rate)) + _FLOOR)
    f = (np.fft.rfftfreq(FFT, 1 / rate) / 1000).astype(np.float32)
    total = power.sum(1, keepdims=True) + _FLOOR
    share = power / total
    centroid = (share * f).sum(1)
    spread = np.sqrt((share * (f - centroid[:, None]) ** 2).sum(1))
    flatness = np.log(power + _FLOOR).mean(1) - np.log(power.mean(1) + _FLOOR)
    rolloff = f[np.argmax(np.cumsum(share, 1) >= 0.85 * share.sum(1, keepdims=True), 1)]
    earlier = np.concatenate([share[:1] if before is None else before[None], share[:-1]])
    flux = np.sqrt(((share - earlier) ** 2).sum(1))
    crossings = (np.signbit(x[:, 1:]) != np.signbit(x[:, :-1])).mean(1)
    energy = np.log((x.astype(np.float64) ** 2).mean(1) + _FLOOR)
    shape = [energy, centroid, spread, flatness, rolloff, flux, crossings]
    return np.column_stack([bands, *shape]).astype(np.float32), share[-1]


def deltas(x: np.ndarray) -> np.ndarray:
    """Slope over five frames, ``sum(n (x[t+n] - x[t-n])) / 10`` for n of 1 and 2 (The HTK Book); ends repeat.

    Args:
        x: float32 ``[T, C]``.
    """
    padded = np.pad(x, ((2, 2), (0, 0)), mode="edge")
    return ((padded[3:-1] - padded[1:-3]) + 2 * (padded[4:] - padded[:-4])) / np.float32(10)
