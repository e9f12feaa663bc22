"""Transcripts by a tiny random Whisper: refused on silence and repetition, with model and language said."""

from __future__ import annotations

import json

import pytest
from clips import Clip
from tiny_encoders import speech, whisper

from egmf_media.batch.listing import list_clips
from egmf_media.batch.transcripts import transcribe
from egmf_media.encoders.whisper import Transcriber
from egmf_media.errors import AbsentError, MediaError
from egmf_media.limits import Limits


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return whisper(tmp_path_factory.mktemp("models") / "whisper")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    Clip(seconds=1.0, video=None).write(folder / "voice.m4a")
    Clip(seconds=1.0, silent=True).write(folder / "silent.mp4")
    (folder / "broken.mp4").write_text("no clip")
    return folder


def test_words_language_and_model_are_said_the_same_each_time(model, clips):
    one, two = (Transcriber(str(model)).read(clips / "voice.m4a", Limits()) for _ in range(2))
    assert one == two
    assert one.text
    assert one.language in ("en", "zh")
    assert one.model.startswith(f"{model} (")


def test_silence_and_repetition_are_refused(model, clips, tmp_path):
    with pytest.raises(AbsentError, match="silent"):
        Transcriber(str(model)).read(clips / "silent.mp4", Limits())
    endless = Transcriber(str(whisper(tmp_path / "endless", positions=228)))
    with pytest.raises(AbsentError, match="repeats itself"):
        endless.read(clips / "voice.m4a", Limits())


def test_many_are_one_file_and_are_not_transcribed_twice(model, clips, tmp_path, monkeypatch):
    rows = transcribe(list_clips(clips), Transcriber(str(model)), tmp_path / "out", Limits())
    assert [row["status"] for row in rows.values()] == ["failed", "absent", "ok"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "transcripts.jsonl").read_text().splitlines()]
    assert lines == [*rows.values()]
    assert {"text", "language", "model"} <= rows["voice"].keys()
    monkeypatch.setattr(Transcriber, "read", lambda *_: pytest.fail("transcribed again"))
    (clips / "broken.mp4").rename(tmp_path / "broken.mp4")
    again = transcribe(list_clips(clips), Transcriber(str(model)), tmp_path / "out", Limits())
    (tmp_path / "broken.mp4").rename(clips / "broken.mp4")
    assert again == {name: rows[name] for name in ("silent", "voice")}


def test_another_model_is_refused(tmp_path):
    with pytest.raises(MediaError, match="is a wav2vec2; a Whisper is needed"):
        Transcriber(str(speech(tmp_path / "m", "wav2vec2")))
