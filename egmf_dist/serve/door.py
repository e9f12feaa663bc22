"""What every request passes: who may ask at all, what is counted, headers that protect the page.

Pure ASGI, so that a body still comes in as it is sent and a client that goes away is noticed.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Sequence
from hashlib import sha256
from urllib.parse import urlsplit

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from egmf_dist.serve.question import drain
from egmf_dist.serve.service import Service
from egmf_dist.serve.settings import RefusedError

OPEN = ("/", "/health", "/example", "/openapi.json")
"""Paths that need no token: nothing that was sent here can be seen there."""
KNOWN = (*OPEN, "/predict", "/transcribe", "/metrics")
SEND_SECONDS = 30.0
"""That a client may take to read a part of its answer."""
LOCAL = ("localhost", "127.0.0.1", "[::1]", "::1")
GONE = 499
"""A status for the counters alone: the client went away before its answer."""
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def refused(error: RefusedError) -> Response:
    """A refusal: ``{"error": ONE LINE}``."""
    headers = {} if error.retry is None else {"retry-after": str(error.retry)}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(orjson.dumps({"error": error.message}), error.status, headers, "application/json")


class Door:
    """The outermost layer.

    Args:
        app: behind it.
        service: which says whether it stops, and counts.
        token: what who asks must show; None: nothing.
        hosts: names by which the server may be called; None: any. On a loopback address it is its own names alone, so
            that no foreign page reaches it by a name that leads here (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, service: Service, token: str | None, hosts: Sequence[str] | None) -> None:
        self._app, self._service, self._hosts = app, service, hosts
        self._token = None if token is None else _digest(token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service, begin, status = self._service, time.monotonic(), GONE
        path = scope["path"] if scope["path"] in KNOWN else "other"

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if service.stopping:
                    headers["connection"] = "close"
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            if scope["method"] == "POST":
                await drain(Request(scope, receive))
            await refused(refusal)(scope, receive, sending)
            service.metrics.requests.labels(path, status).inc()
            return
        service.running += 1
        service.metrics.running.set(service.running)
        try:
            await self._app(scope, receive, sending)
        except (TimeoutError, asyncio.CancelledError):
            status = GONE
            raise
        finally:
            service.running -= 1
            service.metrics.running.set(service.running)
            service.metrics.requests.labels(path, status).inc()
            if path != "other":
                service.metrics.seconds.labels(path).observe(time.monotonic() - begin)

    def _refusal(self, scope: Scope) -> RefusedError | None:
        headers = Headers(scope=scope)
        if self._service.stopping:
            return RefusedError(503, "the server stops; another one may answer", 5)
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            return RefusedError(403, "the server is asked by another name than its own (Host); it answers to "
                                f"{', '.join(self._hosts)}")  # fmt: skip
        origin = headers.get("origin")
        if scope["method"] == "POST" and origin is not None and not self._is_own(origin, host):
            return RefusedError(403, "a page of another server asks (Origin); ask from the server's own page")
        if self._token is not None and scope["path"] not in OPEN:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(_digest(given.strip()), self._token):
                return RefusedError(401, "a token is needed: Authorization: Bearer TOKEN")
        return None

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether a page came from here: a proxy may ask by another name than its pages are found under."""
        place = _place(origin)
        return place is not None and (place == host or _name(place) in self._service.serving.names)


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()


def _place(origin: str) -> str | None:
    """Host and port of a page's address; None where it is no address, which no server's own page sends."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _name(host: str) -> str:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    return name.lower()
