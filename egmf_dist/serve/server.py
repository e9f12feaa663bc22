"""The application under uvicorn: a port, connections that say nothing, and a stop that answers what is running."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from egmf_dist.errors import EgmfError
from egmf_dist.serve.door import LOCAL, SEND_SECONDS
from egmf_dist.serve.service import Service

HEADER_SECONDS = 5.0
"""After as long, or twice as long, a connection without a whole request's head is ended."""
CONNECTIONS = 256
"""At once; further ones are told 503."""


class Protocol(H11Protocol):
    """HTTP/1.1 whose connections do not stay open for nothing: uvicorn itself waits for a request's head for ever."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See asyncio."""
        super().connection_made(transport)
        self._watch(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _watch(self, before: Any) -> None:
        """End a connection that was between requests a while ago and still is between the same."""
        if self.transport.is_closing():  # it is not lost yet: what was written is not read
            self._drop(None)
            return
        idle = self.cycle is None or self.cycle.response_complete
        now = (self.cycle,) if idle else None
        if now is not None and now == before:
            self.transport.close()
            self._drop(None)
            return
        self._timer = self.loop.call_later(HEADER_SECONDS, self._watch, now)

    def _drop(self, before: int | None) -> None:
        """End a connection that was closed and of whose answer nothing more is read: ``close`` alone would wait for
        such a client for ever, and keep the answer and one of :data:`CONNECTIONS` for it."""
        left = self.transport.get_write_buffer_size()
        if before is not None and left >= before:
            self.transport.abort()
            return
        self._timer = self.loop.call_later(SEND_SECONDS, self._drop, left)


class Server(uvicorn.Server):
    """Stops in order: it goes on listening and tells who comes now 503, answers what is running, and ends.

    Args:
        config: of uvicorn.
        service: whose requests are counted.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._draining: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C ask it to stop; a second one ends it at once."""
        loop, signals = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
        for one in signals:
            loop.add_signal_handler(one, self.ask_to_stop)
        try:
            yield
        finally:
            for one in signals:
                loop.remove_signal_handler(one)

    def ask_to_stop(self) -> None:
        """What a signal does."""
        if self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        self._service.stopping = True
        print(f"stopping: {self._service.running} requests are still answered", flush=True)
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        end = time.monotonic() + self._service.serving.stop_seconds
        while self._service.running and time.monotonic() < end:
            await asyncio.sleep(0.02)
        self.should_exit = True


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """SIGTERM raises SystemExit from here on, so that what a server that still loads has made is removed; a second
    one ends it at once."""
    if threading.current_thread() is not threading.main_thread():  # no other may say what a signal does
        yield
        return

    def end(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        EgmfError: the port is taken, or there is no such address here.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None) or 0  # below 0: of a name that leads nowhere
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or error
        raise EgmfError(f"--host {host} --port {port}: cannot listen there: {reason}; name another port") from error


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def hosts_of(host: str, names: Sequence[str] = ()) -> list[str] | None:
    """By which names a server may be asked, ``names`` of a proxy among them; None: by any."""
    return list(dict.fromkeys((*LOCAL, host, *names))) if is_loopback(host) else None


def run(app: FastAPI, service: Service, listening: socket.socket) -> None:
    """Serve until somebody asks it to stop; returns when everything is answered."""
    config = uvicorn.Config(
        app, http=Protocol, ws="none", loop="asyncio", log_level="warning", access_log=False,
        limit_concurrency=CONNECTIONS, timeout_keep_alive=5, server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=5, h11_max_incomplete_event_size=16 << 10,
    )  # fmt: skip
    server = Server(config, service)
    try:
        server.run(sockets=[listening])
    finally:
        service.close()
    print("stopped", file=sys.stdout, flush=True)
