"""``egmf shards import jsonl``, with ``--clips`` from recordings: features are extracted first, then shards written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egmf_dist.errors import EgmfError
from egmf_dist.files import write_json_lines
from egmf_launcher.features import Extraction, extract_clips, say, transcribe_clips
from egmf_shards import Task


@dataclass(frozen=True)
class Recordings:
    """Where the recordings are, and what is extracted from them."""

    clips: Path | None = None
    """folder of recordings: a line's file is what it calls clip, or else the one named as its id; features go to
    OUT-features, and what lies there is not extracted again"""
    extractors: Path | None = None
    """YAML file of the extractor of each stream; null: prosody for audio, face for vision"""
    processes: int = 1
    """that extract at once, one thread each"""
    max_failed: int = 0
    """clips and streams that may fail"""
    transcribe: str | None = None
    """a Whisper, by folder or name on the hub: the words of lines whose text is empty; the filled file is
    OUT-features/data.jsonl"""


def import_jsonl(
    source: Path,
    out: Path,
    dataset: str,
    task: Task,
    audio: Path | None = None,
    vision: Path | None = None,
    features: Mapping[str, str] | None = None,
    recordings: Recordings = Recordings(),
) -> None:
    """Write a JSONL file as shards.

    Args:
        source: the file, UTF-8, one JSON object a line
        out: the folder to make; it must not exist
        dataset: the data set's name: letters, digits, - and _
        task: label space or range, languages and the question in words
        audio: folder of features
        vision: likewise
        features: likewise, of other streams by name
        recordings: in place of folders, or beside them.

    Raises:
        EgmfError, MediaError, ShardError: a line, a folder, a clip or a setting cannot be used; no shards are written.
    """
    from egmf_shards.importers import import_jsonl as write

    extracted: dict[str, Any] = {}
    if recordings.transcribe is not None and recordings.clips is None:
        raise EgmfError("--transcribe: needs the recordings: --clips")
    if recordings.clips is not None:
        if out.exists():
            raise EgmfError(f"--out {out}: it exists; name another folder, or remove it first")
        extracted = _extracted(source, out, recordings)
        if recordings.transcribe is not None:
            source = _with_words(source, out, recordings, task)
        given = {"audio": audio, "vision": vision, **(features or {})}
        twice = next((stream for stream in extracted if given.get(stream) is not None), None)
        if twice is not None:
            raise EgmfError(f"--clips: {twice} is extracted and given, too; give --extractors without it")
    write(source, out, dataset, task, audio, vision, {**(features or {}), **extracted} or None)


def _extracted(source: Path, out: Path, recordings: Recordings) -> dict[str, Path]:
    """By stream the folder of features, of streams that at least one clip has."""
    from egmf_media.batch.listing import list_clips
    from egmf_media.errors import MediaError

    assert recordings.clips is not None
    if not recordings.clips.is_dir():
        raise EgmfError(f"--clips {recordings.clips}: there is no such folder")
    place = out.with_name(f"{out.name}-features")
    how = Extraction(recordings.processes, max_failed=recordings.max_failed)
    summary = extract_clips(list_clips(source, recordings.clips), place, recordings.extractors, how)
    if say(summary, place, recordings.max_failed):
        raise MediaError(
            f"{summary.failed} clips and streams failed, {recordings.max_failed} may (--max-failed), the first: "
            f"{summary.first_failure}; {place}/report.jsonl has all"
        )
    there = {stream: place / stream for stream, counts in summary.by_stream.items() if counts["ok"]}
    for stream in summary.by_stream.keys() - there.keys():
        print(f"warning: not one clip has {stream}: the shards are without it")
    return there


def _with_words(source: Path, out: Path, recordings: Recordings, task: Task) -> Path:
    """The file with the words of lines whose text is empty, and their language where the task needs one."""
    from egmf_media.batch.listing import clip_of

    assert recordings.clips is not None
    assert recordings.transcribe is not None
    place = out.with_name(f"{out.name}-features")
    lines = [json.loads(line) for line in source.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    silent = [line for line in lines if not str(line.get("text") or "").strip()]
    clips = [clip_of(line, recordings.clips, str(source)) for line in silent]
    found = transcribe_clips(clips, place, recordings.transcribe)
    for line, clip in zip(silent, clips, strict=True):
        said = found[clip.id]
        line["text"] = said.get("text", "")
        if "language" not in line and said.get("language") in task.languages:
            line["language"] = said["language"]
    write_json_lines(place / "data.jsonl", lines)
    return place / "data.jsonl"
