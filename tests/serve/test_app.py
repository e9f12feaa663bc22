"""The application by an in-process client: what it answers, what it refuses, what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clips import Clip
from fastapi.testclient import TestClient
from hostile_clips import many_frames, vast_pictures
from served import SERVING, URL, left, upload
from tiny_encoders import whisper

from egmf_dist import Utterance
from egmf_dist.errors import EgmfError
from egmf_dist.inference.predict import row_of
from egmf_dist.serve.app import build_app
from egmf_dist.serve.openapi import PREDICT
from egmf_dist.serve.page import POLICY, page
from egmf_dist.serve.server import hosts_of
from egmf_dist.serve.service import Service
from egmf_shards import ShardSet


def test_features_at_serve_are_those_of_training_bit_by_bit(recorded, service, client, monkeypatch):
    seen: list[Any] = []
    submit = service._batcher.submit
    monkeypatch.setattr(
        service._batcher, "submit", lambda samples, also=None: seen.extend(samples) or submit(samples, also)
    )
    answer = client.post("/predict", data={"text": "word 3"}, files=upload(recorded / "clips" / "c3.mp4"))
    assert answer.status_code == 200, answer.text
    (trained,) = ShardSet.open([str(recorded / "emotion")], "test")
    assert seen[0].features.keys() == trained.features.keys() >= {"audio"}
    for stream, array in trained.features.items():
        assert seen[0].features[stream].tobytes() == array.tobytes()
        assert seen[0].features[stream].shape == array.shape


def test_a_clip_is_answered_as_predict_answers_it(recorded, model, service, client):
    clip = recorded / "clips" / "c3.mp4"
    answer = client.post("/predict", data={"text": "word 3", "id": "mine"}, files=upload(clip))
    right = row_of("mine", model.predict(Utterance("word 3", id="mine"), clip=clip))
    assert answer.json() == json.loads(json.dumps(right))
    assert answer.json()["made_by"]["audio"].startswith("prosody 1 (")
    assert left(service) == []


def test_an_explanation_is_each_modality_alone_and_taken_away(recorded, model, client):
    clip = recorded / "clips" / "c3.mp4"
    data = {"text": "word 3", "explain": "true", "task": "emotion", "context": "Ann: hello\nwell"}
    row = client.post("/predict", data=data, files=upload(clip)).json()
    asked = Utterance("word 3", context=[("Ann", "hello"), "well"], clip=clip)
    (sample,) = model.samples(asked, 0, ["emotion"])
    own = row["explained"]["emotion"]
    assert [*own["without"]] == [*own["alone"]] == list(sample.modalities)
    for name in sample.modalities:
        alone = sample
        for other in sample.modalities:
            alone = alone if other == name else alone.without(other)
        for way, tried in (("without", sample.without(name)), ("alone", alone)):
            (found,) = model.answer([tried])
            assert own[way][name]["answer"] == found.answer
            assert own[way][name]["probability"] == pytest.approx(found.probability, abs=1e-4)
    weights = row["gates"]["audio"]["levels"]["experts"]
    assert row["gates"]["audio"]["seconds"] == 1.0
    assert {len(column) for column in weights.values()} == {10}
    assert [sum(column[k] for column in weights.values()) for k in range(10)] == pytest.approx([1] * 10, abs=1e-3)
    assert row["clip"]["seconds"] == pytest.approx(1.0, abs=0.1)
    assert len(row["clip"]["outline"]) == 400
    assert [one["picture"][:23] for one in row["clip"]["moments"]] == ["data:image/jpeg;base64,"] * 2


def test_words_alone_lines_and_the_examples_of_the_description(client):
    content = PREDICT["openapi_extra"]["requestBody"]["content"]
    row = client.post("/predict", json=content["application/json"]["example"]).json()
    assert set(row["answers"]) == {"emotion", "sentiment"}
    assert row["absent"][0] == "audio"
    headers = {"content-type": "application/x-ndjson"}
    lines = content["application/x-ndjson"]["example"] + '{"text": 3}\n[1]\n{"text": "x", "features": {"audio": [[1]]}}'
    rows = [json.loads(line) for line in client.post("/predict", content=lines, headers=headers).text.splitlines()]
    assert [row["id"] for row in rows] == ["a", "1", 2, 3, "4"]
    assert [set(row["answers"]) for row in rows[:2]] == [{"emotion", "sentiment"}] * 2
    assert [row["error"] for row in rows[2:]] == [
        "line 3: utterance 2: its text is a int; a string is needed",
        "line 4: is a list; an object with text is needed",
        "utterance 4: audio is 1 wide; this model's is 182",
    ]
    described = client.get("/openapi.json").json()
    assert described["paths"]["/predict"]["post"]["requestBody"]["content"].keys() == content.keys()
    assert {"200", "413", "429", "503"} <= described["paths"]["/predict"]["post"]["responses"].keys()


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        ({"json": {"clip": "/etc/passwd"}}, 422, "the request has no use for 'clip'; it may have"),
        ({"json": {"text": "a", "features": {"audio": "/etc/passwd"}}}, 422, "names of files are not taken"),
        ({"json": {"text": "a", "task": "age"}}, 422, "the model has no task 'age'; it has emotion, sentiment"),
        ({"json": {"text": "a", "language": "fr"}}, 422, "no task is asked in 'fr'"),
        ({"json": {"text": ""}}, 422, "has neither text nor features"),
        ({"json": {"text": "a" * 20_001}}, 422, "has 20001 characters of text, context and names; at most 20000"),
        ({"json": {"text": "a", "explain": "yes"}}, 422, "explain is 'yes'; true or false is needed"),
        ({"content": "{", "headers": {"content-type": "application/json"}}, 422, "the request is no JSON"),
        ({"content": "[" * 9000, "headers": {"content-type": "application/json"}}, 422, "the request is no JSON"),
        ({"content": b"a" * (4 << 20) + b"a", "headers": {"content-type": "application/json"}}, 413, "larger than"),
        ({"content": "\n", "headers": {"content-type": "application/x-ndjson"}}, 422, "has no line"),
        (
            {"content": "{}\n" * 300, "headers": {"content-type": "application/x-ndjson"}},
            413,
            "has 300 lines; at most 256",
        ),
        ({"content": "a=b", "headers": {"content-type": "text/plain"}}, 415, "content-type is 'text/plain'; one of"),
        ({"content": "x", "headers": {"content-type": "multipart/form-data"}}, 400, "Missing boundary"),
        ({"files": {"clip": ("a.mp4", b"", "video/mp4")}}, 422, "has an empty clip (0 bytes)"),
        ({"files": {"clip": ("a.mp4", b"no film", "video/mp4")}}, 422, "the clip: is no media file"),
        ({"files": {"other": ("a.mp4", b"x")}}, 422, "has a file as 'other'; a recording comes as clip"),
        ({"files": [("clip", ("a", b"x")), ("clip", ("b", b"x"))]}, 400, "Too many files"),
        ({"data": {"clip": "x"}, "files": {"clip": ("a", b"x")}}, 422, "has no file as clip"),
        (
            {"files": {"clip": ("a.mp4", bytes(8 << 20) + b"x", "video/mp4")}},
            413,
            "the clip has 8388609 bytes; at most",
        ),
        ({"json": {"text": "a"}, "headers": {"host": "evil.example"}}, 403, "another name than its own (Host)"),
        ({"json": {"text": "a"}, "headers": {"origin": "http://evil.example"}}, 403, "a page of another server asks"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(client, service, request_, status, says):
    answer = client.post("/predict", **request_)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert str(service.folder) not in answer.text
    assert left(service) == []


@pytest.mark.parametrize("name", ["../../../../tmp/egmf-escaped.mp4", "/tmp/egmf-escaped.mp4", "a\\..\\b", "x" * 3000])
def test_the_name_of_an_upload_is_no_path(recorded, service, client, name):
    answer = client.post("/predict", data={"text": "a"}, files=upload(recorded / "clips" / "c3.mp4", name))
    assert answer.status_code == 200, answer.text
    assert left(service) == []
    assert not Path("/tmp/egmf-escaped.mp4").exists()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (many_frames, "has more than 2400 frames of video (max_frames)"),
        (vast_pictures, "its frames are 16000 by 16000; at most"),
        (lambda path: Clip(seconds=21, fps=1, size=(32, 32)).write(path), "s are read (max_seconds)"),
        (lambda path: Clip(seconds=1, silent=True, faces=False, size=(32, 32)).write(path), "nothing to answer from"),
    ],
)
def test_a_clip_that_is_meant_to_harm_is_refused_in_one_line(
    tmp_path: Path, service: Service, client: TestClient, make: Callable[[Path], Path], says: str
) -> None:
    if "frame" in says and "vision" not in service.model.streams:
        pytest.skip("this model reads no pictures: the face's models were not fetched")
    answer = client.post("/predict", files=upload(make(tmp_path / "a.mkv")))
    assert answer.status_code == 422, answer.text
    assert says in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert left(service) == []


def test_a_token_guards_what_was_sent_and_not_the_page(service):
    guarded = TestClient(build_app(service, token="s3cret"), base_url=URL)
    assert guarded.get("/health").json()["token"] is True
    assert guarded.get("/").status_code == 200
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic s3cret"},
        {"authorization": "s3cret"},
    ):
        for method, path in (("POST", "/predict"), ("GET", "/metrics"), ("POST", "/transcribe")):
            answer = guarded.request(method, path, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    right = {"authorization": "Bearer s3cret"}
    assert guarded.post("/predict", json={"text": "a"}, headers=right).status_code == 200


def test_words_are_transcribed_in_the_process_that_decodes(recorded, model, tmp_path):
    whisper_folder = whisper(tmp_path / "whisper", languages=("en",))
    made = Service(model, replace(SERVING, transcribe=str(whisper_folder)))
    try:
        own = TestClient(build_app(made), base_url=URL)
        assert own.get("/health").json()["transcribes"] is True
        said = own.post("/transcribe", files=upload(recorded / "clips" / "c3.mp4")).json()
        assert said["text"]
        assert (said["language"], said["model"].partition(" (")[0]) == ("en", str(whisper_folder))
        Clip(seconds=1, silent=True, size=(32, 32)).write(tmp_path / "silent.mp4")
        silent = own.post("/transcribe", files=upload(tmp_path / "silent.mp4")).json()
        assert silent == {"text": "", "reason": "silent (RMS 0.0e+00, below 1e-04)"}
        none = own.post("/transcribe", files={"clip": ("a.mp4", b"no film")})
        assert (none.status_code, none.json()["error"][:25]) == (422, "the clip is no media file")
        assert own.post("/transcribe", json={"text": "a"}).status_code == 422
        assert left(made) == []
    finally:
        made.close()


def test_counters_example_and_unknown_paths(recorded, service):
    client = TestClient(build_app(service), base_url=URL)
    assert client.post("/predict", files=upload(recorded / "clips" / "c3.mp4")).status_code == 200
    service.metrics.requests.labels("other", 404).reset()
    assert client.get("/example").content == service.example
    answer = client.get("/nothing")
    assert (answer.status_code, answer.json()["error"][:9]) == (404, "Not Found")
    assert client.get("/predict").status_code == 405
    assert client.post("/transcribe", files={"clip": ("a", b"x")}).status_code == 404
    text = client.get("/metrics").text
    assert 'egmf_requests_total{path="other",status="404"} 1.0' in text
    assert 'egmf_clip_streams_total{status="ok",stream="audio"}' in text
    assert "egmf_requests_running 1.0" in text


def test_the_page_may_do_nothing_but_ask_its_own_server(client):
    answer = client.get("/")
    assert answer.headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY
    assert answer.headers["cache-control"] == "no-cache"
    assert client.get("/health").headers["x-content-type-options"] == "nosniff"
    for word in (
        b"innerHTML",
        b"outerHTML",
        b"insertAdjacentHTML",
        b"document.write",
        b"eval(",
        b" style=",
        b"http://",
    ):
        assert word not in page().replace(b"http://www.w3.org/2000/svg", b"")


def test_a_proxy_may_ask_by_its_own_name_and_for_its_own_pages(service, monkeypatch):
    monkeypatch.setattr(service, "serving", replace(SERVING, names=("answers.example.org",)))
    client = TestClient(build_app(service, hosts=hosts_of("127.0.0.1", service.serving.names)), base_url=URL)
    words, page = {"text": "I got the job!"}, "https://answers.example.org"
    for host, origin, status in (
        ("answers.example.org", page, 200),  # the proxy hands on the name that it was asked by
        ("127.0.0.1:8000", page, 200),  # or asks by the server's own
        ("127.0.0.1:8000", "https://evil.example.org", 403),
        ("evil.example.org", "https://evil.example.org", 403),
    ):
        assert client.post("/predict", json=words, headers={"host": host, "origin": origin}).status_code == status


@pytest.mark.parametrize("name", ["https://a.example", "a.example:80", "A b", ""])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(EgmfError, match="--names"):
        replace(SERVING, names=(name,)).check()


def test_a_server_that_stops_refuses_and_says_so(service, client, monkeypatch):
    monkeypatch.setattr(service, "stopping", True)
    for answer in (client.post("/predict", json={"text": "a"}), client.get("/health")):
        assert (answer.status_code, answer.headers["connection"]) == (503, "close")
        assert answer.json() == {"error": "the server stops; another one may answer"}


def test_a_fault_of_ours_is_one_line_and_the_next_is_answered(service, client, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(service._batcher, "_answer", lambda samples: 1 / 0)
        answer = client.post("/predict", json={"text": "a"})
        assert (answer.status_code, answer.json()["error"]) == (
            500,
            "the server failed at this request; its log says why",
        )
    assert client.post("/predict", json={"text": "a"}).status_code == 200
