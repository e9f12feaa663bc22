"""``egemaps``: openSMILE's numbers on the clip's own clock; and whoever uses it first is told the terms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clips import Clip, voice

from egmf_media.audio import egemaps as module
from egmf_media.audio.egemaps import COLUMNS, OF_SOUND, OF_VOICE, PITCH
from egmf_media.decode.sound import read_sound
from egmf_media.errors import MediaError
from egmf_media.extractors import extractor_of, extractors_of
from egmf_media.limits import Limits

COLUMN = {name: number for number, name in enumerate(COLUMNS)}


def recording(sample: np.ndarray, path: Path) -> Path:
    return Clip(video=None, audio="pcm_s16le", sample=sample).write(path)


@pytest.fixture
def opensmile():
    return pytest.importorskip("opensmile", reason="no openSMILE: pip install 'egmf-dist[opensmile]', not for commerce")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EGMF_MEDIA_WEIGHTS", str(tmp_path / "cache"))


@pytest.fixture
def extractor(opensmile):
    return extractors_of({"audio": {"extractor": "egemaps"}})["audio"]


def test_a_frame_is_the_mean_of_opensmiles_own_rows(opensmile, extractor, tmp_path):
    path = recording(voice(1.5), tmp_path / "a.wav")
    features = extractor.extract(path, Limits(), {})
    assert features.shape == (15, len(COLUMNS))
    assert features.dtype == np.float32
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors)
    rows = smile.process_signal(read_sound(path, Limits()).samples, 16_000)
    for frame in (3, 8):  # inside, where no end is near
        own = rows.iloc[10 * frame : 10 * frame + 10]
        for name in OF_SOUND:
            assert features[frame, COLUMN[f"{name}_mean"]] == pytest.approx(own[name].mean(), rel=1e-4, abs=1e-5)
            assert features[frame, COLUMN[f"{name}_std"]] == pytest.approx(own[name].std(ddof=0), rel=1e-3, abs=1e-4)
        voiced = own[own[PITCH] > 0]
        assert features[frame, COLUMN["voiced"]] == pytest.approx(len(voiced) / 10)
        for name in OF_VOICE:
            assert features[frame, COLUMN[f"{name}_mean"]] == pytest.approx(voiced[name].mean(), rel=1e-4, abs=1e-4)
    assert np.array_equal(features, extractor.extract(path, Limits(), {}))


def test_sound_that_begins_late_stays_late_and_pitch_is_the_voices(extractor, tmp_path):
    x = np.zeros(16_000, np.float32)
    x[8000:] = voice(0.5)
    features = extractor.extract(recording(x, tmp_path / "a.wav"), Limits(), {})
    loudness, pitch = features[:, COLUMN["Loudness_sma3_mean"]], features[:, COLUMN[f"{PITCH}_mean"]]
    assert len(features) == 10
    assert 2 * loudness[:4].max() < loudness[6:].min()
    assert (features[:4, COLUMN["voiced"]] == 0).all()
    assert (pitch[:4] == 0).all()
    assert (features[6:9, COLUMN["voiced"]] == 1).all()
    assert np.isfinite(features).all()


def test_it_is_made_again_out_of_what_a_model_carries(extractor):
    made = extractor_of(extractor.specification, "the model's audio")
    assert made.specification.sha256 == extractor.specification.sha256
    assert "egemaps 1" in str(made.specification)


def test_whoever_uses_it_first_is_told_the_terms_once(extractor, tmp_path, capfd):
    path = recording(voice(0.5), tmp_path / "a.wav")
    for _ in range(2):
        extractors_of({"audio": {"extractor": "egemaps"}})["audio"].extract(path, Limits(), {})
    assert capfd.readouterr().err.count("no commercial one") == 1


def test_without_opensmile_it_says_what_to_install(monkeypatch):
    def absent(name: str) -> str:
        raise module.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.importlib.metadata, "version", absent)
    says = r"audio: egemaps: openSMILE is not installed: pip install 'egmf-dist\[opensmile\]'"
    with pytest.raises(MediaError, match=says):
        extractors_of({"audio": {"extractor": "egemaps"}})
