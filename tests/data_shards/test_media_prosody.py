"""``prosody``: pitch, energy and what was heard are where they were, and nothing hangs on how sound is cut."""

from __future__ import annotations

import numpy as np
import pytest
from clips import Clip, voice

from egmf_media.audio import prosody as module
from egmf_media.audio.mel import BANDS, HOP, deltas, frames, mel_filters
from egmf_media.audio.prosody import COLUMNS, Prosody, prosody
from egmf_media.decode.sound import Sound
from egmf_media.limits import Limits

COLUMN = {name: number for number, name in enumerate(COLUMNS)}


def described(x: np.ndarray, heard: list[list[int]] | None = None) -> np.ndarray:
    return prosody(Sound(x.astype(np.float32), np.array(heard or [[0, len(x)]], np.int64)))


def hertz(features: np.ndarray) -> np.ndarray:
    return 27.5 * 2 ** (features[:, COLUMN["f0_mean"]] / 12)


@pytest.mark.parametrize("f0", [80.0, 123.4, 220.0, 333.0, 480.0])
def test_pitch_is_within_one_percent(f0):
    t = np.arange(16_000) / 16_000
    found = described(0.2 * sum(np.sin(2 * np.pi * f0 * n * t) / n for n in range(1, 6)))
    inner = found[1:-1]
    assert (inner[:, COLUMN["voiced"]] == 1).all()
    assert np.abs(hertz(inner) / f0 - 1).max() < 0.01


def test_noise_is_not_voiced_and_its_spectrum_is_flat():
    noise = described(np.random.default_rng(0).normal(size=16_000) * 0.1)
    tone = described(voice(1.0))
    assert noise[:, COLUMN["voiced"]].max() < 0.2
    assert noise[:, COLUMN["flatness_mean"]].mean() > tone[:, COLUMN["flatness_mean"]].mean() + 2
    assert noise[:, COLUMN["centroid_mean"]].mean() == pytest.approx(4, abs=0.3)  # kHz


def test_a_band_answers_to_its_own_tone_and_to_loudness():
    t = np.arange(8000) / 16_000
    centre = np.fft.rfftfreq(512, 1 / 16_000)[mel_filters()[20].argmax()]
    found = described(0.1 * np.sin(2 * np.pi * centre * t))
    assert found[2, :BANDS].argmax() == 20
    louder = described(0.2 * np.sin(2 * np.pi * centre * t))
    assert louder[2, 20] - found[2, 20] == pytest.approx(np.log(4), abs=1e-3)
    assert louder[2, COLUMN["energy_mean"]] - found[2, COLUMN["energy_mean"]] == pytest.approx(np.log(4), abs=1e-3)


def test_frame_k_is_about_a_tenth_of_a_second_from_k():
    x = np.zeros(16_000)
    x[8000:] = voice(0.5)
    energy = described(x)[:, COLUMN["energy_mean"]]
    assert len(energy) == 10
    assert energy[:5].max() < -15 < -10 < energy[5:].min()


def test_what_was_not_heard_is_a_row_of_zeros_that_says_so():
    x = np.concatenate([np.zeros(4800), voice(0.7)])
    found = described(x, [[4800, 16_000]])
    assert not found[:3].any()
    assert found[:, COLUMN["heard"]].tolist() == [0] * 3 + [1] * 7
    half = described(voice(1.0), [[0, 15_200]])
    assert half[-1, COLUMN["heard"]] == pytest.approx(0.5)


def test_long_sound_in_blocks_is_the_same_as_in_one(monkeypatch):
    x = voice(3.0) + 0.01 * np.random.default_rng(0).normal(size=48_000).astype(np.float32)
    whole = described(x)
    monkeypatch.setattr(module, "_BLOCK", 70)
    assert np.array_equal(described(x), whole)


@pytest.mark.parametrize("count", [800, 801, 1599, 1600, 1601, 24_001])
def test_any_length_gives_a_row_for_each_tenth_of_a_second_and_none_for_less_than_half(count):
    found = described(voice(2.0)[:count])
    assert found.shape == (max(1, round(-(-count // 160) / 10)), len(COLUMNS))
    assert np.isfinite(found).all()


def test_windows_are_centred_and_slopes_are_slopes():
    x = np.arange(16 * HOP, dtype=np.float32)
    windows = frames(x, 0, 16, 400)
    assert windows.shape == (16, 400)
    assert windows[5, 200] == 5 * HOP + HOP // 2
    assert windows[0, 0] == 0  # before the beginning
    assert np.allclose(deltas(np.arange(20, dtype=np.float32)[:, None] * 3)[2:-2], 3)


def test_the_same_clip_gives_the_same_bits_whatever_the_threads(tmp_path):
    path = Clip(seconds=3.0).write(tmp_path / "a.mp4")
    one, two = (Prosody().extract(path, Limits(), {}) for _ in range(2))
    assert one.tobytes() == two.tobytes()
    assert one.dtype == np.float32
    assert len(COLUMNS) == len(set(COLUMNS)) == Prosody.specification.dim
