"""What a data set asks: the kind of answer, the legal answers, the language and the question in words.

A task belongs to the data, so it is part of the shard manifest; a training run reads it from there. Two shard folders
of one run may carry the same task only if the definitions are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from egmf_shards.errors import ShardError
from egmf_shards.messages import shown

CLASSIFICATION = "classification"
REGRESSION = "regression"
CONVENTIONS = ("classes", "mosei", "sims")
MAX_ANSWERS = 10_000
"""Legal answers of a task: each is scored for every sample."""


@dataclass(frozen=True)
class Task:
    """One question with its legal answers.

    A classification stores label keys (``labels``) in the samples and answers with the words of the sample's language
    (``answers[language][labels.index(key)]``). A regression stores real numbers and answers with a number on the grid
    ``low, low + step, ..., high``, written with as many decimals as ``step`` needs.
    """

    name: str
    """Unique in a run, for example ``meld-emotion``."""
    kind: str
    """``classification`` or ``regression``."""
    questions: Mapping[str, str]
    """The question in words, one per language code (``en``, ``zh``)."""
    convention: str = "classes"
    """Which published metrics apply: ``classes``, ``mosei`` (zero is non-negative) or ``sims`` (zero is negative)."""
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
        self._check_types()
        if self.kind not in (CLASSIFICATION, REGRESSION):
            raise ShardError(
                f"task {self.name!r}: kind is {self.kind!r}; it must be {CLASSIFICATION!r} or {REGRESSION!r}"
            )
        if self.convention not in CONVENTIONS:
            raise ShardError(
                f"task {self.name!r}: convention is {self.convention!r}; it must be one of {', '.join(CONVENTIONS)}"
            )
        if not self.questions:
            raise ShardError(f"task {self.name!r}: no question; give at least one language, such as {{'en': '...'}}")
        if self.kind == CLASSIFICATION:
            if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
                raise ShardError(
                    f"task {self.name!r}: labels are {list(self.labels)}; at least two different ones are needed"
                )
            for language in self.questions:
                words = self.answers.get(language, ())
                if len(words) != len(self.labels) or len(set(words)) != len(words):
                    raise ShardError(
                        f"task {self.name!r}: the answers in {language!r} are {list(words)}; "
                        f"one different word for each of {list(self.labels)} is needed"
                    )
        elif not (self.step > 0 and self.high > self.low):
            raise ShardError(
                f"task {self.name!r}: range [{self.low}, {self.high}] with step {self.step}; "
                "low < high and step > 0 are needed"
            )
        if len(self.labels) > MAX_ANSWERS or (
            self.kind == REGRESSION and not (self.high - self.low) / self.step <= MAX_ANSWERS - 1
        ):
            raise ShardError(f"task {self.name!r}: more than {MAX_ANSWERS} legal answers; a larger step is needed")

    def _check_types(self) -> None:
        """Definitions come from files of other people, and the types above are only annotations."""
        if not isinstance(self.name, str) or not self.name:
            raise ShardError(f"a task's name is {shown(self.name)}; a text is needed")
        if not isinstance(self.questions, Mapping) or not _all_text((*self.questions, *self.questions.values())):
            raise ShardError(f"task {self.name!r}: questions must be one text for each language")
        answers = self.answers.values() if isinstance(self.answers, Mapping) else (None,)
        lists = (self.labels, *answers)
        if not all(isinstance(words, list | tuple) and _all_text(words) for words in lists) or not _all_text(
            self.answers
        ):
            raise ShardError(f"task {self.name!r}: labels must be a list of texts, and answers one for each language")
        for name in ("low", "high", "step"):
            number = getattr(self, name)
            if not isinstance(number, int | float) or isinstance(number, bool) or not abs(number) < 1e300:
                raise ShardError(f"task {self.name!r}: {name} is {shown(number)}; a number is needed")

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages the task can be asked in."""
        return tuple(self.questions)

    @property
    def decimals(self) -> int:
        """Decimals that write the grid's numbers well enough: 1 for steps of 0.2 or 0.5, 2 for 0.25 and thirds."""
        return next((d for d in range(1, 3) if abs(round(self.step, d) - self.step) < 1e-9), 2)

    @property
    def values(self) -> tuple[float, ...]:
        """Regression: the legal numbers, ascending."""
        count = round((self.high - self.low) / self.step) + 1
        return tuple(round(self.low + i * self.step, 6) for i in range(count))

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
        return tuple(f"{v + 0.0:.{self.decimals}f}" for v in self.values)

    def check_target(self, label: str | None, value: float | None, where: str) -> None:
        """Refuse a target outside the label space or the range; ``where`` names the sample in the message."""
        if self.kind == CLASSIFICATION:
            if label not in self.labels:
                raise ShardError(
                    f"{where}: label {label!r} is not in the label space of task {self.name!r}: "
                    f"{', '.join(self.labels)}"
                )
        elif value is None or not self.low - 1e-6 <= value <= self.high + 1e-6:
            raise ShardError(
                f"{where}: value {value!r} is outside the range [{self.low}, {self.high}] of task {self.name!r}"
            )

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


def _all_text(items: Iterable[Any]) -> bool:
    return all(isinstance(item, str) for item in items)


def _tuple(items: Any) -> Any:
    return tuple(items) if isinstance(items, list) else items
