"""A clip's sound: mono samples at one rate, sample 0 at second 0 of the clip's clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from egmf_media.decode.container import av, frames_of, opened
from egmf_media.errors import AbsentError, MediaError
from egmf_media.limits import Limits

RATE = 16_000
SILENCE = 1e-4
"""RMS below which there is no sound: -80 dB of full scale."""
SHORTEST = 0.05
"""Seconds."""
_GAP = 0.02
"""Seconds between where a frame should be and where it says it is, up to which it follows the one before: containers
round times to a millisecond."""
_SNAP = 0.002
"""Seconds within which sound begins with the clip."""
BLOCK = 1.0
"""Seconds that are resampled together at least."""


@dataclass
class Sound:
    """What was heard."""

    samples: np.ndarray
    """float32 ``[n]`` in -1 to 1; zeros where there is nothing."""
    heard: np.ndarray
    """int64 ``[pieces, 2]``: from which sample to which (exclusive) there is decoded sound."""
    rate: int = RATE
    counts: dict[str, Any] = field(default_factory=dict)
    """``seconds``, ``offset`` (where it begins), ``bad_packets``, ``clipped`` samples, ``rms``, ``audio_streams``."""


def read_sound(path: Path, limits: Limits, rate: int = RATE) -> Sound:
    """Decode, mix to mono and resample.

    Raises:
        AbsentError: the clip has no sound, is silent, or too short.
        MediaError: it cannot be read.
    """
    counts: dict[str, Any] = {"bad_packets": 0}
    with opened(path, limits) as (container, streams):
        counts["audio_streams"] = streams.audio_count
        if streams.audio is None:
            raise AbsentError("no audio stream", counts)
        stream = container.streams[streams.audio]
        pieces = list(_pieces(container, stream, streams.start, rate, limits, counts))
    if not pieces:
        if counts["bad_packets"]:
            raise MediaError(f"not one of {counts['bad_packets']} packets of its sound can be decoded")
        raise AbsentError("the audio stream is empty", counts)
    sound = _joined(pieces, rate, counts)
    rms = float(np.sqrt(sum(_power(sound.samples[a:b]) for a, b in sound.heard) / max(counts["heard"], 1)))
    counts["rms"] = round(rms, 6)
    if counts.pop("heard") < SHORTEST * rate:
        raise AbsentError(f"shorter than {SHORTEST * 1000:.0f} ms", counts)
    if rms < SILENCE:
        raise AbsentError(f"silent (RMS {rms:.1e}, below {SILENCE:.0e})", counts)
    return sound


def _power(x: np.ndarray) -> float:
    return float(np.square(x, dtype=np.float64).sum())


def _pieces(
    container: Any, stream: Any, start: float, rate: int, limits: Limits, counts: dict[str, Any]
) -> Iterator[tuple[float, np.ndarray]]:
    """Runs of sound without a gap: where each begins, in seconds of the clip, and its samples."""
    resampler: Any = None
    begin = end = 0.0
    kept: list[np.ndarray] = []
    layout: Any = None
    for frame in frames_of(container, stream, counts):
        if not frame.samples or not frame.sample_rate:
            continue
        at = end if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base) - start
        now = (frame.format.name, frame.layout.name, frame.sample_rate)
        if resampler is None or abs(at - end) > _GAP or now != layout:
            yield from _flushed(resampler, begin, kept)
            # Of silence without a time nothing is known: at the first frame the place is what it says.
            resampler, begin, end, kept, layout = _resampler(rate), at, at, [], now
        limits.check_seconds(at)
        frame.pts = None  # the resampler would stretch and pad by it
        kept += [out.to_ndarray()[0] for out in resampler.resample(frame)]
        end += frame.samples / now[2]
    yield from _flushed(resampler, begin, kept)


def _resampler(rate: int) -> Any:
    return av().AudioResampler(format="flt", layout="mono", rate=rate)


def _flushed(resampler: Any, begin: float, kept: list[np.ndarray]) -> Iterator[tuple[float, np.ndarray]]:
    if resampler is None:
        return
    kept = [*kept, *(out.to_ndarray()[0] for out in resampler.resample(None))]
    if kept:
        yield begin, np.concatenate(kept)


def _joined(pieces: list[tuple[float, np.ndarray]], rate: int, counts: dict[str, Any]) -> Sound:
    """Pieces in their places; what overlaps an earlier piece, or begins before second 0, is left out."""
    placed: list[tuple[int, np.ndarray]] = []
    done = 0
    for begin, samples in sorted(pieces, key=lambda piece: piece[0]):
        first = 0 if abs(begin) < _SNAP else round(begin * rate)
        cut = max(done - first, 0)
        if cut < len(samples):
            placed.append((first + cut, samples[cut:]))
            done = first + len(samples)
    whole = np.zeros(done, np.float32)
    clipped = 0
    for first, samples in placed:
        # A damaged packet decodes to anything: 200 flipped bytes gave an RMS of 1.28.
        sound = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
        clipped += int(np.count_nonzero(np.abs(sound) > 1))
        whole[first : first + len(sound)] = np.clip(sound, -1, 1)
    heard = np.array([(first, first + len(samples)) for first, samples in placed], np.int64).reshape(-1, 2)
    counts |= {
        "seconds": round(done / rate, 3),
        "offset": round(float(heard[0, 0]) / rate, 3) if len(heard) else 0.0,
        "clipped": clipped,
        "heard": int((heard[:, 1] - heard[:, 0]).sum()),
    }
    return Sound(whole, heard, rate, counts)
