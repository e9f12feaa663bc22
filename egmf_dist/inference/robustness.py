"""How a run stands what recordings lack: ``evaluation/SPLIT-robustness.json``.

Frames and words are lost, streams go, noise comes, the context is shuffled or gone, and two samples' streams are
exchanged, which says whom the model follows where signals conflict. Every figure comes through the same scoring as an
evaluation. What is drawn follows from :data:`SEED` and each sample's id alone (:mod:`egmf_dist.data.perturb`), so two
runs meet the same damage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from egmf_dist import distributed
from egmf_dist.data.perturb import (
    add_noise,
    drawn_from,
    drop_frames,
    drop_words,
    exchanged,
    shuffle_context,
    with_stream_of,
    without_context,
)
from egmf_dist.files import write_json
from egmf_dist.inference.opened import Opened
from egmf_dist.inference.predictions import Prediction
from egmf_dist.inference.score import evaluate_predictions
from egmf_dist.metrics.by_task import HEADLINE
from egmf_shards import CLASSIFICATION, TEXT, FeatureInput, Sample, Task

SEED = 0
RATES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
DECIBELS = (20, 10, 0, -10)
WORDS, FRAMES = "words", "all frames"
Change = Callable[[int, Sample], Sample]


def robustness(opened: Opened) -> dict[str, Any]:
    """Score a split damaged in every way that its samples allow; every rank must call this.

    Args:
        opened: model and split.

    Returns:
        On every rank what the file holds: ``rates``, ``decibels``, and by task ``metric``, ``clean``, ``curves`` (by
        stream, ``words`` or ``all frames``: ``drop`` and ``noise``, pairs of rate or decibels and metric), ``removed``,
        ``context``, ``area`` (by stream the mean of its drop curve), ``area_all`` (their mean; None where one of them
        is undefined) and ``conflict`` (by stream ``n`` and the shares of the answers that follow the exchanged stream's
        truth, the rest's, or neither; ``follows_stream_before``: what the first share is of the same samples with
        nothing exchanged, as far as a timid answer lies nearer to the other truth by itself). And ``area``, the one
        number of the run: the mean of its tasks' ``area_all``.

    Raises:
        ShardError: a sample is damaged.
    """
    return _Robustness(opened).run()


class _Robustness:
    def __init__(self, opened: Opened) -> None:
        self.opened, self.tasks = opened, opened.data.tasks
        self.found: dict[str, dict[str, Any]] = {}
        self.streams: dict[str, set[str]] = {}
        """By task what its samples have: a curve of a stream that none of them has would be flat, and say nothing."""

    def run(self) -> dict[str, Any]:
        opened = self.opened
        clean = opened.score(f"{opened.split} as it is")
        facts = distributed.broadcast_object([_facts(row) for row in clean])
        for task, modalities, _ in facts:
            self.streams.setdefault(task, set()).update(modalities)
        streams = [m for m in opened.data.modalities if any(m in own for own in self.streams.values())]
        self._begin(clean)
        for stream in streams:
            key = WORDS if stream == TEXT else stream
            for rate in RATES[1:]:
                self._point(key, "drop", rate, _dropping(stream, rate))
            if stream != TEXT:
                for decibels in DECIBELS:
                    self._point(key, "noise", decibels, self._noisy(stream, decibels))
        own = [stream for stream in streams if stream != TEXT]
        if len(own) > 1:
            for rate in RATES[1:]:
                self._point(FRAMES, "drop", rate, _dropping_all(own, rate))
        if len(streams) > 1:
            for stream in streams:
                rows = opened.score(f"{opened.split} without {stream}", [stream])
                found = self._headlines(rows)
                self._put("removed", stream, {task: v for task, v in found.items() if stream in self.streams[task]})
        if any(turns for _, _, turns in facts) and opened.config.data.context_turns:
            for name, change in (("shuffled", _shuffled), ("removed", lambda _, sample: without_context(sample))):
                rows = opened.score(f"{opened.split}, context {name}", change=change)
                self._put("context", name, self._headlines(rows))
        if len(streams) > 1:
            for stream in streams:
                self._conflict(stream, clean)
        return self._written(len(facts))

    def _begin(self, clean: Sequence[Prediction]) -> None:
        for name, value in self._headlines(clean).items():
            metric = HEADLINE[self.tasks[name].kind]
            self.found[name] = {"metric": metric, "clean": value, "curves": {}}

    def _headlines(self, rows: Sequence[Prediction]) -> dict[str, float | None]:
        """The headline metric of each task, on every rank, of rank 0's predictions."""

        def judge() -> dict[str, float | None]:
            results = evaluate_predictions(rows, self.tasks)
            return {name: result["metrics"][HEADLINE[result["kind"]]] for name, result in results.items()}

        found: dict[str, float | None] = distributed.on_rank_zero(judge)
        return found

    def _point(self, key: str, kind: str, at: float, change: Change) -> None:
        what = f"{at:.0%} of {key} lost" if kind == "drop" else f"{key} at {at} dB"
        for name, value in self._headlines(self.opened.score(what, change=change)).items():
            own = self.streams[name]
            if (len(own - {TEXT}) < 2) if key == FRAMES else ((TEXT if key == WORDS else key) not in own):
                continue
            curves = self.found[name]["curves"].setdefault(key, {})
            first = [[0.0, self.found[name]["clean"]]] if kind == "drop" else []
            curves.setdefault(kind, first).append([at, value])

    def _put(self, part: str, key: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self.found[name].setdefault(part, {})[key] = value

    def _conflict(self, stream: str, clean: Sequence[Prediction]) -> None:
        """Exchange one stream between samples of one task and language with different truths."""
        partner: dict[int, int] = distributed.on_rank_zero(lambda: _partners(stream, clean))
        if not partner:
            return
        numbers = sorted(partner)

        def change(number: int, sample: Sample) -> Sample:
            (other,) = self.opened.shards.read([partner[number]]).samples
            return with_stream_of(sample, other, stream)

        rows = self.opened.score(f"{stream} of another sample", change=change, indices=numbers)
        votes: dict[str, list[tuple[str, str]]] = {}
        for number, row in zip(numbers, rows, strict=False):
            task, theirs = self.tasks[row["task"]], clean[partner[number]]["truth"]
            votes.setdefault(row["task"], []).append((whom(task, row, theirs), whom(task, clean[number], theirs)))
        for name, pairs in votes.items():
            own, before = zip(*pairs, strict=True)
            shares = {vote: own.count(vote) / len(own) for vote in ("follows_stream", "follows_rest", "neither")}
            shares["follows_stream_before"] = before.count("follows_stream") / len(before)
            self._put("conflict", stream, {name: {"n": len(own), **shares}})

    def _noisy(self, stream: str, decibels: int) -> Change:
        known = self.opened.data.standardisations

        def change(_: int, sample: Sample) -> Sample:
            frames = sample.features.get(stream)
            own = None if frames is None else known.get(FeatureInput(stream, frames.shape[1]).key)
            rng = drawn_from(SEED, "noise", stream, sample.id)
            return add_noise(sample, stream, decibels, rng, None if own is None else own.std)

        return change

    def _written(self, samples: int) -> dict[str, Any]:
        opened = self.opened

        def write() -> dict[str, Any]:
            for own in self.found.values():
                own["area"] = {key: area(curves["drop"]) for key, curves in own["curves"].items()}
                own["area_all"] = mean_of([value for key, value in own["area"].items() if key != FRAMES])
            result = {
                "split": opened.split,
                "checkpoint": opened.checkpoint,
                "seed": SEED,
                "samples": samples,
                "rates": list(RATES),
                "decibels": list(DECIBELS),
                "area": mean_of([own["area_all"] for own in self.found.values()]),
                "tasks": self.found,
            }
            opened.run.evaluations.mkdir(exist_ok=True)
            write_json(opened.run.robustness(opened.split), result)
            return result

        answer: dict[str, Any] = distributed.on_rank_zero(write)
        return answer


def area(curve: Sequence[Sequence[float | None]]) -> float | None:
    """The mean height of a drop curve from its first rate to its last, by trapezoids; None where one is undefined."""
    rates, values = zip(*curve, strict=True)
    if any(value is None for value in values):
        return None
    return float(np.trapezoid(values, rates) / (rates[-1] - rates[0]))


def mean_of(values: Sequence[float | None]) -> float | None:
    """None where one is undefined: a mean of the others would rise as a model gets worse."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def whom(task: Task, row: Prediction, theirs: Any) -> str:
    """Whether an answer follows the exchanged stream's truth or the sample's own; a number the nearer one."""
    said, own = row["predicted"], row["truth"]
    if task.kind == CLASSIFICATION:
        return "follows_stream" if said == theirs else "follows_rest" if said == own else "neither"
    to_them, to_own = abs(said - theirs), abs(said - own)
    return "neither" if to_them == to_own else "follows_stream" if to_them < to_own else "follows_rest"


def _facts(row: Prediction) -> tuple[str, list[str], int]:
    """A sample's task, which modalities it has, and how many turns stood before it."""
    return row["task"], row["modalities"], int(row["turn"] or 0)


def _partners(stream: str, clean: Sequence[Prediction]) -> dict[int, int]:
    """For samples by number the one whose stream they get."""
    groups: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(clean):
        if stream in row["modalities"] and len(row["modalities"]) > 1:
            groups.setdefault((row["task"], row["language"]), []).append(number)
    found: dict[int, int] = {}
    for (task, language), members in groups.items():
        partners = exchanged([clean[i]["truth"] for i in members], drawn_from(SEED, "conflict", stream, task, language))
        found |= {i: members[p] for i, p in zip(members, partners, strict=True) if p is not None}
    return found


def _dropping(stream: str, rate: float) -> Change:
    def change(_: int, sample: Sample) -> Sample:
        rng = drawn_from(SEED, "drop", stream, f"{rate}", sample.id)
        return drop_words(sample, rate, rng) if stream == TEXT else drop_frames(sample, stream, rate, rng)

    return change


def _dropping_all(streams: Sequence[str], rate: float) -> Change:
    """Of every feature stream at once what it loses alone."""

    def change(number: int, sample: Sample) -> Sample:
        for stream in streams:
            sample = _dropping(stream, rate)(number, sample)
        return sample

    return change


def _shuffled(_: int, sample: Sample) -> Sample:
    return shuffle_context(sample, drawn_from(SEED, "context", sample.id))
