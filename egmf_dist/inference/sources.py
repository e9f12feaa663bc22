"""What ``egmf predict`` reads: a file of utterances, or a split of shards, one after another.

A line of a file is an object: ``text``; optionally ``id``, ``speaker``, ``language``, ``context`` (preceding turns
``[[speaker, text], ...]``), ``clip``, a recording beside the input from which features are extracted as for training,
and, by the name of a feature stream, a ``.npy`` file beside the input; without one and without a clip the stream is
absent. Where ``dialogue`` is given and ``context`` is not, the context is what that dialogue said in the lines before
(:mod:`.dialogues`); ``split`` tells dialogues of one name apart, ``turn`` is the place in one. ``task`` is what is
asked, as in shards; without it everything is. ``label`` or ``value`` is the truth of ``task``, which may be left out
where one task alone could have it (:mod:`.truth`). Null is as if it were not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from egmf_dist.errors import EgmfError
from egmf_dist.features import check_specifications, specifications_of
from egmf_dist.inference.dialogues import Order, Running, dialogue_of, turn_of
from egmf_dist.inference.model import Model
from egmf_dist.inference.truth import truth_of
from egmf_dist.inference.utterance import Utterance, as_utterance, language_of
from egmf_shards import Sample, ShardError, ShardSet
from egmf_shards.checksums import sha256
from egmf_shards.messages import unbroken

_OWN = ("id", "text", "speaker", "language", "context", "dialogue", "turn", "split", "clip", "task", "label", "value")
TRUTH_UNUSED, CONTEXT_LACKS = "truth_unused", "context_lacks"
_JUDGED_BY = ("kind", "convention", "labels", "low", "high", "step")
"""Of a task's definition; a question may be worded otherwise, and asked in other languages."""
_READ = 64


class Item(NamedTuple):
    """One of them."""

    name: Any
    """Its id as the input has it, or its place."""
    asked: Utterance | Sample | str
    """What is asked about, or what is wrong with it."""
    truth: Mapping[str, str | float] = {}
    """By task the right answer, where it is known: a label or a number."""
    task: str | None = None
    """What is asked, where the input names it."""
    notes: Mapping[str, str] = {}
    """What is to be said beside the answers: :data:`TRUTH_UNUSED`, why the truth is no truth of the model's tasks, and
    :data:`CONTEXT_LACKS`, what may be missing in the context."""


class Source(Protocol):
    """Something that is read once, from anywhere on."""

    def __len__(self) -> int: ...

    def identity(self) -> str:
        """Another one has another."""
        ...

    def check(self, model: Model, tasks: Sequence[str] | None = None) -> None:
        """Refuse features that were made otherwise than the model's, and tasks of the same name that are others.

        Args:
            model: that is to answer.
            tasks: what is asked; None: everything.

        Raises:
            EgmfError: they are; names both.
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
        self._path = path
        self._shards = ShardSet.open([str(path)], split)

    def __len__(self) -> int:
        return len(self._shards)

    def identity(self) -> str:
        """See :class:`Source`."""
        return self._shards.index_hash

    def check(self, model: Model, tasks: Sequence[str] | None = None) -> None:
        """See :class:`Source`."""
        made = specifications_of(self._shards.manifests, self._shards.folders)
        check_specifications(model.specifications, made, "the model")
        for name, theirs in self._shards.tasks.items():
            own = model.tasks.get(name)
            if own is None or (tasks and name not in tasks):
                continue
            odd = next((part for part in _JUDGED_BY if getattr(own, part) != getattr(theirs, part)), None)
            if odd is not None:
                both = [_shown(getattr(task, odd)) for task in (own, theirs)]
                raise EgmfError(
                    f"--input {self._path}: task {name!r} has {odd} {both[1]}, the model's has {both[0]}: its truth "
                    "would be judged as what it is not; give the task another name there, or ask others by --tasks"
                )

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
                truth = truth_of(sample.label, sample.value, sample.task, sample.language, model.tasks)
                yield Item(sample.id, sample, truth.right, sample.task, _notes({TRUTH_UNUSED: truth.unused}))


def _one(shards: ShardSet, place: int) -> Sample | str:
    try:
        return shards.read([place]).samples[0]
    except ShardError as error:
        return f"sample {place}: {error}"


class Lines:
    """A file of JSON lines.

    Raises:
        EgmfError: it cannot be read, holds nothing, or has a dialogue's lines in an order that is none of its own.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._count = path, _looked_over(path)
        if not self._count:
            raise EgmfError(f"--input {path}: has no line; one JSON object a line is needed")

    def __len__(self) -> int:
        return self._count

    def identity(self) -> str:
        """See :class:`Source`."""
        return sha256(self.path)

    def check(self, model: Model, tasks: Sequence[str] | None = None) -> None:
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


def _looked_over(source: Path) -> int:
    """How many lines there are; refuses dialogues that come out of order before the first of them is answered."""
    order, count = Order(), 0
    for number, line in _lines(source):
        count += 1
        try:
            data = _object(line)
        except (ValueError, RecursionError):  # which is said in its place
            continue
        try:
            order.check(data)
        except EgmfError as error:
            raise EgmfError(f"--input {source}: line {number}: {error}") from error
    return count


def _object(line: str) -> dict[str, Any]:
    data = json.loads(line)
    if not isinstance(data, dict):
        raise EgmfError(f"is a {type(data).__name__}; an object is needed")
    return {key: value for key, value in data.items() if value is not None}


def _items(source: Path, model: Model) -> Iterator[Item]:
    running = Running()
    for place, (number, line) in enumerate(_lines(source)):
        try:
            data = _object(line)
        except (ValueError, RecursionError) as error:  # no JSON, or no object
            running.lose(number)
            yield Item(place, f"line {number}: {unbroken(str(error))}")
            continue
        running.enter(data)
        yield _item(data, place, number, source.parent, model, running)
        running.leave(data, number)


def _item(data: dict[str, Any], place: int, number: int, folder: Path, model: Model, running: Running) -> Item:
    name: Any = place
    try:
        name = _id(data.get("id", place))
        task, turn = data.get("task"), turn_of(data)
        if not isinstance(task, str | None):
            raise EgmfError(f"task is a {type(task).__name__}; the name of a task is needed")
        utterance = _utterance(data, str(name), folder, model)
    except (ValueError, RecursionError) as error:  # an EgmfError, or a name that cannot be written
        return Item(name, f"line {number}: {unbroken(str(error))}")
    utterance.turn = turn
    lacks = ""
    if dialogue_of(data) is not None and "context" not in data:
        utterance.context, lacks = running.context, running.lacks
        utterance.turn = running.turn if turn is None else turn
    language = language_of(utterance, model.languages)
    truth = truth_of(data.get("label"), data.get("value"), task, language, model.tasks)
    return Item(name, utterance, truth.right, task, _notes({TRUTH_UNUSED: truth.unused, CONTEXT_LACKS: lacks}))


def _notes(said: Mapping[str, str]) -> dict[str, str]:
    return {name: unbroken(text) for name, text in said.items() if text}


def _id(given: Any) -> str | int:
    if not isinstance(given, str | int) or isinstance(given, bool):
        raise EgmfError(f"id is a {type(given).__name__}; a string or a whole number is needed")
    str(given).encode()  # half a character cannot be written again: UnicodeEncodeError is a ValueError
    return given


def _utterance(data: dict[str, Any], name: str, folder: Path, model: Model) -> Utterance:
    odd = [key for key in data if key not in (*_OWN, *model.streams)]
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


def _shown(part: Any) -> str:
    return f"[{', '.join(map(str, part))}]" if isinstance(part, tuple) else repr(part)


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
