"""Connections and signals: who does not read is dropped, and a server that still loads ends in order."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from egmf_dist.serve import server
from egmf_dist.serve.server import Protocol, ended_in_order

MUCH = 32 << 20
"""Bytes that lie in no socket's buffers."""


async def much(scope: Any, receive: Any, send: Any) -> None:
    """An application whose answer is large."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(MUCH)})


def served(work: Any) -> Any:
    """What ``work`` finds, given the port and the state of a server of ``much``."""

    async def run() -> Any:
        state, config = ServerState(), uvicorn.Config(much, http=Protocol, ws="none", log_level="critical")
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(lambda: Protocol(config, state, {}), "127.0.0.1", 0)
        async with listening:
            return await work(listening.sockets[0].getsockname()[1], state)

    return asyncio.run(run())


@pytest.mark.parametrize("close", [b"", b"connection: close\r\n"])
def test_who_does_not_read_an_answer_is_dropped(monkeypatch, close):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.1)
    monkeypatch.setattr(server, "SEND_SECONDS", 0.2)

    async def work(port: int, state: ServerState) -> int:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n" + close + b"\r\n")
            end = time.monotonic() + 60
            while not state.connections and time.monotonic() < end:
                await asyncio.sleep(0.01)
            assert state.connections
            while state.connections and time.monotonic() < end:
                await asyncio.sleep(0.05)
            return len(state.connections)

    assert served(work) == 0


def test_who_reads_slowly_is_not_dropped(monkeypatch):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.1)
    monkeypatch.setattr(server, "SEND_SECONDS", 2.0)

    async def work(port: int, state: ServerState) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        seen = 0
        while part := await reader.read(1 << 20):
            seen += len(part)
            await asyncio.sleep(0.02)
        writer.close()
        return seen

    assert served(work) >= MUCH


def test_a_server_that_still_loads_ends_in_order():
    before, removed = signal.getsignal(signal.SIGTERM), []

    def load() -> None:
        with ended_in_order():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
            finally:
                removed.append(signal.getsignal(signal.SIGTERM))

    with pytest.raises(SystemExit) as ended:
        load()
    assert (ended.value.code, removed) == (143, [signal.SIG_DFL])  # by which a second one ends it at once
    assert signal.getsignal(signal.SIGTERM) is before
