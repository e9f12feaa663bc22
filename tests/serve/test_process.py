"""``egmf serve`` as a process: under load, told to stop, refused before it begins."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest

from egmf_dist import Utterance, load
from egmf_dist.bench.serving import Client, answered_at_stop, ask_for, form, started
from egmf_dist.inference.predict import row_of
from egmf_launcher.cli import main

SECONDS, CLIENTS, WARM = 8.0, 6, 12


def get(url: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_load_of_every_kind_harms_no_good_request_and_a_stop_answers_what_is_running(exported, tmp_path):
    environ = os.environ | {"TMPDIR": str(tmp_path)}
    with started(exported, ["--max-bytes", str(2 << 20), "--max-queue", "32"], environ) as server:
        status, clip = get(server.url, "/example")
        assert status == 200
        client = Client(server.url, clip, 2 << 20)
        (folder,) = tmp_path.glob("egmf-serve-*")
        found = ask_for(client, SECONDS, CLIENTS)
        assert found.wrong() == []
        assert {kind for kind, counts in found.statuses.items() if counts} == {"good", "huge", "broken", "slow", "gone"}
        assert found.statuses["good"][200] >= CLIENTS
        assert found.statuses["huge"][413] >= 1
        assert found.statuses["broken"][422] >= 1
        assert json.loads(get(server.url, "/health")[1])["status"] == "ok"
        # By count and not by the clock: a process that has answered too little still grows for the first time.
        assert [client.ask("good") for _ in range(WARM)] == [200] * WARM
        before = server.memory()
        ask_for(client, SECONDS / 2, CLIENTS)
        assert server.memory() < before + (96 << 20)
        assert [path.name for path in folder.iterdir()] == ["example.mp4"]
        statuses, code = answered_at_stop(server, client)
        assert (statuses, code) == ([200] * 4, 0), server.log.read_text()
        assert not folder.exists()
        assert "Traceback" not in server.log.read_text()


def test_connections_that_say_nothing_are_ended_and_keep_nobody_out(exported):
    with started(exported) as server:
        where = urlsplit(server.url)
        silent = [socket.create_connection((where.hostname, where.port), timeout=60) for _ in range(40)]
        try:
            for one in silent[:20]:
                one.sendall(b"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\n")
            assert get(server.url, "/health")[0] == 200
            assert silent[0].recv(100) == b""
            assert silent[-1].recv(100) == b""
        finally:
            for one in silent:
                one.close()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--port", "TAKEN"], "cannot listen there: Address already in use; name another port"),
        (["--port", "99999"], "cannot listen there"),
        (["--host", "192.0.2.1", "--port", "0"], "cannot listen there"),
        (["--max-queue", "0"], "--max-queue is 0; it must be 1 or more"),
        (["--max-seconds", "0"], "--max-seconds is 0; seconds above 0 are needed"),
        (["--batch", "0"], "--batch is 0"),
        (["--token", ""], "letters, digits and signs of ASCII without spaces are needed"),
        (["--replicas", "2"], "--replicas and --hostfile: need --ray"),
        (["--port", "0"], "no egmf.json in it; give a folder that egmf export wrote, or a run's"),
    ],
)
def test_a_server_that_cannot_be_says_why_in_one_line_and_leaves_nothing(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # others' tests make such folders in the shared one
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = [str(taken.getsockname()[1]) if word == "TAKEN" else word for word in words]
        assert main(["serve", str(tmp_path / "nowhere"), *words]) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert said.count("\n") == 0
    assert list(tmp_path.glob("egmf-serve-*")) == []


def test_a_server_that_is_told_to_stop_while_it_loads_leaves_nothing(exported, tmp_path):
    command = [sys.executable, "-m", "egmf_launcher.cli", "serve", str(exported), "--port", "0"]
    process = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 300
        while not (made := list(tmp_path.glob("egmf-serve-*"))) and time.monotonic() < end:
            assert process.poll() is None
            time.sleep(0.01)
        assert made
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
        assert list(tmp_path.glob("egmf-serve-*")) == []
    finally:
        process.kill()
        process.wait()


def test_without_ray_serve_a_line_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("egmf_launcher.ray.serving.OF_THE_EXTRA", ("no_such_module",))
    assert main(["serve", str(tmp_path), "--ray"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("egmf: error: --ray: Ray Serve is not installed (no_such_module is missing): ")
    assert said.rstrip().endswith("pip install 'ray[serve]>=2.60,<2.61'")


def test_the_load_knows_what_is_wrong():
    """Or it would find nothing whatever a server does."""
    from egmf_dist.bench.serving import Requests

    found = Requests()
    found.add("good", 200, 0.5)
    found.add("broken", 422, 0.1)
    assert found.wrong() == []
    found.add("good", 500, 0.1)
    found.add("broken", 200, 0.1)
    found.errors.append("good: ConnectionResetError: x")
    assert found.wrong() == ["good: 1 answered 500", "broken: 1 answered 200", "good: ConnectionResetError: x"]
    assert found.quantile(0.99) == 0.5
    assert form({"a": "b"}, b"c").count(b"egmf-load") == 3


def test_replicas_under_ray_answer_as_one_process_does_and_end_in_order(exported, recorded):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    clip, words = recorded / "clips" / "c1.mp4", "I got the job!"
    token = {"authorization": "Bearer s3cret"}
    options = ["--ray", "--replicas", "2", "--port", str(port)]
    with started(exported, options, os.environ | {"EGMF_SERVE_TOKEN": "s3cret"}) as server, httpx.Client(
        base_url=server.url, timeout=120
    ) as client:  # fmt: skip

        def ask(data: bytes, headers: dict[str, str] = token) -> httpx.Response:
            return client.post("/predict", files={"clip": ("a.mp4", data)}, data={"text": words}, headers=headers)

        assert client.get("/health").json()["status"] == "ok"
        assert ask(clip.read_bytes(), {}).status_code == 401
        answers = [ask(clip.read_bytes()) for _ in range(6)]  # of both replicas, whichever is free
        assert [answer.status_code for answer in answers] == [200] * 6, server.log.read_text()
        broken = ask(b"no clip at all")
        assert (broken.status_code, list(broken.json())) == (422, ["error"])
        with ThreadPoolExecutor(4) as running:
            last = [running.submit(ask, clip.read_bytes()) for _ in range(4)]
            time.sleep(0.05)
            assert server.stop() == 0, server.log.read_text()
            assert {one.result().status_code for one in last if not one.exception()} <= {200, 503}
        assert "Traceback" not in server.log.read_text()
    own = row_of(0, load(exported).predict(Utterance(words), clip=clip))
    for answer in answers:
        assert answer.json()["answers"].keys() == own["answers"].keys()
        for task, said in answer.json()["answers"].items():
            assert said["probabilities"] == pytest.approx(own["answers"][task]["probabilities"], abs=1e-5)
