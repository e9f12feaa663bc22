"""Importers whose files hold one number a clip of a video: their task ``<dataset>-sentiment``, and their samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.format.rules import target_fault
from egmf_shards.format.sample import Sample
from egmf_shards.format.task import REGRESSION, Task
from egmf_shards.importers.common import build_sample, check_dataset
from egmf_shards.importers.keys import Name

KNOWN: dict[str, dict[str, Any]] = {
    "mosi": {"language": "en", "low": -3.0, "high": 3.0, "step": 0.2, "convention": "mosei"},
    "mosei": {"language": "en", "low": -3.0, "high": 3.0, "step": 1 / 3, "convention": "mosei"},
    "sims": {"language": "zh", "low": -1.0, "high": 1.0, "step": 0.2, "convention": "sims"},
    "simsv2": {"language": "zh", "low": -1.0, "high": 1.0, "step": 0.2, "convention": "sims"},
}
"""What a known data set's name decides; an argument overrules it."""
QUESTIONS = {
    "en": "How does the speaker feel, on a scale from {low} (negative) to {high} (positive)?",
    "zh": "说话人的情感是多少，从{low}（消极）到{high}（积极）？",
}


class TaskOptions(TypedDict, total=False):
    """What may be said about the task; None is the same as left out."""

    low: float | None
    """The smallest legal label."""
    high: float | None
    """The largest legal label."""
    step: float | None
    """The distance between two legal answers; it divides the range."""
    convention: str | None
    """The metrics' convention, ``sims`` or ``mosei``."""
    question: str | None
    """The question in words, in place of the built-in one."""
    task: Task | None
    """The whole task, in place of all of these."""


def sentiment_task(
    dataset: str, language: str | None, options: TaskOptions, otherwise: Mapping[str, Any] | None = None
) -> tuple[Task, str]:
    """The task and the language of its samples, from :data:`KNOWN` and what overrules it.

    Args:
        dataset: the data set's name.
        language: ``en`` or ``zh``; any other needs a question. None: the one that is known.
        options: what the caller says.
        otherwise: what holds for a data set that is not known, as :data:`KNOWN` says it for the others.

    Raises:
        ShardError: the name is no data set's, or one that is not known and something is left open, the language has no
            built-in question, or the task breaks a rule.
    """
    check_dataset(dataset)
    unknown = options.keys() - TaskOptions.__annotations__.keys()
    if unknown:  # keywords that Python itself does not check
        raise TypeError(
            f"unknown options {', '.join(sorted(unknown))}; there are {', '.join(TaskOptions.__annotations__)}"
        )
    said = {name: value for name, value in options.items() if value is not None}
    task = said.pop("task", None)
    if isinstance(task, Task):
        return _given(task, dataset, language, said)
    known = KNOWN.get(dataset, otherwise or {})
    chosen = {**known, **({} if language is None else {"language": language}), **said}
    lacking = [name for name in ("language", "low", "high", "step", "convention") if name not in chosen]
    if lacking:
        raise ShardError(f"dataset {dataset!r} is not one of {', '.join(KNOWN)}: give its {', '.join(lacking)} as well")
    language = str(chosen["language"])
    question = chosen.get("question")
    if question is None:
        if language not in QUESTIONS:
            raise ShardError(
                f"language is {language!r}; there is a built-in question in {', '.join(QUESTIONS)} only: "
                "give one in words with --question"
            )
        question = QUESTIONS[language].format(low=f"{chosen['low']:g}", high=f"{chosen['high']:g}")
    grid = {name: chosen[name] for name in ("low", "high", "step", "convention")}
    return Task(name=f"{dataset}-sentiment", kind=REGRESSION, questions={language: question}, **grid), language


@dataclass(frozen=True)
class Clips:
    """What all samples of such a data set have in common."""

    dataset: str
    task: Task
    language: str

    def sample(
        self,
        name: Name,
        video: str,
        text: str,
        features: Mapping[str, np.ndarray | None],
        *,
        split: str,
        turn: int,
        value: float | None,
    ) -> Sample:
        """The sample of one clip; the clips of a video are one dialogue.

        Args:
            name: its key and its id in the source.
            video: the id of its video.
            text: the utterance, cleaned; empty where the text is absent.
            features: modality to float32 ``[frames, dim]`` or None.
            split: ours.
            turn: its place in the video, from 0.
            value: the sentiment (:func:`check_value`), None in the split ``unlabelled``.
        """
        return build_sample(
            name,
            text,
            features,
            language=self.language,
            task=self.task.name,
            dataset=self.dataset,
            split=split,
            value=value,
            dialogue=f"{self.dataset}-{video}",
            turn=turn,
        )


def check_value(task: Task, value: float, where: str) -> None:
    """Refuse a number outside the range of a :func:`sentiment_task`, and say how another range is said."""
    fault = target_fault(task, None, value)
    if fault:
        raise ShardError(f"{where}: {fault}; --low, --high and --step say another range")


def _given(task: Task, dataset: str, language: str | None, said: Mapping[str, Any]) -> tuple[Task, str]:
    if said:
        raise ShardError(f"a task is given, which says its {', '.join(said)} already: leave one of both out")
    if task.kind != REGRESSION:
        raise ShardError(f"task {task.name!r} is a {task.kind}; these files hold numbers, so a {REGRESSION} is needed")
    known = KNOWN.get(dataset, {}).get("language")
    if language is None:
        language = task.languages[0] if len(task.languages) == 1 else known
    if language not in task.languages:
        raise ShardError(
            f"task {task.name!r} is asked in {', '.join(task.languages)}; "
            + (f"the language is {language!r}" if language else "say with --language which of them the text is in")
        )
    return task, language
