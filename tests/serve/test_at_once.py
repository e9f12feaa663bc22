"""Several requests in one loop: bodies that come in, places that are taken, clients that go away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from served import SERVING, URL, left

from egmf_dist.serve.app import build_app
from egmf_dist.serve.service import Service


async def parts(data: bytes, count: int, pause: float) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield data
        await asyncio.sleep(pause)


def asked(service: Service, work: Callable[[httpx.AsyncClient], Any]) -> Any:
    """What happens in one loop, with several requests at once."""

    async def run() -> Any:
        transport = httpx.ASGITransport(build_app(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
            return await work(client)

    return asyncio.run(run())


FORM = {"content-type": "multipart/form-data; boundary=b"}
HEAD = b'--b\r\ncontent-disposition: form-data; name="clip"; filename="a"\r\n\r\n'


def test_a_huge_body_is_refused_while_it_comes_in_and_a_slow_one_when_its_time_is_over(service, monkeypatch):
    monkeypatch.setattr(service, "serving", replace(SERVING, upload_seconds=0.5))

    async def work(client: httpx.AsyncClient) -> list[tuple[int, str]]:
        huge = parts(HEAD + bytes(1 << 20), 4000, 0.0)
        claimed = {"content-length": str(1 << 40)}
        slow = await client.post("/predict", content=parts(HEAD, 3, 0.4), headers=FORM)
        service.serving = SERVING  # the others end by their size, however busy the machine is
        found = [
            await client.post("/predict", content=huge, headers=FORM),
            slow,
            await client.post("/predict", content=parts(HEAD, 1, 0.0), headers=FORM | claimed),
        ]
        return [(answer.status_code, answer.json()["error"]) for answer in found]

    huge, slow, claimed = asked(service, work)
    assert huge[0] == claimed[0] == 413
    assert "larger than" in huge[1]
    assert slow == (408, "the body took longer than 0.5 s to come in")
    assert left(service) == []


def test_a_body_that_comes_in_drops_holds_its_place_for_a_moment_alone(service, monkeypatch):
    monkeypatch.setattr("egmf_dist.serve.question.UPLOAD_GRACE_SECONDS", 0.3)
    monkeypatch.setattr("egmf_dist.serve.question.UPLOAD_BYTES_A_SECOND", 1000)

    async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
        drops = client.post("/predict", content=parts(b"{", 100, 0.2), headers={"content-type": "application/json"})
        words = b'{"text": "I got the job!"}'
        steady = parts(b" " * 500, 4, 0.3)  # longer than the grace, at more than enough speed

        async def whole() -> AsyncIterator[bytes]:
            async for part in steady:
                yield part
            yield words

        steadily = client.post("/predict", content=whole(), headers={"content-type": "application/json"})
        return list(await asyncio.gather(drops, steadily))

    drops, steadily = asked(service, work)
    assert (drops.status_code, drops.json()["error"]) == (408, "the body came in at less than 1000 bytes a second")
    assert steadily.status_code == 200


def test_whoever_comes_when_all_places_are_taken_is_told_when_to_come_again(service, monkeypatch):
    held, begun = threading.Event(), threading.Event()
    answer = service._batcher._answer

    def slowly(samples: Any) -> Any:
        begun.set()
        assert held.wait(20)
        return answer(samples)

    monkeypatch.setattr(service._batcher, "_answer", slowly)

    async def work(client: httpx.AsyncClient) -> tuple[Any, list[Any]]:
        running = [asyncio.create_task(client.post("/predict", json={"text": f"word {n}"})) for n in range(2)]
        await asyncio.to_thread(begun.wait, 20)
        while service._taken < 2:
            await asyncio.sleep(0.01)
        late = await client.post("/predict", json={"text": "late"})
        held.set()
        return late, await asyncio.gather(*running)

    late, running = asked(service, work)
    assert late.status_code == 429
    assert 1 <= int(late.headers["retry-after"]) <= 60
    assert late.json()["error"].startswith("2 utterances wait already; come again in ")
    assert [one.status_code for one in running] == [200, 200]
    assert service._taken == 0


@pytest.mark.parametrize("while_", ["its clip is decoded", "its body comes in"])
def test_a_client_that_goes_away_leaves_nothing_behind(recorded, service, while_, caplog):
    decoded = while_ == "its clip is decoded"
    body = HEAD + (recorded / "clips" / "c3.mp4").read_bytes() + b"\r\n--b--\r\n"
    scope = {
        "type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b"",
        "headers": [(b"content-type", FORM["content-type"].encode()), (b"host", b"127.0.0.1")],
        "http_version": "1.1", "scheme": "http", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        "root_path": "",
    }  # fmt: skip
    seen: list[list[str]] = []

    async def run() -> None:
        messages = [{"type": "http.request", "body": body if decoded else body[:-999], "more_body": not decoded}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            while decoded and not left(service):
                await asyncio.sleep(0.001)
            seen.append(left(service))
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            pass

        await build_app(service)(scope, receive, send)

    asyncio.run(run())
    assert len(seen[0]) == decoded
    assert left(service) == []
    assert service._taken == service._uploading == service.running == 0
    assert caplog.records == []
