"""What a stranger may send to keep the server busy, full, or to make it fail: each is refused in one line, at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from egmf_dist.inference.model import load
from egmf_dist.serve.app import build_app
from egmf_dist.serve.server import hosts_of
from egmf_dist.serve.service import Service
from egmf_dist.serve.settings import CHARACTERS, CONTEXT_TURNS, FORM_FIELDS, TEXT_BYTES, Serving

LINES = {"content-type": "application/x-ndjson"}


@pytest.fixture(scope="module")
def service(exported: Path) -> Iterator[Service]:
    made = Service(load(exported), Serving(max_seconds=20))
    made.warm()
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(service: Service) -> TestClient:
    app = build_app(service, hosts=hosts_of("127.0.0.1"))
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def form(fields: dict[str, bytes], more: str = "", end: bytes = b"--b--\r\n") -> dict[str, Any]:
    """A request with a form, whose content-type says ``more``."""
    head = b'--b\r\ncontent-disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    body = b"".join(head % (name.encode(), value) for name, value in fields.items()) + end
    return {"content": body, "headers": {"content-type": f"multipart/form-data; boundary=b{more}"}}


def refused(client: TestClient, status: int, **request: Any) -> str:
    """The one line of a refusal that took little work: not by the clock, for others may work here, too."""
    begin = time.process_time()
    answer = client.post("/predict", **request)
    assert answer.status_code == status, answer.text[:400]
    assert time.process_time() - begin < 10
    said = answer.json()["error"]
    assert "\n" not in said
    assert len(said) < 300
    return said


@pytest.mark.parametrize("charset", ["punycode", "idna", "undefined", "utf-7", "latin-1", "nothing", "UTF-16"])
def test_a_form_in_another_charset_is_not_decoded_by_it(client, charset):
    said = refused(client, 400, **form({"text": b"+2AA-" + b"a" * 200_000}, f"; charset={charset}"))
    assert said == f"the form cannot be read: its charset is {charset!r}; UTF-8 is needed"


@pytest.mark.parametrize("more", ["", "; charset=utf-8", '; charset="UTF-8"', "; charset=utf8"])
def test_a_form_in_utf_8_is_read_whatever_its_boundary(client, more):
    request = form({"text": "我没有想到。".encode(), "id": "é".encode()}, more)
    assert client.post("/predict", **request).json()["id"] == "é"
    odd = "'()+_,-./:=? x"
    request["headers"] = {"content-type": f'multipart/form-data; boundary="{odd}"{more}'}
    request["content"] = request["content"].replace(b"--b", b"--" + odd.encode())
    assert client.post("/predict", **request).json()["id"] == "é"


def test_a_boundary_that_is_none_is_refused(client):
    headers = {"content-type": 'multipart/form-data; boundary="a\\"b"'}
    assert "its boundary is none" in refused(client, 400, content=b"", headers=headers)


@pytest.mark.parametrize("end", [b"", b"--b", b"--b\r\n", b'--b\r\ncontent-disposition: form-data; name="clip"; f'])
def test_a_form_that_breaks_off_is_not_answered_as_if_it_were_whole(client, end):
    assert "ends before its last boundary" in refused(client, 400, **form({"text": b"a"}, end=end))


def test_a_form_may_end_without_a_last_line_end(client):
    assert client.post("/predict", **form({"text": b"a"}, end=b"--b--")).status_code == 200


def test_fields_of_a_form_hold_together_no_more_than_is_said(client):
    share = TEXT_BYTES // FORM_FIELDS
    assert "maximum size" in refused(client, 400, **form({"text": b"a" * (share + 1)}))
    assert "has 262144 characters of text" in refused(client, 422, **form({"text": b"a" * share}))


def test_more_frames_than_the_longest_clip_has_are_refused(client, service):
    width = service.model.streams["audio"][0]
    assert service.rates["audio"] == 10
    asked = {"text": "a", "features": {"audio": [[0] * width] * 201}}
    assert client.post("/predict", json=asked).status_code == 200
    asked["features"]["audio"] *= 10
    assert refused(client, 422, json=asked) == "the request has 2010 frames of audio; at most 201 are taken"
    asked["features"]["audio"] = [asked["features"]["audio"]]  # an axis of 1 hides nothing
    assert refused(client, 422, json=asked) == "the request has 2010 frames of audio; at most 201 are taken"
    asked["features"]["audio"] = [0.5] * width
    assert client.post("/predict", json=asked).status_code == 200


def test_more_frames_than_a_minute_has_are_refused_where_the_rate_is_not_known(client, service, monkeypatch):
    monkeypatch.setattr(service, "rates", {})
    asked = {"text": "a", "features": {"audio": [[0]] * 3001}}
    assert refused(client, 422, json=asked) == "the request has 3001 frames of audio; at most 3000 are taken"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"context": ["a"] * 101}, "has 101 turns of context; at most 100"),
        ({"context": ["a"] * 500_000}, "has 500000 turns of context; at most 100"),
        ({"context": [["Ann", "a" * 11_000], "b" * 11_000]}, "has 22004 characters of text, context and names"),
        ({"context": [["a"] * 300_000]}, "has a context that is no list of turns"),
        ({"speaker": "a" * 1_000_000}, "has 1000001 characters of text, context and names"),
        ({"id": "a" * 1_000_000}, "has 1000001 characters of text, context and names"),
        ({"id": ["a"]}, "has a list as id"),
        ({"task": ["a"] * 101}, "names more than 100 tasks"),
        ({"task": "a," * 1_000_000}, "names more than 100 tasks"),
        ({"task": ["a" * 1_000_000]}, "characters of text, context and names"),
        ({"explain": ["a"] * 1_000}, "explain is a list"),
        ({"a" * 1_000_000: 1}, "has no use for"),
    ],
)
def test_what_is_too_much_is_refused_before_every_part_of_it_is_looked_at(client, monkeypatch, asked, says):
    monkeypatch.setattr("egmf_dist.serve.question.as_utterance", lambda *given: pytest.fail("it was looked at"))
    assert says in refused(client, 422, json={"text": "a"} | asked)


def test_as_much_as_is_said_is_taken(client):
    turns = [["Ann", "a" * 90]] * CONTEXT_TURNS
    assert client.post("/predict", json={"text": "a", "context": turns}).status_code == 200
    lines = b"Ann: hello\n" * CONTEXT_TURNS
    assert client.post("/predict", **form({"text": b"a", "context": lines})).status_code == 200


def test_a_forms_context_is_taken_apart_only_where_it_is_not_too_long(client):
    assert "has 101 turns of context" in refused(client, 422, **form({"text": b"a", "context": b"a\n" * 101}))
    said = refused(client, 422, **form({"text": b"a", "context": b"\n" * (2 * CHARACTERS) + b"a"}))
    assert said == "the request has 40001 characters of context; at most 20000 are read"
    said = refused(client, 422, **form({"text": b"a", "context": json.dumps(["a"] * 20_000).encode()}))
    assert "has 20000 turns of context" in said


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "//[", "null"])
def test_an_origin_that_is_no_address_is_a_foreign_one(client, origin):
    assert "(Origin)" in refused(client, 403, json={"text": "a"}, headers={"origin": origin})


def test_the_own_page_may_ask(client):
    headers = {"origin": "http://127.0.0.1"}
    assert client.post("/predict", json={"text": "a"}, headers=headers).status_code == 200


def test_a_line_at_which_the_server_fails_is_that_lines_fault_alone(client, service, monkeypatch, caplog):
    samples = service.model.samples

    def failing(utterance: Any, *more: Any) -> Any:
        if utterance.text == "bad":
            raise RuntimeError("of the model's own")
        return samples(utterance, *more)

    monkeypatch.setattr(service.model, "samples", failing)
    answer = client.post("/predict", content='{"text": "a"}\n{"text": "bad", "id": "x"}\n{"text": "b"}', headers=LINES)
    assert answer.status_code == 200, answer.text
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert ["answers" in row for row in rows] == [True, False, True]
    assert rows[1] == {"id": "x", "error": "the server failed at this line; its log says why"}
    assert [record.exc_info[1].args[0] for record in caplog.records if record.exc_info] == ["of the model's own"]
