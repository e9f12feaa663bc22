"""What ``egmf predict`` reads: a file of utterances, or a split of shards, one after another.

A line of a file is an object: ``text``; optionally ``id``, ``speaker``, ``language``, ``context`` (preceding turns
``[[speaker, text], ...]``), ``clip``, a recording beside the input from which features are extracted as for training,
and, by the name of a feature stream, a ``.npy`` file beside the input; without one and without a clip the stream is
absent. Where ``dialogue`` is given and ``context`` is not, the context is what that dialogue said in the
lines right before; lines of one dialogue must follow each other, in their order. ``split`` tells dialogues of one name
apart, ``turn`` is passed over. ``label`` or ``value`` is the truth of ``task``, which may be left out where one task
alone could have it. Null is as if it were not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from egmf_dist.errors import EgmfError
from egmf_dist.features import check_specifications, specifications_of
from egmf_dist.inference.model import Model
from egmf_dist.inference.utterance import Utterance, as_utterance
from egmf_shards import CLASSIFICATION, MAX_CONTEXT_TURNS, Sample, ShardError, ShardSet, Task
from egmf_shards.checksums import sha256
from egmf_shards.messages import unbroken

_OWN = ("id", "text", "speaker", "language", "context", "dialogue", "clip")
_TARGETS = ("task", "label", "value")
_PASSED_OVER = ("split", "turn")
_READ = 64


class Item(NamedTuple):
    """One of them."""

    name: Any
    """Its id as the input has it, or its place."""
    asked: Utterance | Sample | str
    """What is asked about, or what is wrong with it."""
    truth: Mapping[str, str | float] = {}
    """By task the right answer, where it is known: a label or a number."""


class Source(Protocol):
    """Something that is read once, from anywhere on."""

    def __len__(self) -> int: ...

    def identity(self) -> str:
        """Another one has another."""
        ...

    def check(self, model: Model) -> None:
        """Refuse features that were made otherwise than the model's.

        Raises:
            EgmfError: they were; names both.
        """
        ...

    def items(self, model: Model, first: int) -> Iterator[Item]:
        """From number ``first`` on, in their order."""
        ...


def open_source(path: Path, split: str) -> Source:
    """A file of JSON lines, or a folder of shards.

    Args:
        path: of it.
        split: of the shards.

    Raises:
        EgmfError: it cannot be read, or holds nothing.
        ShardError: the folder is none of shards, or has no such split.
    """
    if path.is_dir():
        return ShardFolder(path, split)
    return Lines(path)


class ShardFolder:
    """A split of a folder of shards."""

    def __init__(self, path: Path, split: str) -> None:
        self._shards = ShardSet.open([str(path)], split)

    def __len__(self) -> int:
        return len(self._shards)

    def identity(self) -> str:
        """See :class:`Source`."""
        return self._shards.index_hash

    def check(self, model: Model) -> None:
        """See :class:`Source`."""
        made = specifications_of(self._shards.manifests, self._shards.folders)
        check_specifications(model.specifications, made, "the model")

    def items(self, model: Model, first: int) -> Iterator[Item]:
        """See :class:`Source`."""
        for begin in range(first, len(self._shards), _READ):
            places = range(begin, min(begin + _READ, len(self._shards)))
            try:
                samples: list[Sample | str] = [*self._shards.read(places).samples]
            except ShardError:
                samples = [_one(self._shards, place) for place in places]
            for place, sample in zip(places, samples, strict=True):
                if isinstance(sample, str):
                    yield Item(place, sample)
                    continue
                target = sample.label if sample.label is not None else sample.value
                known = {} if target is None or sample.task not in model.tasks else {sample.task: target}
                yield Item(sample.id, sample, known)


def _one(shards: ShardSet, place: int) -> Sample | str:
    try:
        return shards.read([place]).samples[0]
    except ShardError as error:
        return f"sample {place}: {error}"


class Lines:
    """A file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path, self._count = path, sum(1 for _ in _lines(path))
        if not self._count:
            raise EgmfError(f"--input {path}: has no line; one JSON object a line is needed")

    def __len__(self) -> int:
        return self._count

    def identity(self) -> str:
        """See :class:`Source`."""
        return sha256(self.path)

    def check(self, model: Model) -> None:
        """See :class:`Source`; of a line's own files the line says it."""

    def items(self, model: Model, first: int) -> Iterator[Item]:
        """See :class:`Source`; lines before ``first`` are read for their dialogues' sake."""
        for place, item in enumerate(_items(self.path, model)):
            if place >= first:
                yield item


def _lines(source: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers from 1."""
    try:
        with open(source, encoding="utf-8-sig") as file:
            yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    except OSError as error:
        raise EgmfError(f"--input {source}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise EgmfError(f"--input {source}: is no text in UTF-8 (byte {error.start})") from error


def _items(source: Path, model: Model) -> Iterator[Item]:
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
            yield Item(name, utterance, _truth(data, model.tasks))
        except (ValueError, RecursionError) as error:  # no JSON, or an EgmfError
            yield Item(name, f"line {number}: {unbroken(str(error))}")


def _id(given: Any) -> str | int:
    if not isinstance(given, str | int) or isinstance(given, bool):
        raise EgmfError(f"id is a {type(given).__name__}; a string or a whole number is needed")
    str(given).encode()  # half a character cannot be written again: UnicodeEncodeError is a ValueError
    return given


def _utterance(data: dict[str, Any], name: str, folder: Path, model: Model) -> Utterance:
    odd = [key for key in data if key not in (*_OWN, *_TARGETS, *_PASSED_OVER, *model.streams)]
    if odd:
        streams = ", ".join(model.streams) or "none"
        raise EgmfError(f"has no use for {odd[0]!r}; it may have {', '.join(_OWN)}, and the streams: {streams}")
    files = {stream: data[stream] for stream in model.streams if stream in data}
    wrong = next((stream for stream, file in files.items() if not isinstance(file, str)), None)
    if wrong is not None:
        raise EgmfError(f"{wrong} is a {type(files[wrong]).__name__}; the name of a .npy file is needed")
    clip = data.get("clip")
    if not isinstance(clip, str | None):
        raise EgmfError(f"clip is a {type(clip).__name__}; the name of a recording is needed")
    return as_utterance(
        {
            "text": data.get("text", ""),
            "speaker": data.get("speaker", ""),
            "context": data.get("context", []),
            "features": {stream: folder / file for stream, file in files.items()},
            "language": data.get("language"),
            "clip": clip if clip is None else folder / clip,
            "id": name,
        },
        0,
    )


def _truth(data: Mapping[str, Any], tasks: Mapping[str, Task]) -> dict[str, str | float]:
    """The right answer by task; empty where none is given, or for a task that the model does not have.

    Raises:
        EgmfError: it is none of the task's answers.
    """
    label, value, name = data.get("label"), data.get("value"), data.get("task")
    if label is None and value is None:
        return {}
    kind = [own for own, task in tasks.items() if (task.kind == CLASSIFICATION) == (label is not None)]
    if name is None:
        # Data sets have labels that this model was not trained on: they are no truth of its tasks.
        name = next((own for own in kind if label is None or label in tasks[own].labels), None)
    if name not in kind:
        return {}
    task = tasks[name]
    try:
        task.check_target(label, value, "the truth")
    except ShardError as error:
        raise EgmfError(str(error)) from error
    return {name: label if label is not None else float(value or 0.0)}


def as_asked(sample: Sample, model: Model, tasks: Sequence[str] | None) -> list[Sample]:
    """A sample of shards as one for each question: its own task's, or every one in its language.

    Raises:
        EgmfError: no task of the model is asked in its language.
    """
    chosen = tasks or ([sample.task] if sample.task in model.tasks else [*model.tasks])
    asked = [name for name in chosen if sample.language in model.tasks[name].languages]
    if not asked:
        raise EgmfError(f"sample {sample.id}: no task is asked in {sample.language!r}")
    return [sample if name == sample.task else replace(sample, task=name, label=None, value=None) for name in asked]
