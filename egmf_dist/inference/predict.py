"""``egmf predict``: answers to a file of utterances or to shards, on any number of ranks; a stopped run goes on.

One batch a rank is in memory at a time, and at the end the probabilities of those answers whose truth is known.

A line of the output has the ``id`` and the ``answers`` by task, or an ``error`` that says why there are none; where the
input says what is right, ``truth`` and ``truth_log_probability`` (by task, in nats, of the right legal answer; the
``probabilities`` are rounded), or ``truth_unused``, why it is no truth of the model's tasks. Where answers are
explained, too, there is an ``error`` beside answers that could not be. What is read is in :mod:`.sources`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from egmf_dist import distributed
from egmf_dist.errors import EgmfError
from egmf_dist.files import write_json
from egmf_dist.inference.explain_file import ExplanationFolder
from egmf_dist.inference.model import Model
from egmf_dist.inference.predictions import DECIMALS
from egmf_dist.inference.sources import CONTEXT_LACKS, TRUTH_UNUSED, Item, Source, as_asked
from egmf_dist.inference.utterance import Answer
from egmf_dist.metrics.by_task import as_number, evaluate_task
from egmf_dist.metrics.calibration import negative_log_likelihood, right_answer
from egmf_shards import Sample, Task

_COUNTED = ("error", TRUTH_UNUSED, CONTEXT_LACKS)
"""What a row may say besides its answers, and is told at the end."""


@dataclass(frozen=True)
class Done:
    """What became of an input."""

    lines: int
    """All of the input's."""
    before: int
    """Of them those that an earlier start had answered."""
    failed: int
    """Those that have an ``error``."""
    first_error: str | None
    metrics: Mapping[str, Any]
    """By task the metrics of the answers whose truth is known, and whether these are ``calibrated``."""
    notes: Mapping[str, tuple[int, str]]
    """How many lines have ``truth_unused`` and ``context_lacks``, and the first; what no line has is left out."""


def predict_file(
    model: Model,
    source: Source,
    out: Path,
    tasks: Sequence[str] | None,
    progress: Callable[[int, int], None],
    explain: Path | None = None,
) -> Done:
    """Answer everything of a source; every rank must call this, each with a model of its own.

    Args:
        model: that answers.
        source: the same on every rank.
        out: JSON lines, in the same order. While it grows, ``.NAME.progress.json`` beside it names what it is made of;
            with that file there a later call goes on where this one was stopped.
        tasks: which questions; None for all.
        progress: called with lines done and their number.
        explain: folder for an explanation of each answer, which costs many passes; None: none is made.

    Returns:
        The same on every rank.

    Raises:
        EgmfError: the output exists, cannot be written, or was begun with another input or model.
    """
    model.check_tasks(tasks)
    rank, ranks, size = distributed.rank(), distributed.world_size(), model.batch_size
    made_of = {"input": source.identity(), "model": model.about["sha256"], "tasks": tasks and [*tasks]}
    if explain is not None:
        made_of["explain"] = str(explain.absolute())
    output = Output(out, made_of)
    # What is there already is this output's only where that was begun with the same folder, which it sees for itself.
    explanations: ExplanationFolder | None = distributed.on_rank_zero(
        lambda: None if explain is None else ExplanationFolder(explain, begun=out.exists())
    )
    try:
        before: int = distributed.on_rank_zero(output.begin)
        done, total = before, len(source)
        waiting = source.items(model, before)
        while chunk := list(islice(waiting, size * ranks)):
            if explanations is not None:
                explanations.expect([item.name for item in chunk])
            with distributed.failing_together():
                rows = _answered(model, chunk[rank * size : (rank + 1) * size], tasks, explanations)
            together = distributed.gather_objects(rows)
            distributed.on_rank_zero(lambda: output.write([row for part in together or [] for row in part]))  # noqa: B023
            done += len(chunk)
            progress(done, total)
        # Before the output is called whole: what goes wrong here is made good by the same command.
        metrics = distributed.on_rank_zero(lambda: judge(out, model.tasks))
        said: dict[str, tuple[int, str]] = distributed.on_rank_zero(output.finish)
    finally:
        output.close()
    failed, first_error = said.pop("error", (0, None))
    return Done(total, before, failed, first_error, metrics, said)


class Output:
    """The file that is written, by rank 0 alone.

    Args:
        path: of it.
        made_of: what tells this output from another.
    """

    def __init__(self, path: Path, made_of: Mapping[str, Any]) -> None:
        self.path, self.made_of = path, dict(made_of)
        self._state = path.with_name(f".{path.name}.progress.json")
        self._file: TextIO | None = None
        self._said: dict[str, tuple[int, str]] = {}

    def begin(self) -> int:
        """Open it; how many lines it has already.

        Raises:
            EgmfError: it exists, cannot be written, is written by another process, or was begun with something else.
        """
        with self._writing("name another file"):
            _begin(self.path, self._state, self.made_of)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  # one batch after another goes into it
            self._lock()
            before, self._said = _kept(self.path)
        return before

    def _lock(self) -> None:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            what = "another process is writing it; wait for it, or name another file"
            raise EgmfError(f"--out {self.path}: {what}") from error
        except OSError as error:
            # Some network file systems have no locks; there nobody watches over a second start.
            print(
                f"--out {self.path}: cannot be locked ({error.strerror}): start only one", file=sys.stderr, flush=True
            )

    @contextlib.contextmanager
    def _writing(self, then: str = "start again to go on") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EgmfError(f"--out {self.path}: cannot be written: {error.strerror}; {then}") from error

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add lines."""
        assert self._file is not None
        with self._writing():
            for row in rows:
                _count(self._said, row)
                self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()

    def finish(self) -> dict[str, tuple[int, str]]:
        """It is whole: how many lines have an ``error`` and the like, and the first; what none has is left out."""
        assert self._file is not None
        with self._writing():
            os.fsync(self._file.fileno())
            self._state.unlink()
        return self._said

    def close(self) -> None:
        """Let go of it."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written was said already
                self._file.close()


def judge(out: Path, tasks: Mapping[str, Task]) -> dict[str, Any]:
    """By task ``n`` and ``metrics`` of the answers in an output whose truth is known, and whether all of these are
    ``calibrated``. Where a row has no ``truth_log_probability`` (of an earlier version) there is no NLL."""
    found: dict[str, tuple[list[float], list[float], list[list[float]]]] = {}
    likelihoods: dict[str, list[float]] = {}
    calibrated: dict[str, bool] = {}
    with open(out, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            for name, right in row.get("truth", {}).items():
                if name not in row.get("answers", {}):
                    continue
                task, answer = tasks[name], row["answers"][name]
                truth, predicted, probabilities = found.setdefault(name, ([], [], []))
                truth.append(as_number(task, right))
                predicted.append(as_number(task, answer["label"] if "label" in answer else answer["value"]))
                p = np.array([*answer["probabilities"].values()])
                probabilities.append((p / p.sum()).tolist())
                likelihoods.setdefault(name, []).append(row.get("truth_log_probability", {}).get(name, np.nan))
                calibrated[name] = calibrated.get(name, True) and bool(answer.get("calibrated"))
    judged = {}
    for name, columns in found.items():
        # Not out of the probabilities that are written: of one that was rounded to 0 nobody knows the logarithm.
        nll = -float(np.mean(likelihoods[name]))
        metrics = evaluate_task(tasks[name], *columns)["metrics"] | {"nll": nll if np.isfinite(nll) else None}
        judged[name] = {"n": len(columns[0]), "metrics": metrics, "calibrated": calibrated[name]}
    return judged


def _begin(out: Path, state: Path, made_of: dict[str, Any]) -> None:
    """Make an output, or see that the one there was begun with the same."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(state, made_of)
        out.touch()
        return
    if not state.is_file():
        raise EgmfError(f"--out {out}: it exists; name another file, or remove it first")
    try:
        then = json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        then = None
    if then != made_of:
        raise EgmfError(
            f"--out {out}: was begun with another input, model, tasks or --explain; "
            "finish it with those, or remove it first"
        )


def _kept(out: Path) -> tuple[int, dict[str, tuple[int, str]]]:
    """How many lines are answered already, and what they say (:meth:`Output.finish`). Half a line of a killed start is
    cut off, and so is everything from a damaged line on: it is answered again."""
    said: dict[str, tuple[int, str]] = {}
    with open(out, "rb+") as file:
        whole, lines = 0, 0
        for line in file:
            row = _row(line)
            if row is None:
                if line.endswith(b"\n"):
                    what = f"line {lines + 1} is damaged; what was written from there on is answered again"
                    print(f"--out {out}: {what}", file=sys.stderr, flush=True)
                break
            whole, lines = whole + len(line), lines + 1
            _count(said, row)
        file.truncate(whole)
    return lines, said


def _row(line: bytes) -> dict[str, Any] | None:
    """A line that was written here; None: it is none, or not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and "id" in row and ("answers" in row or "error" in row) else None


def _count(said: dict[str, tuple[int, str]], row: Mapping[str, Any]) -> None:
    for name in _COUNTED:
        if name in row:
            times, first = said.get(name, (0, row[name]))
            said[name] = times + 1, first


def _answered(
    model: Model, chunk: Sequence[Item], tasks: Sequence[str] | None, explanations: ExplanationFolder | None
) -> list[dict[str, Any]]:
    """A row for each item; what fails as they are answered together is answered one by one."""
    prepared = [(item, _prepared(model, item, tasks)) for item in chunk]
    sound = [samples for _, samples in prepared if not isinstance(samples, str)]
    try:
        answers: Iterator[Answer] | None = iter(model.answer([sample for samples in sound for sample in samples]))
    except EgmfError:
        answers = None
    rows = []
    for item, samples in prepared:
        if isinstance(samples, str):
            rows.append({"id": item.name, "error": samples})
            continue
        try:
            own = model.answer(samples) if answers is None else list(islice(answers, len(samples)))
            rows.append(row_of(item.name, own) | _truth(item, own, model.tasks) | dict(item.notes))
        except EgmfError as error:
            rows.append({"id": item.name, "error": str(error)})
            continue
        if explanations is not None:
            rows[-1] |= explanations.write(model, item.name, samples)
    return rows


def _truth(item: Item, answers: Sequence[Answer], tasks: Mapping[str, Task]) -> dict[str, Any]:
    """What a row says of what is right."""
    if not item.truth:
        return {}
    found = {}
    for answer in answers:
        if answer.task in item.truth:
            task, p = tasks[answer.task], np.array([[*answer.probabilities.values()]])
            right = right_answer(task, as_number(task, item.truth[answer.task]))
            found[answer.task] = -negative_log_likelihood(p, np.array([right]))
    return {"truth": dict(item.truth)} | ({"truth_log_probability": found} if found else {})


def _prepared(model: Model, item: Item, tasks: Sequence[str] | None) -> list[Sample] | str:
    """A sample for each question, or what is wrong."""
    asked = item.asked
    if isinstance(asked, str):
        return asked
    try:
        if isinstance(asked, Sample):
            return as_asked(asked, model, tasks)
        return model.samples(asked, 0, tasks or ([item.task] if item.task in model.tasks else None))
    except EgmfError as error:
        return str(error)


def row_of(name: Any, answers: Sequence[Answer]) -> dict[str, Any]:
    """The line of an utterance: its name and the answers to all questions about it."""
    row: dict[str, Any] = {"id": name, "language": answers[0].language, "answers": {}}
    if answers[0].absent:
        row["absent"] = list(answers[0].absent)
    first = answers[0]
    for name, said in (
        ("why_absent", first.why_absent),
        ("made_by", first.made_by),
        ("repaired", first.repaired),
    ):
        if said:
            row[name] = dict(said)
    for answer in answers:
        one: dict[str, Any] = {"answer": answer.answer, "calibrated": answer.calibrated}
        if answer.value is None:
            one["label"] = answer.label
        else:
            one |= {
                "value": round(answer.value, DECIMALS),
                "interval": [round(end, DECIMALS) for end in answer.interval or ()],
            }
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
