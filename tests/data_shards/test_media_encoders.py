"""Hugging Face encoders, tiny and random, written to disk: their hidden states in their places."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_encoders
import torch
from clips import Clip, voice
from tiny_encoders import speech, vision
from transformers import AutoModel

from egmf_media.batch.listing import list_clips
from egmf_media.batch.run import extract_many
from egmf_media.decode.pictures import read_pictures
from egmf_media.encoders.encoder import Encoder
from egmf_media.errors import AbsentError, MediaError
from egmf_media.extractors import extractor_of, extractors_of
from egmf_media.limits import Limits
from egmf_media.specification import Specification
from egmf_media.vision.face import Face


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return Clip(seconds=2.0).write(tmp_path_factory.mktemp("clips") / "a.mp4")


@pytest.mark.parametrize("family", tiny_encoders.SOUND)
def test_every_family_of_speech_gives_frames_in_their_places(family, tmp_path, clip):
    encoder = Encoder(str(speech(tmp_path / family, family)), rate=5)
    counts: dict = {}
    found = encoder.extract(clip, Limits(), counts)
    assert found.shape == (10, 25)  # of 2.048 s of AAC
    assert (found[:, -1] == 1).all()
    assert np.isfinite(found).all()
    assert found[:, :-1].std(0).max() > 0
    assert counts["seconds"] == 2.048
    again = Encoder(str(tmp_path / family), rate=5).extract(clip, Limits(), {})
    assert again.tobytes() == found.tobytes()


def test_frames_are_the_mean_of_the_models_own_hidden_states(tmp_path):
    folder = speech(tmp_path / "m", "wav2vec2")
    x = voice(2.0)
    path = Clip(video=None, audio="pcm_f32le", sample=x).write(tmp_path / "a.wav")
    found = Encoder(str(folder), layers=[1, -1], rate=1).extract(path, Limits(), {})
    with torch.inference_mode():
        given = torch.from_numpy((x - x.mean()) / np.sqrt(x.var() + 1e-7))[None]
        states = AutoModel.from_pretrained(folder).eval()(given, output_hidden_states=True).hidden_states
        wanted = ((states[1] + states[-1]) / 2)[0].numpy()
    middle = (np.arange(len(wanted)) + 0.5) / len(wanted) * 2
    for row in range(2):
        assert np.allclose(found[row, :-1], wanted[middle.astype(int) == row].mean(0), atol=1e-4)


def test_late_sound_and_more_than_a_chunk_of_it(tmp_path):
    folder = speech(tmp_path / "m", "wav2vec2")
    late = Clip(late=1.0, seconds=1.0, audio="pcm_s16le").write(tmp_path / "late.mkv")
    found = Encoder(str(folder), rate=2).extract(late, Limits(), {})
    assert found[:, -1].tolist() == [0, 0, 1, 1]
    assert not found[:2].any()
    long = Clip(video=None, audio="flac", sample=voice(31.0)).write(tmp_path / "long.flac")
    assert Encoder(str(folder), rate=1).extract(long, Limits(), {}).shape == (31, 25)


@pytest.mark.parametrize("family", tiny_encoders.PICTURES)
def test_every_family_of_pictures_gives_a_frame_for_each_moment(family, tmp_path, clip):
    found = Encoder(str(vision(tmp_path / family, family)), crop="frame").extract(clip, Limits(), {})
    assert found.shape == (10, 25)
    assert (found[:, -1] == 1).all()
    assert np.isfinite(found).all()
    assert found[:, :-1].std(0).max() > 0


def test_pictures_are_seen_as_the_model_expects_them(tmp_path, clip):
    folder = vision(tmp_path / "m", "dinov2")
    encoder = Encoder(str(folder), crop="frame", pooling="first", rate=1)
    found = encoder.extract(clip, Limits(), {})
    picture = next(iter(read_pictures(clip, Limits(), 1, 640, {}))).image
    import cv2

    scaled = cv2.resize(picture[:, 20:140], (32, 32), interpolation=cv2.INTER_AREA)[..., ::-1] / 255
    given = (scaled - [0.48, 0.46, 0.41]) / [0.27, 0.26, 0.28]
    with torch.inference_mode():
        tensor = torch.from_numpy(given.transpose(2, 0, 1).astype(np.float32))[None]
        states = AutoModel.from_pretrained(folder).eval()(tensor, output_hidden_states=True).hidden_states[-1]
    assert np.allclose(found[0, :-1], states[0, 0].numpy(), atol=0.05)


def test_faces_are_cropped_and_a_moment_without_one_is_masked(tmp_path, clip):
    if Face().missing:
        pytest.skip(Face().missing)
    encoder = Encoder(str(vision(tmp_path / "m", "siglip")))
    counts: dict = {}
    assert encoder.extract(clip, Limits(), counts).shape == (10, 25)
    assert counts["frames_with_face"] == 10
    with pytest.raises(AbsentError, match="no face in any frame"):
        encoder.extract(Clip(faces=False, audio=None).write(tmp_path / "b.mp4"), Limits(), {})


def test_in_a_process_and_from_the_specification_it_is_the_same(tmp_path, clip):
    folder = speech(tmp_path / "m", "hubert")
    plan = {"hubert": {"extractor": "encoder", "model": str(folder), "layers": [0, 2], "rate": 5}}
    extract_many(list_clips(clip.parent), plan, tmp_path / "out")
    made = extractors_of(plan)["hubert"].specification
    carried = Specification.from_json(json.loads(json.dumps(made.to_json())), "here")
    again = extractor_of(carried, "the model's hubert").extract(clip, Limits(), {})
    assert np.load(tmp_path / "out" / "hubert" / "a.npy").tobytes() == again.tobytes()


def test_the_folder_may_move_and_other_weights_are_others(tmp_path):
    one = speech(tmp_path / "one", "wav2vec2")
    made = Encoder(str(one)).specification
    one.rename(tmp_path / "two")
    assert Encoder(str(tmp_path / "two")).specification.sha256 == made.sha256
    weights = tmp_path / "two" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    other = Encoder(str(tmp_path / "two")).specification
    assert other.sha256 != made.sha256
    carried = Specification.from_json(made.to_json() | {"source": str(tmp_path / "two")}, "here")
    both = rf"is encoder 1 \({made.sha256[:12]}\), what is made here is encoder 1 \({other.sha256[:12]}\): "
    with pytest.raises(MediaError, match=both + "weights.model.safetensors"):
        extractor_of(carried, "the model's audio")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "encoder: model is needed"),
        ({"model": "no/such-model"}, "no/such-model: no such folder, and it cannot be had from the hub"),
        ({"model": "M", "layers": [7]}, r"layers are \[7\]; numbers from -3 to 2 are needed"),
        ({"model": "M", "layers": []}, r"layers are \[\]"),
        ({"model": "M", "rate": 100}, "rate is 100"),
        ({"model": "M", "crop": "ear"}, "crop is 'ear'"),
        ({"model": "EMPTY"}, "its config.json cannot be read"),
        ({"model": "TEXT"}, "reads neither sound nor pictures"),
        ({"model": "PICKLED"}, "holds no .safetensors; weights in other formats may run code"),
    ],
)
def test_what_is_no_encoder_is_refused_in_one_line(tmp_path, settings, message):
    speech(tmp_path / "M", "wav2vec2")
    (tmp_path / "EMPTY").mkdir()
    for name, config in (("TEXT", {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1}), ("PICKLED", None)):
        (tmp_path / name).mkdir()
        text = (tmp_path / "M" / "config.json").read_text() if config is None else json.dumps(config)
        (tmp_path / name / "config.json").write_text(text)
        (tmp_path / name / "preprocessor_config.json").write_text("{}")
    if settings.get("model", "").isupper():
        settings = settings | {"model": str(tmp_path / settings["model"])}
    with pytest.raises(MediaError, match=message) as caught:
        extractors_of({"audio": {"extractor": "encoder"} | settings})
    assert "\n" not in str(caught.value)
