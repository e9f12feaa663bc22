"""``egemaps``: the low-level descriptors of eGeMAPS (Eyben and others, 2016) by openSMILE, which comes as an extra.

Every 10 ms has 25 of them, which are pooled to frames of 100 ms as those of ``prosody`` are. What is told of a voice
(pitch, jitter, shimmer, formants, ...) is pooled over hops that are voiced, as eGeMAPS's own functionals do, the rest
over all that was heard.

openSMILE is audEERING's and its licence allows no commercial use: whoever extracts with it first is told.
"""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from egmf_media.audio.mel import HOP
from egmf_media.audio.pooling import POOLED, heard_hops, pooled, rows_of
from egmf_media.decode.container import DECODING
from egmf_media.decode.sound import RATE, Sound, read_sound
from egmf_media.errors import MediaError
from egmf_media.limits import Limits
from egmf_media.specification import SOUND, Specification
from egmf_media.weights import weights_folder

VERSION = 1
OF_SOUND = (
    "Loudness_sma3", "alphaRatio_sma3", "hammarbergIndex_sma3", "slope0-500_sma3", "slope500-1500_sma3",
    "spectralFlux_sma3", "mfcc1_sma3", "mfcc2_sma3", "mfcc3_sma3", "mfcc4_sma3",
)  # fmt: skip
PITCH = "F0semitoneFrom27.5Hz_sma3nz"
"""In semitones above 27.5 Hz; 0 where there is no voice."""
OF_VOICE = (
    PITCH, "jitterLocal_sma3nz", "shimmerLocaldB_sma3nz", "HNRdBACF_sma3nz", "logRelF0-H1-H2_sma3nz",
    "logRelF0-H1-A3_sma3nz",
    *(f"F{n}{what}_sma3nz" for n in (1, 2, 3) for what in ("frequency", "bandwidth", "amplitudeLogRelF0")),
)  # fmt: skip
COLUMNS = (
    *(f"{name}_mean" for name in (*OF_SOUND, *OF_VOICE)),
    *(f"{name}_std" for name in (*OF_SOUND, *OF_VOICE)),
    "voiced",
    "heard",
)
"""Names of a frame's numbers, by openSMILE's own; ``voiced`` and ``heard`` are shares of the frame."""
_WINDOW = 0.06
"""Seconds of openSMILE's longest window: a hop with less sound before the end has no row."""
EXTRA = "pip install 'egmf-dist[opensmile]'"
_TERMS = (
    "egemaps: openSMILE is (c) audEERING GmbH; its licence is for private, research and educational use, and for no "
    "commercial one: https://audeering.github.io/opensmile-python/ (said once)"
)
_SAID = "opensmile-terms-said"


class Egemaps:
    """The extractor.

    Raises:
        MediaError: openSMILE is not installed.
    """

    missing = ""

    def __init__(self) -> None:
        try:
            version = importlib.metadata.version("opensmile")
        except importlib.metadata.PackageNotFoundError as error:
            raise MediaError(f"egemaps: openSMILE is not installed: {EXTRA} (no commercial use)") from error
        self.specification = Specification(
            "egemaps", VERSION, SOUND, RATE / HOP / POOLED, len(COLUMNS), DECODING,
            {"sample_rate": RATE, "set": "eGeMAPSv02", "opensmile": version, "pooled": POOLED},
        )  # fmt: skip
        self._smile: Any = None

    def extract(self, path: Path, limits: Limits, counts: dict[str, Any]) -> np.ndarray:
        """float32 ``[frames, dim]`` of a clip; ``counts`` is filled.

        Raises:
            AbsentError, MediaError: see :func:`read_sound`.
        """
        sound = read_sound(path, limits)
        counts |= sound.counts
        return self._pooled(sound)

    def _pooled(self, sound: Sound) -> np.ndarray:
        hops = max(1, -(-len(sound.samples) // HOP))
        rows = rows_of(hops)
        described = self._described(sound.samples, hops)
        heard = heard_hops(sound, hops)
        voiced = heard & (described[:, len(OF_SOUND)] > 0)
        mean, deviation, share = pooled(described[:, : len(OF_SOUND)], heard, rows)
        voice_mean, voice_deviation, voiced_share = pooled(described[:, len(OF_SOUND) :], voiced, rows)
        return np.concatenate([mean, voice_mean, deviation, voice_deviation, voiced_share, share], 1)

    def _described(self, samples: np.ndarray, hops: int) -> np.ndarray:
        """float32 ``[hops, 25]``: a row for each hop, the last ones with silence behind the sound."""
        smile = self._opened()
        silence = np.zeros(round(_WINDOW * RATE) + HOP, np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = smile.process_signal(np.concatenate([samples, silence]), RATE)
        described = np.asarray(table[[*OF_SOUND, *OF_VOICE]], np.float32)[:hops]
        if len(described) < hops or not np.isfinite(described).all():
            raise MediaError(f"openSMILE gives {len(described)} rows for {hops}, or some that are not finite")
        return described

    def _opened(self) -> Any:
        """openSMILE, when it is first needed: its import takes a second, and a process may never hear a sound."""
        if self._smile is None:
            import opensmile

            _say_terms()
            smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors)
            lacking = next((name for name in (*OF_SOUND, *OF_VOICE) if name not in smile.feature_names), None)
            if lacking is not None:
                raise MediaError(f"egemaps: this openSMILE ({opensmile.__version__}) has no {lacking}")
            self._smile = smile
        return self._smile


def _say_terms() -> None:
    """Once for each user of a machine; where that cannot be written down, once a process."""
    said = weights_folder() / _SAID
    with suppress(OSError):
        said.parent.mkdir(parents=True, exist_ok=True)
        with open(said, "x", encoding="utf-8") as file:
            file.write(_TERMS + "\n")
        print(_TERMS, file=sys.stderr, flush=True)
        return
    if not said.exists():
        print(_TERMS, file=sys.stderr, flush=True)
