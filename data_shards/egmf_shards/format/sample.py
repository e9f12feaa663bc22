"""One sample: an utterance in its dialogue, one question, its answer, the features of the modalities that are there.

Invariants: absence is declared (``modalities``), never guessed from a missing file; feature arrays have their real
length; the preceding turns travel with the sample, because a shuffled stream never sees neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.format import rules
from egmf_shards.format.rules import LABELLED_SPLITS, MAX_CONTEXT_TURNS, SPLITS, TEXT, UNLABELLED

__all__ = ["LABELLED_SPLITS", "MAX_CONTEXT_TURNS", "SPLITS", "TEXT", "UNLABELLED", "Sample", "Turn"]


class Turn(NamedTuple):
    """One preceding turn of the dialogue."""

    speaker: str
    text: str


_make_turn = partial(tuple.__new__, Turn)  # as Turn(*pair), without a Python call


@dataclass(frozen=True, eq=False)
class Sample:
    """One utterance with one task's target, or with none: what is to be predicted, or learned from without labels."""

    id: str
    """Unique over the data set; letters, digits, ``-`` and ``_`` only: it is the WebDataset key."""
    text: str
    """The utterance; empty where the text is absent."""
    language: str
    task: str
    dataset: str
    split: str
    modalities: tuple[str, ...]
    """Which are present: ``text`` and names of feature streams."""
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
    features: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    """By feature stream that is present float32 ``[frames, dim]``."""
    source_id: str = ""
    """The id as the data set's own files write it; empty where ``id`` holds it letter for letter."""

    @property
    def has_target(self) -> bool:
        """Whether there is a label or a value."""
        return self.label is not None or self.value is not None

    def without(self, modality: str) -> Sample:
        """The same sample with one modality absent: text becomes the empty utterance, a stream's features go."""
        return replace(
            self,
            modalities=tuple(m for m in self.modalities if m != modality),
            text="" if modality == TEXT else self.text,
            features={m: array for m, array in self.features.items() if m != modality},
        )

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
        optional = {"source_id": self.source_id or None, "label": self.label, "value": self.value}
        return data | {name: value for name, value in optional.items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], arrays: Mapping[str, np.ndarray], where: object) -> Sample:
        """The inverse of :meth:`to_json`; ``arrays`` holds the decoded feature members (stream to array).

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
        values = {**rules.OPTIONAL, **data, "features": arrays, "modalities": modalities, "context": context}
        object.__setattr__(sample, "__dict__", values)
        return sample
