"""The words of many clips, in one file: ``OUT/transcripts.jsonl``. What was transcribed before is not once more."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from egmf_media.batch.cache import file_hash
from egmf_media.batch.listing import ClipFile
from egmf_media.encoders.whisper import Transcriber
from egmf_media.errors import AbsentError, MediaError
from egmf_media.extract import ABSENT, FAILED, OK
from egmf_media.limits import Limits
from egmf_media.messages import one_line, write_bytes

TRANSCRIPTS = "transcripts.jsonl"


def transcribe(
    clips: Sequence[ClipFile],
    transcriber: Transcriber,
    out: Path,
    limits: Limits,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, dict[str, Any]]:
    """Transcribe clips, one after another, in this process.

    Args:
        clips: what is transcribed.
        transcriber: by which model.
        out: the folder of features.
        limits: of a clip.
        progress: called with the number of clips done.

    Returns:
        By id the line: ``id``, ``status``, and ``text``, ``language``, ``model`` or the ``reason``.
    """
    rows: dict[str, dict[str, Any]] = {}
    for number, clip in enumerate(clips):
        rows[clip.id] = {"id": clip.id} | _row(clip.path, transcriber, out / ".cache", limits)
        progress(number + 1)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values())
    write_bytes(out / TRANSCRIPTS, text.encode())
    return rows


def _row(path: Path, transcriber: Transcriber, cache: Path, limits: Limits) -> dict[str, Any]:
    try:
        limits.check_file(path)
        place = cache / transcriber.sha256[:32] / f"{file_hash(path)}.json"
        with suppress(OSError, ValueError):
            known = json.loads(place.read_bytes())
            if isinstance(known, dict) and known.get("status") in (OK, ABSENT):
                return known
        row: dict[str, Any]
        try:
            found = transcriber.read(path, limits)
            row = {"status": OK, "text": found.text, "language": found.language, "model": found.model}
        except AbsentError as error:
            row = {"status": ABSENT, "reason": str(error), "model": transcriber.name}
        write_bytes(place, json.dumps(row, ensure_ascii=False).encode())
        return row
    except (MediaError, OSError) as error:
        return {"status": FAILED, "reason": one_line(error), "model": transcriber.name}
