"""One sample: an utterance in its dialogue, one question, its answer, the features of the modalities that are there.

Invariants: absence is declared (``modalities``), never guessed from a missing file; feature arrays have their real
length; the preceding turns travel with the sample, because a shuffled stream never sees neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from egmf_shards.errors import ShardError

MODALITIES = ("text", "audio", "vision")
FEATURE_MODALITIES = ("audio", "vision")
SPLITS = ("train", "valid", "test")
MAX_CONTEXT_TURNS = 12


class Turn(NamedTuple):
    """One preceding turn of the dialogue."""

    speaker: str
    text: str


# As Turn(*pair), but done in C; lengths are checked together.
_make_turn = partial(tuple.__new__, Turn)

_NEEDED = frozenset({"id", "text", "language", "task", "dataset", "split", "modalities", "context"})
_OPTIONAL: dict[str, Any] = {"label": None, "value": None, "speaker": "", "dialogue": "", "turn": 0}
_KNOWN = _NEEDED | _OPTIONAL.keys()
_STRINGS = itemgetter("id", "text", "language", "task", "dataset", "split", "speaker", "dialogue")
_NO_FEATURES = dict.fromkeys(FEATURE_MODALITIES)


_NUMBERS = (float, int)


# Samples have the same fields and few sets of modalities: what was looked at once is not looked at again.
@lru_cache(maxsize=256)
def _fields_fault(names: tuple[str, ...]) -> str:
    lacking, odd = sorted(_NEEDED.difference(names)), sorted(set(names) - _KNOWN)
    if lacking:
        return f"lacks {', '.join(lacking)}"
    return f"has unknown {', '.join(map(repr, odd))}" if odd else ""


@lru_cache(maxsize=256)
def _modalities_fault(names: tuple[str, ...]) -> str:
    if set(names) <= set(MODALITIES) and len(set(names)) == len(names):
        return ""
    return f"modalities are {list(names)}; each of {', '.join(MODALITIES)} at most once"


@dataclass(frozen=True, eq=False)
class Sample:
    """One utterance with one task's target."""

    id: str
    """Unique over the data set; letters, digits, ``-`` and ``_`` only: it is the WebDataset key."""
    text: str
    """The utterance; empty where the text is absent."""
    language: str
    task: str
    dataset: str
    split: str
    modalities: tuple[str, ...]
    """Which of ``text``, ``audio``, ``vision`` are present."""
    label: str | None = None
    """Classification: the label key."""
    value: float | None = None
    """Regression: the number."""
    speaker: str = ""
    dialogue: str = ""
    turn: int = 0
    """The utterance's place in its dialogue, from 0."""
    context: tuple[Turn, ...] = ()
    """The preceding turns, oldest first, at most :data:`MAX_CONTEXT_TURNS`."""
    audio: np.ndarray | None = field(default=None, repr=False)
    """float32 ``[frames, dim]``; None where absent."""
    vision: np.ndarray | None = field(default=None, repr=False)
    """float32 ``[frames, dim]``; None where absent."""

    def without(self, modality: str) -> Sample:
        """The same sample with one modality absent: text becomes the empty utterance, features become None."""
        if modality not in MODALITIES:
            raise ShardError(f"modality {modality!r} does not exist; it must be one of {', '.join(MODALITIES)}")
        values = dict(self.__dict__)
        values["modalities"] = tuple(m for m in self.modalities if m != modality)
        values[modality] = "" if modality == "text" else None
        return Sample(**values)

    def to_json(self) -> dict[str, Any]:
        """Everything but the feature arrays, as the ``.json`` member stores it."""
        data: dict[str, Any] = {
            "id": self.id,
            "text": self.text,
            "language": self.language,
            "task": self.task,
            "dataset": self.dataset,
            "split": self.split,
            "modalities": list(self.modalities),
            "speaker": self.speaker,
            "dialogue": self.dialogue,
            "turn": self.turn,
            "context": [[t.speaker, t.text] for t in self.context],
        }
        return data | ({"label": self.label} if self.label is not None else {"value": self.value})

    @classmethod
    def from_json(cls, data: Mapping[str, Any], arrays: Mapping[str, Any], where: object) -> Sample:
        """The inverse of :meth:`to_json`; ``arrays`` holds the decoded feature members (modality to array).

        Raises:
            ShardError: a field is missing, or the declared modalities and the arrays disagree (``where`` names the
                sample).
        """
        values = {**_OPTIONAL, **data, **_NO_FEATURES, **arrays}
        try:
            fault = _fields_fault(tuple(data))
            values["modalities"] = modalities = tuple(data["modalities"])
            values["context"] = context = tuple(map(_make_turn, data["context"]))
            lists = {*map(type, data["context"])} <= {list}
            types = {*map(type, _STRINGS(values)), *map(type, chain.from_iterable(context))}
            fault = fault or _modalities_fault(modalities)
        except KeyError:
            pass  # a field is missing, and said to be
        except (TypeError, ValueError) as error:
            fault = repr(error)
        else:
            label, value = values["label"], values["value"]
            if not fault and (
                types != {str}
                or not lists
                or type(data["context"]) is not list
                or set(map(len, context)) - {2}
                or type(values["turn"]) is not int
                or (type(label) is not str if value is None else label is not None or type(value) not in _NUMBERS)
            ):
                fault = "a field has the wrong type, or there is not one target"
        if fault:
            raise ShardError(f"{where}: the sample's JSON is malformed ({fault})")
        if len(arrays) != len(modalities) - ("text" in modalities) or not arrays.keys() <= set(modalities):
            declared = sorted(m for m in modalities if m != "text")
            raise ShardError(f"{where}: declares {declared} but carries {sorted(arrays)}")
        # A frozen dataclass sets its fields one by one through object.__setattr__, which costs more than the JSON.
        sample = object.__new__(cls)
        sample.__dict__.update(values)
        return sample
