"""``egmf predict``: answers to a file of utterances, line by line, in bounded memory; a stopped run goes on.

A line of the input is an object: ``text``; optionally ``id``, ``speaker``, ``language``, ``context`` (preceding turns
``[[speaker, text], ...]``) and, by the name of a feature stream, a ``.npy`` file beside the input; without one the
stream is absent. Where ``dialogue`` is given and ``context`` is not, the context is what that dialogue said in the
lines right before; lines of one dialogue must follow each other, in their order. ``split`` tells dialogues of one name
apart; ``turn``, ``task``, ``label`` and ``value`` are passed over. Null is as if it were not there.

A line of the output has the ``id`` and the ``answers`` by task, or an ``error`` that says why there are none. Where
answers are explained, too, there is an ``error`` beside answers that could not be.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from egmf_dist.errors import EgmfError
from egmf_dist.files import write_json
from egmf_dist.inference.explain_file import ExplanationFolder
from egmf_dist.inference.model import Model
from egmf_dist.inference.utterance import Answer, Utterance, as_utterance
from egmf_shards import MAX_CONTEXT_TURNS, Sample
from egmf_shards.checksums import sha256

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
    """Those that have an ``error``."""
    first_error: str | None


def predict_file(
    model: Model,
    source: Path,
    out: Path,
    tasks: Sequence[str] | None,
    progress: Callable[[int, int], None],
    explain: Path | None = None,
) -> Done:
    """Answer a file of utterances.

    Args:
        model: that answers.
        source: JSON lines.
        out: JSON lines, in the same order. While it grows, ``.NAME.progress.json`` beside it names what it is made of;
            with that file there a later call goes on where this one was stopped.
        tasks: which questions; None for all.
        progress: called with lines done and their number.
        explain: folder for an explanation of each answer, which costs many passes; None: none is made.

    Raises:
        EgmfError: the input cannot be read, the output exists, or it was begun with another input or model.
    """
    model.check_tasks(tasks)
    total = sum(1 for _ in _lines(source))
    if not total:
        raise EgmfError(f"--input {source}: has no line; one JSON object a line is needed")
    state = out.with_name(f".{out.name}.progress.json")
    made_of = {"input": sha256(source), "model": model.about["sha256"], "tasks": None if tasks is None else [*tasks]}
    explanations = None if explain is None else ExplanationFolder(explain, begun=out.exists())
    _begin(out, state, made_of)
    with open(out, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EgmfError(f"--out {out}: another process is writing it; wait for it, or name another file") from error
        before, failed, first_error = _kept(out)
        done = before
        waiting = islice(_utterances(source, model), before, None)
        while chunk := list(islice(waiting, model.batch_size)):
            for row in _answered(model, chunk, tasks, explanations):
                failed += "error" in row
                first_error = first_error or row.get("error")
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            done += len(chunk)
            progress(done, total)
        os.fsync(file.fileno())
    state.unlink()
    return Done(total, before, failed, first_error)


def _begin(out: Path, state: Path, made_of: dict[str, Any]) -> None:
    """Make an output, or see that the one there was begun with the same."""
    if not out.exists():
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(state, made_of)
            out.touch()
        except OSError as error:
            raise EgmfError(f"--out {out}: cannot be written: {error.strerror}") from error
        return
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


def _kept(out: Path) -> tuple[int, int, str | None]:
    """How many lines are answered already, how many of them have an error, and the first; half a line of a killed start
    is cut off."""
    with open(out, "rb+") as file:
        whole, lines, errors = 0, 0, []
        for line in file:
            if line.endswith(b"\n"):
                whole, lines = whole + len(line), lines + 1
                errors += [found["error"]] if "error" in (found := json.loads(line)) else []
        file.truncate(whole)
    return lines, len(errors), next(iter(errors), None)


def _lines(source: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers from 1."""
    try:
        with open(source, encoding="utf-8-sig") as file:
            yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    except OSError as error:
        raise EgmfError(f"--input {source}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise EgmfError(f"--input {source}: is no text in UTF-8 (byte {error.start})") from error


def _utterances(source: Path, model: Model) -> Iterator[tuple[Any, Utterance | str]]:
    """Each line's id with its utterance, or with what is wrong with it."""
    dialogue: tuple[Any, Any] | None = None
    said: list[tuple[str, str]] = []
    turn = 0
    for place, (number, line) in enumerate(_lines(source)):
        name: Any = place
        try:
            data = json.loads(line)
            if not isinstance(data, dict):
                raise EgmfError(f"is a {type(data).__name__}; an object is needed")
            data = {key: value for key, value in data.items() if value is not None}
            name = _id(data.get("id", place))
            own = (data.get("split"), data["dialogue"]) if "dialogue" in data else None
            if own is None or own != dialogue:
                dialogue, said, turn = own, [], 0
            utterance = _utterance(data, str(name), source.parent, model)
            if dialogue is not None and "context" not in data:
                utterance.context, utterance.turn = list(said), turn
            said, turn = [*said, (utterance.speaker, utterance.text)][-MAX_CONTEXT_TURNS:], turn + 1
            yield name, utterance
        except (ValueError, RecursionError) as error:  # no JSON, or an EgmfError
            yield name, f"line {number}: {' '.join(str(error).split())}"


def _id(given: Any) -> str | int:
    if not isinstance(given, str | int) or isinstance(given, bool):
        raise EgmfError(f"id is a {type(given).__name__}; a string or a whole number is needed")
    str(given).encode()  # half a character cannot be written again: UnicodeEncodeError is a ValueError
    return given


def _utterance(data: dict[str, Any], name: str, folder: Path, model: Model) -> Utterance:
    odd = [key for key in data if key not in (*_OWN, *_PASSED_OVER, *model.streams)]
    if odd:
        streams = ", ".join(model.streams) or "none"
        raise EgmfError(f"has no use for {odd[0]!r}; it may have {', '.join(_OWN)}, and the streams: {streams}")
    files = {stream: data[stream] for stream in model.streams if stream in data}
    wrong = next((stream for stream, file in files.items() if not isinstance(file, str)), None)
    if wrong is not None:
        raise EgmfError(f"{wrong} is a {type(files[wrong]).__name__}; the name of a .npy file is needed")
    return as_utterance(
        {
            "text": data.get("text", ""),
            "speaker": data.get("speaker", ""),
            "context": data.get("context", []),
            "features": {stream: folder / file for stream, file in files.items()},
            "language": data.get("language"),
            "id": name,
        },
        0,
    )


def _answered(
    model: Model,
    chunk: Sequence[tuple[Any, Utterance | str]],
    tasks: Sequence[str] | None,
    explanations: ExplanationFolder | None = None,
) -> list[dict[str, Any]]:
    """A row for each utterance; what fails as they are answered together is answered one by one."""
    prepared: list[tuple[Any, list[Sample] | str]] = []
    for name, utterance in chunk:
        if isinstance(utterance, str):
            prepared.append((name, utterance))
            continue
        try:
            prepared.append((name, model.samples(utterance, 0, tasks)))
        except EgmfError as error:
            prepared.append((name, str(error)))
    sound = [samples for _, samples in prepared if not isinstance(samples, str)]
    try:
        answers: Iterator[Answer] | None = iter(model.answer([sample for samples in sound for sample in samples]))
    except EgmfError:
        answers = None
    rows = []
    for name, samples in prepared:
        if isinstance(samples, str):
            rows.append({"id": name, "error": samples})
            continue
        try:
            own = model.answer(samples) if answers is None else list(islice(answers, len(samples)))
            rows.append(_row(name, own))
        except EgmfError as error:
            rows.append({"id": name, "error": str(error)})
            continue
        if explanations is not None:
            rows[-1] |= explanations.write(model, name, samples)
    return rows


def _row(name: Any, answers: Sequence[Answer]) -> dict[str, Any]:
    row: dict[str, Any] = {"id": name, "language": answers[0].language, "answers": {}}
    if answers[0].absent:
        row["absent"] = list(answers[0].absent)
    for answer in answers:
        one: dict[str, Any] = {"answer": answer.answer}
        if answer.value is None:
            one["label"] = answer.label
        else:
            one |= {"value": round(answer.value, DECIMALS), "interval": answer.interval}
        one["probabilities"] = {word: round(p, DECIMALS) for word, p in answer.probabilities.items()}
        if answer.diagnostics:
            one["diagnostics"] = {
                level: {part: round(weight, DECIMALS) for part, weight in own.items()}
                for level, own in answer.diagnostics.items()
            }
        if answer.prompt_tokens_cut:
            one["prompt_tokens_cut"] = answer.prompt_tokens_cut
        row["answers"][answer.task] = one
    return row
