"""``egmf predict``: answers to a file of utterances, line by line, in bounded memory; a stopped run goes on.

A line of the input is an object: ``text``; optionally ``id``, ``speaker``, ``language``, ``context`` (preceding turns
``[[speaker, text], ...]``) and, by the name of a feature stream, a ``.npy`` file beside the input. Where ``dialogue``
is given and ``context`` is not, the context is what that dialogue said in the lines before, as long as they follow each
other. ``split``, ``turn``, ``task``, ``label`` and ``value`` are passed over, so that a file for training serves.

A line of the output has the ``id`` and the ``answers`` by task, or an ``error`` that says why there are none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from egmf_dist.errors import EgmfError
from egmf_dist.files import write_json
from egmf_dist.inference.model import Model
from egmf_dist.inference.utterance import Answer, Utterance
from egmf_shards import MAX_CONTEXT_TURNS, Sample

DECIMALS = 6
_OWN = ("id", "text", "speaker", "language", "context", "dialogue")
_PASSED_OVER = ("split", "turn", "task", "label", "value")


@dataclass(frozen=True)
class Done:
    """What became of a file."""

    lines: int
    """All of the input's."""
    before: int
    """Of them those that an earlier start had answered."""
    failed: int
    """Those that have an ``error``, of this start."""
    first_error: str | None


def predict_file(
    model: Model, source: Path, out: Path, tasks: Sequence[str] | None, progress: Callable[[int, int], None]
) -> Done:
    """Answer a file of utterances.

    Args:
        model: that answers.
        source: JSON lines.
        out: JSON lines, in the same order. While it grows, ``.NAME.progress.json`` beside it names what it is made of;
            with that file there a later call goes on where this one was stopped.
        tasks: which questions; None for all.
        progress: called with lines done and their number.

    Raises:
        EgmfError: the input cannot be read, the output exists, or it was begun with another input or model.
    """
    model.check_tasks(tasks)
    total = sum(1 for _ in _lines(source))
    if not total:
        raise EgmfError(f"--input {source}: has no line; one JSON object a line is needed")
    state = out.with_name(f".{out.name}.progress.json")
    made_of = {
        "input": str(source.absolute()),
        "model": model.about["sha256"],
        "tasks": None if tasks is None else [*tasks],
    }
    before = _begin(out, state, made_of)
    failed, first_error, done = 0, None, before
    with open(out, "a", encoding="utf-8") as file:
        waiting = islice(_utterances(source, model), before, None)
        while chunk := list(islice(waiting, model.batch_size)):
            for row in _answered(model, chunk, tasks):
                failed += "error" in row
                first_error = first_error or row.get("error")
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            done += len(chunk)
            progress(done, total)
        os.fsync(file.fileno())
    state.unlink()
    return Done(total, before, failed, first_error)


def _begin(out: Path, state: Path, made_of: dict[str, Any]) -> int:
    """How many lines are answered already; half a line of a killed start is cut off."""
    if not out.exists():
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(state, made_of)
            out.touch()
        except OSError as error:
            raise EgmfError(f"--out {out}: cannot be written: {error.strerror}") from error
        return 0
    if not state.is_file():
        raise EgmfError(f"--out {out}: it exists; name another file, or remove it first")
    try:
        then = json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        then = None
    if then != made_of:
        raise EgmfError(
            f"--out {out}: was begun with another input, model or tasks; finish it with those, or remove it first"
        )
    with open(out, "rb+") as file:
        whole, lines = 0, 0
        for line in file:
            if line.endswith(b"\n"):
                whole, lines = whole + len(line), lines + 1
        file.truncate(whole)
    return lines


def _lines(source: Path) -> Iterator[str]:
    try:
        with open(source, encoding="utf-8-sig") as file:
            yield from _without_empty(file)
    except OSError as error:
        raise EgmfError(f"--input {source}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise EgmfError(f"--input {source}: is no text in UTF-8 (byte {error.start})") from error


def _without_empty(file: TextIO) -> Iterator[str]:
    return (line for line in file if line.strip())


def _utterances(source: Path, model: Model) -> Iterator[tuple[str, Utterance | str]]:
    """Each line as an utterance, or what is wrong with it."""
    dialogue: str | None = None
    said: list[tuple[str, str]] = []
    for number, line in enumerate(_lines(source)):
        name = str(number)
        try:
            data = json.loads(line)
            if not isinstance(data, dict):
                raise EgmfError(f"is a {type(data).__name__}; an object is needed")
            name = str(data.get("id", number))
            if data.get("dialogue") != dialogue or dialogue is None:
                dialogue, said = data.get("dialogue"), []
            utterance = _utterance(data, name, source.parent, model)
            if dialogue is not None and "context" not in data:
                utterance.context = said[-MAX_CONTEXT_TURNS:]
            said.append((utterance.speaker, utterance.text))
            yield name, utterance
        except ValueError as error:  # no JSON, or an EgmfError
            yield name, f"line {number + 1}: {' '.join(str(error).split())}"


def _utterance(data: dict[str, Any], name: str, folder: Path, model: Model) -> Utterance:
    odd = [key for key in data if key not in (*_OWN, *_PASSED_OVER, *model.streams)]
    if odd:
        streams = ", ".join(model.streams) or "none"
        raise EgmfError(f"has no use for {odd[0]!r}; it may have {', '.join(_OWN)}, and the streams: {streams}")
    for key in ("text", "speaker", "language"):
        if not isinstance(data.get(key, ""), str):
            raise EgmfError(f"{key} is {data[key]!r}; a string is needed")
    turns = data.get("context", [])
    if not isinstance(turns, list) or not all(
        isinstance(t, list) and len(t) == 2 and all(isinstance(part, str) for part in t) for t in turns
    ):
        raise EgmfError("context is no list of [speaker, text]")
    features = {stream: folder / str(data[stream]) for stream in model.streams if data.get(stream)}
    context = [(speaker, text) for speaker, text in turns]
    language = data.get("language") or None
    return Utterance(data.get("text", ""), data.get("speaker", ""), context, features, language, name)


def _answered(
    model: Model, chunk: Sequence[tuple[str, Utterance | str]], tasks: Sequence[str] | None
) -> list[dict[str, Any]]:
    samples: list[Sample] = []
    places: list[tuple[str, str | int]] = []
    for name, utterance in chunk:
        if isinstance(utterance, str):
            places.append((name, utterance))
            continue
        try:
            own = model.samples(utterance, 0, tasks)
        except EgmfError as error:
            places.append((name, str(error)))
            continue
        places.append((name, len(own)))
        samples += own
    answers = iter(model.answer(samples))
    rows = []
    for name, count in places:
        if isinstance(count, str):
            rows.append({"id": name, "error": count})
        else:
            rows.append(_row(name, list(islice(answers, count))))
    return rows


def _row(name: str, answers: Sequence[Answer]) -> dict[str, Any]:
    row: dict[str, Any] = {"id": name, "language": answers[0].language, "answers": {}}
    for answer in answers:
        one: dict[str, Any] = {"answer": answer.answer}
        if answer.value is None:
            one["label"] = answer.label
        else:
            one |= {"value": round(answer.value, DECIMALS), "interval": answer.interval}
        one["probabilities"] = {word: round(p, DECIMALS) for word, p in answer.probabilities.items()}
        row["answers"][answer.task] = one
    if answers[0].absent:
        row["absent"] = list(answers[0].absent)
    if answers[0].diagnostics:
        row["diagnostics"] = {
            level: {part: round(weight, DECIMALS) for part, weight in own.items()}
            for level, own in answers[0].diagnostics.items()
        }
    if answers[0].prompt_tokens_cut:
        row["prompt_tokens_cut"] = answers[0].prompt_tokens_cut
    return row
