"""What a data set asks: the kind of answer, the legal answers, the language and the question in words.

A task belongs to the data, so it is part of the shard manifest; a training run reads it from there. Two shard folders
of one run may carry the same task only if the definitions are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from egmf_shards.errors import ShardError
from egmf_shards.format import rules
from egmf_shards.format.rules import CLASSIFICATION, CONVENTIONS, MAX_ANSWERS, REGRESSION
from egmf_shards.messages import shown

__all__ = ["CLASSIFICATION", "CONVENTIONS", "MAX_ANSWERS", "REGRESSION", "Task"]


@dataclass(frozen=True)
class Task:
    """One question with its legal answers.

    A classification stores label keys (``labels``) in the samples and answers with the words of the sample's language
    (``answers[language][labels.index(key)]``). A regression stores real numbers and answers with a number on the grid
    ``low, low + step, ..., high``, written with as many decimals as ``step`` needs; ``step`` divides the range.

    Raises:
        ShardError: the definition breaks a rule (:func:`egmf_shards.format.rules.task_fault`).
    """

    name: str
    """Unique in a run, for example ``meld-emotion``."""
    kind: str
    """``classification`` or ``regression``."""
    questions: Mapping[str, str]
    """The question in words, one per language code (``en``, ``zh``)."""
    convention: str = "classes"
    """Which published metrics apply: ``classes``, ``mosei`` (zero is non-negative) or ``sims`` (zero is negative;
    only the range [-1, 1])."""
    labels: tuple[str, ...] = ()
    """Classification: the label keys, in the data set's usual order."""
    answers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Classification: for each language the word of every label, in the order of ``labels``."""
    low: float = 0.0
    """Regression: the smallest legal number."""
    high: float = 0.0
    """Regression: the largest legal number."""
    step: float = 0.0
    """Regression: the distance between two legal numbers."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ShardError(f"a task's name is {shown(self.name)}; a text is needed")
        fault = rules.task_fault(self)
        if fault:
            raise ShardError(f"task {self.name!r}: {fault}")

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages the task can be asked in."""
        return tuple(self.questions)

    @cached_property
    def label_set(self) -> frozenset[str]:
        """``labels``, to look one up."""
        return frozenset(self.labels)

    @property
    def decimals(self) -> int:
        """Decimals that write the grid's numbers, all different: 1 for steps of 0.2 or 0.5, 2 for 0.25 and thirds."""
        return (self.kind == REGRESSION and rules.decimals(self.low, self.high, self.step)) or 1

    @property
    def values(self) -> tuple[float, ...]:
        """Regression: the legal numbers, ascending."""
        return rules.grid(self.low, self.high, self.step)

    def nearest(self, value: float) -> int:
        """The index in ``values`` of the legal number nearest to ``value`` (numbers outside the range: its end)."""
        return min(max(round((value - self.low) / self.step), 0), len(self.values) - 1)

    def legal_answers(self, language: str) -> tuple[str, ...]:
        """Every legal answer's text in ``language``, in the order of ``labels`` or ``values``.

        Raises:
            ShardError: the task is not asked in that language.
        """
        if language not in self.questions:
            raise ShardError(f"task {self.name!r} is not asked in {language!r}; it knows {', '.join(self.languages)}")
        if self.kind == CLASSIFICATION:
            return tuple(self.answers[language])
        return tuple(rules.written(value, self.decimals) for value in self.values)

    def check_target(self, label: str | None, value: float | None, where: str) -> None:
        """Refuse a target outside the label space or the range; ``where`` names the sample in the message."""
        fault = rules.target_fault(self, label, value)
        if fault:
            raise ShardError(f"{where}: {fault}")

    def to_json(self) -> dict[str, Any]:
        """The task as the manifest stores it."""
        common: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "questions": dict(self.questions),
            "convention": self.convention,
        }
        if self.kind == CLASSIFICATION:
            return common | {"labels": list(self.labels), "answers": {k: list(v) for k, v in self.answers.items()}}
        return common | {"low": self.low, "high": self.high, "step": self.step}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "manifest") -> Task:
        """The inverse of :meth:`to_json`.

        Raises:
            ShardError: a key is missing or unknown, or a value breaks a rule above.
        """
        try:
            values = dict(data)
            # Only lists: a text would come apart into its letters.
            values["labels"] = _tuple(values.get("labels", ()))
            values["answers"] = {k: _tuple(v) for k, v in values.get("answers", {}).items()}
            return cls(**values)
        except ShardError as error:
            raise ShardError(f"{where}: {error}") from error
        except (TypeError, AttributeError, ValueError) as error:
            raise ShardError(f"{where}: a task is malformed ({error})") from error


def _tuple(items: Any) -> Any:
    return tuple(items) if isinstance(items, list) else items
