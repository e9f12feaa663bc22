"""A request's body as a question: bounded while it comes in, and never a path on this machine."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from egmf_dist.errors import EgmfError
from egmf_dist.inference.utterance import Utterance, as_utterance
from egmf_dist.serve.settings import (
    CHARACTERS,
    CONTEXT_TURNS,
    FORM_FIELDS,
    LINES,
    OVERHEAD_BYTES,
    TASKS,
    TEXT_BYTES,
    UPLOAD_BYTES_A_SECOND,
    UPLOAD_GRACE_SECONDS,
    RefusedError,
    Serving,
)

FIELDS = ("id", "text", "speaker", "language", "context", "task", "features", "explain")
"""Of a JSON object; a form has the same but ``features``, and ``clip``."""
MULTIPART, JSON = "multipart/form-data", "application/json"
JSON_LINES = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines")
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
DRAIN_SECONDS = 2.0
"""How long a refused body is still read, so that the client hears why before its connection ends."""


@dataclass(frozen=True)
class Question:
    """What is asked about one utterance."""

    utterance: Utterance
    """Without a clip, which is a file of this machine there."""
    tasks: list[str] | None = None
    """None: all."""
    explain: bool = False
    """Also with each modality alone and taken away, gates by time, and a preview of the clip."""
    clip: UploadFile | None = None


@dataclass(frozen=True)
class Body:
    """What came in."""

    kind: str
    """Its media type."""
    asked: list[Question | str]
    """A question, or of a line what is wrong with it."""
    form: FormData | None = None

    async def close(self) -> None:
        """Let go of files that came along."""
        if self.form is not None:
            await self.form.close()


def question_of(data: Any, number: int = 0, recorded: bool = False) -> Question:
    """A JSON object as a question; ``recorded`` where a clip came along, so that words may be missing.

    Raises:
        EgmfError: it is none, has a field that there is not, or one of another kind.
    """
    if not isinstance(data, Mapping):
        raise EgmfError(f"is a {type(data).__name__}; an object with text is needed")
    data = {name: value for name, value in data.items() if value is not None}
    odd = next((name for name in data if name not in FIELDS), None)
    if odd is not None:
        hint = "; a clip is uploaded as multipart/form-data" if odd == "clip" else ""
        raise EgmfError(f"has no use for {odd[:40]!r}; it may have {', '.join(FIELDS)}{hint}")
    features = data.get("features", {})
    if isinstance(features, Mapping) and any(isinstance(array, str) for array in features.values()):
        raise EgmfError("features are arrays of numbers by stream; names of files are not taken")
    explain, tasks = data.get("explain", False), data.get("task")
    if not isinstance(explain, bool):
        shown = repr(explain[:40]) if isinstance(explain, str) else f"a {type(explain).__name__}"
        raise EgmfError(f"explain is {shown}; true or false is needed")
    if isinstance(tasks, str):
        tasks = [name.strip() for name in tasks.split(",", TASKS) if name.strip()]
    if tasks is not None and not (isinstance(tasks, list) and tasks and all(isinstance(name, str) for name in tasks)):
        raise EgmfError("task is no name, nor a list of names")
    _check_size(data, tasks or [])
    own = {name: data[name] for name in ("text", "speaker", "language", "context", "features") if name in data}
    own |= {"id": str(data.get("id", "") or number)} | ({"clip": "clip"} if recorded else {})
    return Question(replace(as_utterance(own, number), clip=None), tasks, explain)


def _check_size(data: Mapping[str, Any], tasks: list[str]) -> None:
    """Refuse what is too much before anything looks at every part of it, or repeats it in a complaint."""
    if isinstance(data.get("id"), list | dict):
        raise EgmfError(f"has a {type(data['id']).__name__} as id; a string, or a number, is needed")
    if len(tasks) > TASKS:
        raise EgmfError(f"names more than {TASKS} tasks")
    context = data.get("context", ())
    turns = context if isinstance(context, list) else []
    if len(turns) > CONTEXT_TURNS:
        raise EgmfError(f"has {len(turns)} turns of context; at most {CONTEXT_TURNS} are taken")
    parts = [*tasks, *(data.get(name) for name in ("id", "text", "speaker", "language"))]
    for turn in turns:
        words = [turn] if isinstance(turn, str) else turn
        if not (isinstance(words, list) and 1 <= len(words) <= 2 and all(isinstance(word, str) for word in words)):
            raise EgmfError("has a context that is no list of turns; [speaker, text], or the text alone, is a turn")
        parts += words
    characters = sum(len(part) for part in parts if isinstance(part, str))
    if characters > CHARACTERS:
        raise EgmfError(f"has {characters} characters of text, context and names; at most {CHARACTERS} are read")


async def read_body(request: Request, serving: Serving) -> Body:
    """What a request asks; the caller closes it.

    Raises:
        RefusedError: the body is too large, too slow, or cannot be read.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    form: FormData | None = None
    patience = Patience(serving.upload_seconds)
    try:
        async with patience.bound:
            if kind == MULTIPART:
                form = await _form(request, serving, patience)
                return Body(kind, [_question_of_form(form)], form)
            if kind in (JSON, *JSON_LINES):
                data = b"".join([part async for part in limited(request, TEXT_BYTES, patience)])
                return Body(kind, _lines(data) if kind in JSON_LINES else [question_of(_parsed(data))])
        known = ", ".join([MULTIPART, JSON, JSON_LINES[0]])
        raise RefusedError(415, f"content-type is {kind[:80]!r}; one of {known} is needed")
    except BaseException as error:
        if form is not None:
            await form.close()
        if isinstance(error, TimeoutError):
            raise RefusedError(408, patience.lost()) from error
        if isinstance(error, EgmfError):
            raise RefusedError(422, said(error)) from error
        raise


def said(error: EgmfError) -> str:
    """A complaint about a question, as its reader sees it: what is wrong is the request's."""
    text = str(error)
    return text if text.startswith(("utterance ", "the clip", "the model")) else f"the request {text}"


class Patience:
    """How long a body is waited for: to the end of its time, and only while it comes in at some speed.

    Made inside the loop, where its time begins.

    Args:
        seconds: that the whole body may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._begin = seconds, asyncio.get_running_loop().time()
        self._slow = True
        self.bound = asyncio.timeout_at(self._end(0))
        """Inside it the body is read."""

    def _end(self, seen: int) -> float:
        by_speed = UPLOAD_GRACE_SECONDS + seen / UPLOAD_BYTES_A_SECOND
        self._slow = by_speed < self._seconds
        return self._begin + min(by_speed, self._seconds)

    def seen(self, count: int) -> None:
        """So many bytes have come in."""
        self.bound.reschedule(self._end(count))

    def lost(self) -> str:
        """Why nobody waits any more."""
        if self._slow:
            return f"the body came in at less than {UPLOAD_BYTES_A_SECOND} bytes a second"
        return f"the body took longer than {self._seconds:g} s to come in"


async def limited(request: Request, most: int, patience: Patience) -> AsyncGenerator[bytes, None]:
    """A body as it comes in, refused as soon as it is seen to be larger.

    Raises:
        RefusedError: it is.
    """
    refusal = RefusedError(413, f"the body is larger than {most} bytes")
    claimed = request.headers.get("content-length", "")
    if claimed.isdecimal() and int(claimed) > most:
        raise refusal
    seen = 0
    async for part in request.stream():
        seen += len(part)
        if seen > most:
            raise refusal
        patience.seen(seen)
        yield part


async def drain(request: Request) -> None:
    """Read on for a moment what is refused: a client that still sends would not see the answer."""
    if "expect" in request.headers:  # it has not begun to send
        return
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            async for _ in request.stream():
                pass
    except Exception:  # it went away, took too long, or the body was read already
        return


class _FormParser(MultiPartParser):
    """Also says whether the form was whole: starlette takes one that breaks off for one with fewer parts."""

    ended = False

    def on_end(self) -> None:
        """The last boundary came."""
        self.ended = True


def _form_headers(request: Request) -> Headers:
    """What the parser may know of the request: the boundary alone.

    It would decode every field by whatever ``charset`` the request names: some of Python's codecs take time in the
    square of the length, raise what nobody expects, or let halves of characters through.

    Raises:
        RefusedError: another charset than UTF-8 is named, or the boundary is none.
    """
    _, options = parse_options_header(request.headers["content-type"])
    charset = options.get(b"charset", b"utf-8").decode("latin-1")
    if charset.strip().lower() not in ("utf-8", "utf8"):
        raise RefusedError(400, f"the form cannot be read: its charset is {charset[:40]!r}; UTF-8 is needed")
    if b"boundary" not in options:
        return Headers({"content-type": MULTIPART})
    boundary = options[b"boundary"].decode("latin-1")
    if not _BOUNDARY.fullmatch(boundary):
        raise RefusedError(400, "the form cannot be read: its boundary is none; 1 to 70 letters and digits are one")
    return Headers({"content-type": f'{MULTIPART}; boundary="{boundary}"'})


async def _form(request: Request, serving: Serving, patience: Patience) -> FormData:
    stream = limited(request, serving.max_bytes + OVERHEAD_BYTES + TEXT_BYTES, patience)
    # What comes in lies in a file without a name, so that nothing is left of it whatever happens to this process.
    parser = _FormParser(
        _form_headers(request), stream,
        max_files=1, max_fields=FORM_FIELDS, max_part_size=TEXT_BYTES // FORM_FIELDS,
    )  # fmt: skip
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RefusedError(400, f"the form cannot be read: {error.message}") from error
    if not parser.ended:
        await form.close()
        raise RefusedError(400, "the form cannot be read: it ends before its last boundary, so a part may be missing")
    clip = form.get("clip")
    if isinstance(clip, UploadFile) and (clip.size or 0) > serving.max_bytes:
        size = clip.size
        await form.close()
        raise RefusedError(413, f"the clip has {size} bytes; at most {serving.max_bytes} are taken")
    return form


def _question_of_form(form: FormData) -> Question:
    data: dict[str, Any] = {}
    clip: UploadFile | None = None
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != "clip":
                raise EgmfError(f"has a file as {name[:40]!r}; a recording comes as clip")
            clip = value
        elif name == "features" or name not in FIELDS:
            fields = ", ".join((*(field for field in FIELDS if field != "features"), "clip"))
            what = "no file as clip" if name == "clip" else f"no use for {name[:40]!r}"
            raise EgmfError(f"has {what}; it may have {fields}")
        elif name == "explain":
            data[name] = _flag(value)
        elif name == "task":
            data[name] = [*data.get(name, []), *(word.strip() for word in value.split(",", TASKS) if word.strip())]
        elif value.strip():
            data[name] = _turns(value) if name == "context" else value
    data = {name: value for name, value in data.items() if value != []}
    if clip is not None and not clip.size:
        raise EgmfError("has an empty clip (0 bytes)")
    if clip is None:
        return question_of(data)
    return replace(question_of(data, recorded=True), clip=clip)


def _flag(value: str) -> bool:
    word = value.strip().lower()
    if word not in ("true", "1", "false", "0", ""):
        raise EgmfError(f"has {value[:40]!r} as explain; true or false is needed")
    return word in ("true", "1")


def _turns(value: str) -> list[Any]:
    """Context as JSON, or a turn a line: ``speaker: text``, or the text alone."""
    if value.lstrip().startswith("["):
        found = _parsed(value.encode())
        return found if isinstance(found, list) else [found]
    if len(value) > 2 * CHARACTERS:  # before it is taken apart: half of it may be ends of lines
        raise EgmfError(f"has {len(value)} characters of context; at most {CHARACTERS} are read")
    turns: list[Any] = []
    for line in filter(str.strip, value.splitlines()):
        speaker, colon, text = line.partition(": ")
        turns.append([speaker.strip(), text.strip()] if colon and len(speaker) <= 40 else line.strip())
    return turns


def _lines(data: bytes) -> list[Question | str]:
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), start=1) if line.strip()]
    if not lines:
        raise EgmfError("has no line; one JSON object a line is needed")
    if len(lines) > LINES:
        raise RefusedError(413, f"the body has {len(lines)} lines; at most {LINES} are answered at once")
    asked: list[Question | str] = []
    for place, (number, line) in enumerate(lines):
        try:
            asked.append(question_of(_parsed(line), place))
        except (EgmfError, ValueError) as error:
            asked.append(f"line {number}: {error}")
    return asked


def _parsed(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise EgmfError(f"is no JSON: {error}") from error
