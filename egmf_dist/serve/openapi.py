"""What ``/openapi.json`` says of each path, with examples."""

from __future__ import annotations

from typing import Any

from egmf_dist.serve.question import JSON, JSON_LINES, MULTIPART

_FIELDS: dict[str, Any] = {
    "id": {"type": "string", "description": "comes back in the answer"},
    "text": {"type": "string", "description": "what was said; may be missing where there is a clip or a feature"},
    "speaker": {"type": "string"},
    "language": {"type": "string", "description": "en, zh, ...; told from the script where it is missing"},
    "task": {"description": "names, comma-separated or a list; all that are asked in the language where it is missing",
             "oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    "explain": {"type": "boolean", "description": "also each modality alone and taken away, gates by time, the clip"},
}  # fmt: skip
_NUMBER = {"type": "number"}
_CONTEXT = "the preceding turns, oldest first: [speaker, text], or the text alone"
_OBJECT: dict[str, Any] = {
    "type": "object",
    "properties": _FIELDS | {
        "context": {"type": "array", "description": _CONTEXT, "items": {}},
        "features": {"type": "object", "description": "by stream numbers [frames, dim]",
                     "additionalProperties": {"type": "array", "items": {"type": "array", "items": _NUMBER}}},
    },
}  # fmt: skip
_FORM: dict[str, Any] = {
    "type": "object",
    "properties": _FIELDS | {
        "clip": {"type": "string", "format": "binary", "description": "a recording: mp4, webm, mov, mkv, wav, ..."},
        "context": {"type": "string", "description": f"{_CONTEXT}; as JSON, or a turn a line, `speaker: text`"},
    },
}  # fmt: skip
_ASKED = {"text": "I got the job!", "speaker": "Ann", "context": [["Ben", "Any news?"]], "language": "en"}
_LINES = '{"id": "a", "text": "Hello."}\n{"text": "Go away!"}\n'
_ROW = {
    "id": "0",
    "language": "en",
    "made_by": {"audio": "prosody 1 (d14b32f5c6ed)"},
    "absent": ["vision"],
    "why_absent": {"vision": "no face in any frame"},
    "answers": {
        "emotion": {"answer": "joy", "calibrated": True, "label": "joy", "probabilities": {"joy": 0.75, "anger": 0.25}},
        "sentiment": {
            "answer": "1.5",
            "calibrated": True,
            "value": 1.4,
            "interval": [0.9, 2.1],
            "probabilities": {"1.5": 0.6, "1.0": 0.4},
        },
    },
}
_ROWS = '{"id": "0", "answers": {}}\n{"id": 1, "error": "line 2: ..."}\n'
_ERROR = {
    "content": {JSON: {"schema": {"type": "object", "properties": {"error": {"type": "string"}}},
                       "example": {"error": "the clip: is no media file that is known here"}}},
}  # fmt: skip
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": description} | _ERROR
    for status, description in {
        400: "the form cannot be read",
        401: "a token is needed: Authorization: Bearer TOKEN",
        403: "asked by a foreign page, or by another name than the server's",
        408: "the body took too long to come in",
        413: "the body, or the clip, is too large",
        415: "the content-type is none that is read",
        422: "the question, or its clip, cannot be used; one line says why",
        429: "the queue is full; Retry-After says when to come again",
        503: "the server stops",
    }.items()
}
PREDICT: dict[str, Any] = {
    "summary": "Answer every question about an utterance, or about each line of several",
    "responses": {
        200: {"description": "a row as `egmf predict` writes it, or one a line", "content": {
            JSON: {"example": _ROW}, JSON_LINES[0]: {"example": _ROWS}}},
        **REFUSALS,
    },
    "openapi_extra": {"requestBody": {"required": True, "content": {
        MULTIPART: {"schema": _FORM, "example": {"clip": "(a file)", "text": "I got the job!", "explain": "true"}},
        JSON: {"schema": _OBJECT, "example": _ASKED},
        JSON_LINES[0]: {"schema": {"type": "string"}, "example": _LINES},
    }}},
}  # fmt: skip
TRANSCRIBE: dict[str, Any] = {
    "summary": "The words of a clip, where the server was given a Whisper",
    "responses": {
        200: {"description": "what is said; empty with a reason where nothing is", "content": {
            JSON: {"example": {"text": "I got the job!", "language": "en", "model": "whisper (0a1b2c3d4e5f)"}}}},
        404: {"description": "nothing transcribes here"} | _ERROR,
        **REFUSALS,
    },
    "openapi_extra": {"requestBody": {"required": True, "content": {
        MULTIPART: {"schema": {"type": "object", "properties": {"clip": _FORM["properties"]["clip"]}}}}}},
}  # fmt: skip
HEALTH: dict[str, Any] = {
    "summary": "Whether it answers, and what it can be asked",
    "responses": {200: {"description": "it answers"}, 503: REFUSALS[503]},
}
METRICS: dict[str, Any] = {
    "summary": "Counters, as Prometheus reads them",
    "responses": {200: {"description": "text", "content": {"text/plain": {}}}, 401: REFUSALS[401]},
}
