"""One sample: an utterance in its dialogue, one question, its answer, the features of the modalities that are there.

Invariants: absence is declared (``modalities``), never guessed from a missing file; feature arrays have their real
length; the preceding turns travel with the sample, because a shuffled stream never sees neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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


_NEEDED = frozenset({"id", "text", "language", "task", "dataset", "split", "modalities", "context"})
_OPTIONAL: dict[str, Any] = {"label": None, "value": None, "speaker": "", "dialogue": "", "turn": 0}
_KNOWN = _NEEDED | _OPTIONAL.keys()
_STRINGS = itemgetter("id", "text", "language", "task", "dataset", "split", "speaker", "dialogue")
_NO_FEATURES = dict.fromkeys(FEATURE_MODALITIES)


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
        if not _NEEDED <= data.keys() <= _KNOWN:
            odd = ", ".join(sorted(_NEEDED - data.keys()) or map(repr, sorted(data.keys() - _KNOWN)))
            raise ShardError(
                f"{where}: the sample's JSON is malformed ({'lacks' if _NEEDED - data.keys() else 'has unknown'} {odd})"
            )
        values = {**_OPTIONAL, **data, **_NO_FEATURES, **arrays}
        try:
            values["modalities"] = tuple(data["modalities"])
            values["context"] = tuple([Turn(speaker, text) for speaker, text in data["context"]])
            strings = set(map(type, _STRINGS(values)))
        except (TypeError, ValueError) as error:
            raise ShardError(f"{where}: the sample's JSON is malformed ({error!r})") from error
        label, value = values["label"], values["value"]
        if strings != {str} or type(values["turn"]) is not int or (label is None) is (value is None):
            raise ShardError(f"{where}: the sample's JSON is malformed (a field has the wrong type, or no target)")
        declared = {m for m in values["modalities"] if m in FEATURE_MODALITIES}
        if declared != arrays.keys():
            raise ShardError(f"{where}: declares {sorted(declared)} but carries {sorted(arrays)}")
        # A frozen dataclass sets its fields one by one through object.__setattr__, which costs more than the JSON.
        sample = object.__new__(cls)
        sample.__dict__.update(values)
        return sample
