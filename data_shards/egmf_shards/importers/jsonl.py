"""One's own data: one JSON object a line, one ``.npy`` a clip and modality, and a task that says what is asked.

A line holds ``id``, ``split`` (train, valid, test, unlabelled), ``text`` and ``label`` (classification) or ``value``
(regression; neither in the split ``unlabelled``); optionally ``language`` (needed where the task is asked in several),
``speaker``, ``dialogue``, ``turn``, ``context`` (preceding turns ``[[speaker, text], ...]``, oldest first), and by the
name of a feature stream (``audio``, ``vision``, or any other that is given) a file inside the stream's folder; without
it ``{id}.npy`` is looked for. Where ``dialogue`` and ``turn`` are given and ``context`` is not, the
context is the dialogue's preceding turns in the same split. ``clip``, the recording that features are extracted from,
is not read here. An empty text is an absent one. An unknown key is an error:
it is a misspelt one more often than a new one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from egmf_shards.errors import ShardError
from egmf_shards.format.sample import MAX_CONTEXT_TURNS, SPLITS, UNLABELLED, Sample, Turn
from egmf_shards.format.task import CLASSIFICATION, Task
from egmf_shards.format.text import clean_text
from egmf_shards.importers.common import build_sample, check_dataset, done
from egmf_shards.importers.features import FeatureFolder, feature_source, streams_of
from egmf_shards.importers.keys import name as key_name
from egmf_shards.importers.provenance import provenance
from egmf_shards.importers.streams import STREAMS
from egmf_shards.messages import json_reason, shown
from egmf_shards.progress import progress
from egmf_shards.write.writer import ShardWriter

NEEDED = ("id", "split", "text")
OPTIONAL = ("label", "value", "language", "speaker", "dialogue", "turn", "context", "clip", *STREAMS)


@dataclass(frozen=True)
class Line:
    """One object of the file and its place there."""

    data: dict[str, Any]
    where: str

    def text(self, key: str, default: str = "") -> str:
        """A string field."""
        value = self.data.get(key, default)
        if not isinstance(value, str):
            raise ShardError(f"{self.where}: {key} is {shown(value)}; a string is needed")
        return value

    def turn(self) -> int | None:
        """The utterance's place in its dialogue, or None where it is not given."""
        value = self.data.get("turn")
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise ShardError(f"{self.where}: turn is {shown(value)}; a whole number from 0 is needed")
        return value


def import_jsonl(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dataset: str,
    task: Task,
    audio: str | os.PathLike[str] | None = None,
    vision: str | os.PathLike[str] | None = None,
    features: Mapping[str, str | os.PathLike[str]] | None = None,
) -> dict[str, Any]:
    """Write a JSONL file as shards of ``task`` and return the manifest.

    Args:
        source: the file, UTF-8, one JSON object a line (blank lines are passed over).
        out: the folder to make; it must not exist.
        dataset: the data set's name: letters, digits, ``-`` and ``_``.
        task: label space or range, languages and the question in words.
        audio: folder of features, float ``[frames, dim]`` or ``[dim]``; optional.
        vision: likewise.
        features: likewise, of other streams by name, such as ``{"eda": DIR}``.

    Raises:
        ShardError: a line is no JSON object, lacks a field, has an unknown one or a value that does not fit the task;
            an id occurs twice; a feature folder holds no clip. Nothing is left behind.
    """
    check_dataset(dataset)
    given = {name: path for name, path in zip(STREAMS, (audio, vision), strict=True) if path is not None}
    twice = sorted(given.keys() & (features or {}).keys())
    if twice:
        raise ShardError(f"the folder of {twice[0]} features is given twice; once is needed")
    taken = sorted((features or {}).keys() & {*NEEDED, *OPTIONAL} - set(STREAMS))
    if taken:
        raise ShardError(f"a feature stream is called {taken[0]!r}, as a field of a line is; give it another name")
    folders = [FeatureFolder(path, name) for name, path in {**given, **(features or {})}.items()]
    about = provenance("jsonl", [source])
    lines = list(_lines(Path(source), (*OPTIONAL, *(features or ()))))
    if not lines:
        raise ShardError(f"{source}: holds no line")
    clip = next((line for line in lines if "clip" in line.data), None)
    if clip is not None and not folders:
        raise ShardError(f"{clip.where}: names a clip; give --clips, or the folders of features extracted from them")
    before = _preceding(lines)
    with ShardWriter(out, dataset, [task], streams_of(folders), provenance=about) as writer:
        for number, line in enumerate(progress(lines, f"importing {dataset}")):
            writer.write(_sample(line, dataset, task, folders, before.get(number, ())), line.where)
        writer.source |= feature_source(*folders)
    return done(writer)


def _lines(path: Path, optional: Sequence[str]) -> Iterator[Line]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    data = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise ShardError(
                        f"{where}: not JSON ({json_reason(error)}); one object a line is needed"
                    ) from error
                if not isinstance(data, dict):
                    raise ShardError(f"{where}: holds a {type(data).__name__}; one JSON object a line is needed")
                for key in NEEDED:
                    if key not in data:
                        raise ShardError(f"{where}: has no {key!r}; {', '.join(NEEDED)} are needed")
                for key in data:
                    if key not in (*NEEDED, *optional):
                        known = ", ".join((*NEEDED, *optional))
                        raise ShardError(f"{where}: has an unknown field {key!r}; the fields are {known}")
                yield Line(data, where)
    except FileNotFoundError as error:
        raise ShardError(f"{path}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise ShardError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from error


def _preceding(lines: list[Line]) -> dict[int, tuple[Turn, ...]]:
    """Line number -> the turns before it in its dialogue, for lines that name dialogue and turn."""
    dialogues: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for number, line in enumerate(lines):
        turn = line.turn()
        if line.text("dialogue") and turn is not None:
            dialogues.setdefault((line.text("split"), line.text("dialogue")), []).append((turn, number))
    found = {}
    for members in dialogues.values():
        members.sort()
        for (turn, first), (other, second) in pairwise(members):
            if turn == other:
                where = lines[second].where
                raise ShardError(f"{where}: turn {turn} of its dialogue is also in {lines[first].where}")
        turns = [Turn(lines[n].text("speaker"), clean_text(lines[n].text("text"))) for _, n in members]
        for place, (_, number) in enumerate(members):
            found[number] = tuple(turns[max(0, place - MAX_CONTEXT_TURNS) : place])
    return found


def _sample(line: Line, dataset: str, task: Task, folders: list[FeatureFolder], before: tuple[Turn, ...]) -> Sample:
    key, split = line.text("id"), line.text("split")
    if not key:
        raise ShardError(f"{line.where}: id is ''; at least one character is needed")
    if split not in SPLITS:
        raise ShardError(f"{line.where}: split is {split!r}; it must be one of {', '.join(SPLITS)}")
    language = line.text("language", task.languages[0] if len(task.languages) == 1 else "")
    if language not in task.languages:
        known = ", ".join(task.languages)
        raise ShardError(f"{line.where}: language is {language!r}; the task is asked in {known}")
    label, value = _target(line, task, split)
    text = clean_text(line.text("text"))
    given = {folder.modality: folder for folder in folders}
    for stream in STREAMS:
        if line.text(stream) and stream not in given:
            name = line.text(stream)
            raise ShardError(f"{line.where}: names the {stream} file {name!r}; give the folder of {stream} features")
    features = {stream: folder.load([line.text(stream) or f"{key}.npy"]) for stream, folder in given.items()}
    return build_sample(
        key_name(key, key),
        text,
        features,
        language=language,
        task=task.name,
        dataset=dataset,
        split=split,
        label=label,
        value=value,
        speaker=line.text("speaker"),
        dialogue=line.text("dialogue"),
        turn=line.turn() or 0,
        context=_context(line, before),
    )


def _target(line: Line, task: Task, split: str) -> tuple[str | None, float | None]:
    if split == UNLABELLED and not line.data.keys() & {"label", "value"}:
        return None, None
    wanted, other = ("label", "value") if task.kind == CLASSIFICATION else ("value", "label")
    if split == UNLABELLED:
        raise ShardError(f"{line.where}: the split {UNLABELLED!r} is of samples without label and value")
    if wanted not in line.data or other in line.data:
        raise ShardError(f"{line.where}: a {task.kind} needs {wanted!r}, and no {other!r}")
    if wanted == "label":
        label = line.text("label")
        task.check_target(label, None, line.where)
        return label, None
    given = line.data["value"]
    if not isinstance(given, int | float) or isinstance(given, bool) or not abs(given) < math.inf:
        raise ShardError(f"{line.where}: value is {shown(given)}; a number is needed")
    task.check_target(None, given, line.where)  # before float(), which holds no number of 400 digits
    return None, float(given)


def _context(line: Line, before: tuple[Turn, ...]) -> tuple[Turn, ...]:
    given = line.data.get("context")
    if given is None:
        return before
    if not isinstance(given, list) or not all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(part, str) for part in turn) for turn in given
    ):
        raise ShardError(f"{line.where}: context is not a list of [speaker, text] pairs, oldest first")
    return tuple(Turn(speaker, clean_text(text)) for speaker, text in given[-MAX_CONTEXT_TURNS:])
