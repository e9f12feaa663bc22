"""One sample: an utterance in its dialogue, one question, its answer, the features of the modalities that are there.

Invariants: absence is declared (``modalities``), never guessed from a missing file; feature arrays have their real
length; the preceding turns travel with the sample, because a shuffled stream never sees neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.format import rules
from egmf_shards.format.rules import FEATURE_MODALITIES, MAX_CONTEXT_TURNS, MODALITIES, SPLITS

__all__ = ["FEATURE_MODALITIES", "MAX_CONTEXT_TURNS", "MODALITIES", "SPLITS", "Sample", "Turn"]


class Turn(NamedTuple):
    """One preceding turn of the dialogue."""

    speaker: str
    text: str


_make_turn = partial(tuple.__new__, Turn)  # as Turn(*pair), without a Python call
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
    source_id: str = ""
    """The id as the data set's own files write it; empty where ``id`` holds it letter for letter."""

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
        if self.source_id:
            data["source_id"] = self.source_id
        return data | ({"label": self.label} if self.label is not None else {"value": self.value})

    @classmethod
    def from_json(cls, data: Mapping[str, Any], arrays: Mapping[str, Any], where: object) -> Sample:
        """The inverse of :meth:`to_json`; ``arrays`` holds the decoded feature members (modality to array).

        Raises:
            ShardError: a field is missing, or the declared modalities and the arrays disagree (``where`` names the
                sample).
        """
        faults = rules.field_faults(tuple(data), tuple(map(type, data.values())))
        modalities = () if faults else tuple(data["modalities"])
        fault = faults[0] if faults else rules.lists_fault(data["context"], modalities)
        if fault:
            raise ShardError(f"{where}: the sample's JSON is malformed ({fault})")
        context = tuple(map(_make_turn, data["context"]))
        fault = rules.presence_fault(modalities, arrays.keys())
        if fault:
            raise ShardError(f"{where}: {fault}")
        # A frozen dataclass sets its fields one by one through object.__setattr__, which costs more than the JSON.
        sample = object.__new__(cls)
        values = {**rules.OPTIONAL, **data, **_NO_FEATURES, **arrays, "modalities": modalities, "context": context}
        object.__setattr__(sample, "__dict__", values)
        return sample
