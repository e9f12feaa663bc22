"""The ASGI application: paths, what they answer, how a failure reads.

``POST /predict`` (a form with a clip, JSON, JSON lines), ``POST /transcribe``, ``GET /health``, ``/metrics``,
``/openapi.json``, ``/example`` (a drawn clip) and ``/``, the page. Every refusal is ``{"error": ONE LINE}``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from egmf_dist import __version__
from egmf_dist.errors import EgmfError
from egmf_dist.serve.door import GONE, Door, refused
from egmf_dist.serve.openapi import HEALTH, METRICS, PREDICT, TRANSCRIBE
from egmf_dist.serve.page import PAGE_HEADERS, page
from egmf_dist.serve.question import JSON_LINES, Body, drain, read_body, said
from egmf_dist.serve.service import Service
from egmf_dist.serve.settings import RefusedError

T = TypeVar("T")
log = logging.getLogger("egmf.serve")


class GoneError(Exception):
    """The client went away; there is nobody to answer."""


def build_app(service: Service, token: str | None = None, hosts: Sequence[str] | None = None) -> FastAPI:
    """The application around a service, which it closes at its end.

    Args:
        service: that answers.
        token: who asks must show it; None: nobody must.
        hosts: see :class:`egmf_dist.serve.door.Door`.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.to_thread(service.close)

    # FastAPI's own documentation pages fetch scripts of other servers.
    app = FastAPI(
        title="egmf", version=__version__, lifespan=life, docs_url=None, redoc_url=None,
        summary="Emotion and sentiment of an utterance, from its words and a recording of it",
    )  # fmt: skip
    app.add_middleware(Door, service=service, token=token, hosts=hosts)
    _add_failures(app)
    _add_paths(app, service, token is not None)
    return app


def _add_paths(app: FastAPI, service: Service, guarded: bool) -> None:
    @app.post("/predict", **PREDICT)
    async def predict(request: Request) -> Response:
        body = await _received(request, service)
        try:
            if body.kind in JSON_LINES:
                rows = await while_there(request, service.answer_lines(body.asked))
                return Response(b"".join(orjson.dumps(row) + b"\n" for row in rows), media_type=body.kind)
            (question,) = body.asked
            assert not isinstance(question, str)
            return as_json(await while_there(request, service.answer(question)))
        finally:
            await body.close()

    @app.post("/transcribe", **TRANSCRIBE)
    async def transcribe(request: Request) -> Response:
        body = await _received(request, service)
        try:
            question = body.asked[0]
            if isinstance(question, str) or question.clip is None:
                raise RefusedError(422, "the request has no clip; a recording comes as clip in multipart/form-data")
            return as_json(await while_there(request, service.transcribe(question.clip)))
        finally:
            await body.close()

    @app.get("/health", **HEALTH)
    async def health() -> Response:
        return as_json({"status": "ok", "version": __version__, "token": guarded} | service.about())

    @app.get("/metrics", **METRICS)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/example", summary="A drawn clip: a face of ellipses, a voice of harmonics", response_class=Response)
    async def example() -> Response:
        return Response(service.example, media_type="video/mp4")

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return Response(page(), media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)


async def _received(request: Request, service: Service) -> Body:
    try:
        with service.uploading():
            return await read_body(request, service.serving)
    except RefusedError:
        await drain(request)
        raise


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, given up when the client goes away.

    Raises:
        GoneError: it did.
    """
    doing = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise GoneError
        return doing.result()
    finally:
        for task in (doing, gone):
            task.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def as_json(data: Any, status: int = 200) -> Response:
    """JSON in UTF-8."""
    return Response(orjson.dumps(data), status, media_type="application/json")


def _add_failures(app: FastAPI) -> None:
    async def on_refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        return refused(error)

    async def on_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, EgmfError)
        return refused(RefusedError(422, said(error)))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = "POST /predict, POST /transcribe, GET /, /health, /metrics, /example, /openapi.json"
        return refused(RefusedError(error.status_code, f"{error.detail}: there is {known}"))

    async def on_gone(request: Request, error: Exception) -> Response:
        return Response(status_code=GONE)

    async def on_fault(request: Request, error: Exception) -> Response:
        log.error("%s failed", request.url.path, exc_info=error)
        return refused(RefusedError(500, "the server failed at this request; its log says why"))

    app.add_exception_handler(RefusedError, on_refused)
    app.add_exception_handler(EgmfError, on_error)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(GoneError, on_gone)
    app.add_exception_handler(ClientDisconnect, on_gone)
    app.add_exception_handler(Exception, on_fault)
