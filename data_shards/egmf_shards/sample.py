"""One sample: an utterance in its dialogue, one question, its answer, the features of the modalities that are there.

Invariants: absence is declared (``modalities``), never guessed from a missing file; feature arrays have their real
length; the preceding turns travel with the sample, because a shuffled stream never sees neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from egmf_shards.errors import ShardError

MODALITIES = ("text", "audio", "vision")
FEATURE_MODALITIES = ("audio", "vision")
SPLITS = ("train", "valid", "test")
MAX_CONTEXT_TURNS = 12


@dataclass(frozen=True)
class Turn:
    """One preceding turn of the dialogue."""

    speaker: str
    text: str


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
    def from_json(cls, data: Mapping[str, Any], arrays: Mapping[str, Any], where: str) -> Sample:
        """The inverse of :meth:`to_json`; ``arrays`` holds the decoded feature members (modality to array).

        Raises:
            ShardError: a field is missing, or the declared modalities and the arrays disagree (``where`` names the
                sample).
        """
        try:
            modalities = tuple(data["modalities"])
            context = tuple(Turn(speaker, text) for speaker, text in data["context"])
            sample = cls(
                **{k: v for k, v in data.items() if k not in ("modalities", "context")},
                modalities=modalities,
                context=context,
                **arrays,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{where}: the sample's JSON is malformed ({error!r})") from error
        declared = {m for m in modalities if m in FEATURE_MODALITIES}
        if declared != set(arrays):
            raise ShardError(f"{where}: declares {sorted(declared)} but carries {sorted(arrays)}")
        return sample
