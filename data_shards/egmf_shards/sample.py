"""One sample: an utterance in its dialogue, one question, its answer, the features of the modalities that are there.

Invariants: absence is declared (``modalities``), never guessed from a missing file; feature arrays have their real
length; the preceding turns travel with the sample, because a shuffled stream never sees neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import NoneType
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


_make_turn = partial(tuple.__new__, Turn)  # as Turn(*pair), without a Python call

FIELDS: dict[str, tuple[type, ...]] = {
    "id": (str,), "text": (str,), "language": (str,), "task": (str,), "dataset": (str,), "split": (str,),
    "modalities": (list,), "context": (list,), "speaker": (str,), "dialogue": (str,), "turn": (int,),
    "label": (str,), "value": (int, float),
}  # fmt: skip
"""The fields of a sample's JSON and their types."""
_OPTIONAL: dict[str, Any] = {"label": None, "value": None, "speaker": "", "dialogue": "", "turn": 0}
NEEDED = tuple(name for name in FIELDS if name not in _OPTIONAL)
_NO_FEATURES = dict.fromkeys(FEATURE_MODALITIES)


# Samples have the same fields and few sets of modalities: what was looked at once is not looked at again.
@lru_cache(maxsize=256)
def _fields_fault(names: tuple[str, ...], types: tuple[type, ...]) -> str:
    """What is wrong with the fields of a sample's JSON, by their names and types; empty where nothing is."""
    lacking = sorted(set(NEEDED) - set(names))
    if lacking:
        return f"lacks {', '.join(lacking)}"
    found = dict(zip(names, types, strict=True))
    odd = sorted(found.keys() - FIELDS.keys())
    if odd:
        return f"has unknown {', '.join(map(repr, odd))}"
    for name, kind in found.items():
        empty = kind is NoneType and name in ("label", "value")
        if kind not in FIELDS[name] and not empty:
            return f"{name} has the wrong type, {kind.__name__}"
    if (found.get("label", NoneType) is NoneType) is (found.get("value", NoneType) is NoneType):
        return "there is not one target: a label or a value"
    return ""


def _lists(data: Mapping[str, Any]) -> tuple[str, tuple[str, ...], tuple[Turn, ...]]:
    """What is wrong with the lists of a sample's JSON, its modalities and its context."""
    turns: list[Turn] = []
    for pair in data["context"]:
        if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not str or type(pair[1]) is not str:
            return "context is a list of [speaker, text]", (), ()
        turns.append(_make_turn(pair))
    modalities = tuple(data["modalities"])
    try:
        return _modalities_fault(modalities), modalities, tuple(turns)
    except TypeError:
        return "modalities is a list of names", (), ()


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
        fault = _fields_fault(tuple(data), tuple(map(type, data.values())))
        if not fault:
            fault, modalities, context = _lists(data)
        if fault:
            raise ShardError(f"{where}: the sample's JSON is malformed ({fault})")
        if len(arrays) != len(modalities) - ("text" in modalities) or not arrays.keys() <= set(modalities):
            declared = sorted(m for m in modalities if m != "text")
            raise ShardError(f"{where}: declares {declared} but carries {sorted(arrays)}")
        # A frozen dataclass sets its fields one by one through object.__setattr__, which costs more than the JSON.
        sample = object.__new__(cls)
        values = {**_OPTIONAL, **data, **_NO_FEATURES, **arrays, "modalities": modalities, "context": context}
        object.__setattr__(sample, "__dict__", values)
        return sample
