"""``egmf predict --explain DIR``: a picture and a line of JSON for each utterance that was answered."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from egmf_dist.errors import EgmfError
from egmf_dist.files import write_json_lines
from egmf_dist.inference.model import Model
from egmf_shards import Sample
from egmf_shards.messages import unbroken

_LONGEST = 80
"""Characters of a file's name that are an id's."""


class ExplanationFolder:
    """A folder of explanations, written one utterance at a time.

    ``ID.json`` is one line: the answers by task. ``ID.png`` is the picture of the only answer; of several each has its
    own, ``ID.TASK.png``. What was stopped and goes on writes the same files again.

    Args:
        path: the folder; it is made when something is written.
        begun: an earlier start has written to it.

    Raises:
        EgmfError: it is no folder, or holds something that was not begun here.
    """

    def __init__(self, path: Path, begun: bool) -> None:
        self.path = path
        self._shared: set[str] = set()
        if path.exists() and not path.is_dir():
            raise EgmfError(f"--explain {path}: is no folder; a picture and a file are written for each utterance")
        if path.is_dir() and not begun and any(path.iterdir()):
            raise EgmfError(f"--explain {path}: it is not empty; name another folder, or remove it first")

    def expect(self, names: Sequence[Any]) -> None:
        """These ids will be written now by all ranks together: nobody takes the plain name of one that occurs twice."""
        self._shared = {name for name, times in Counter(map(str, names)).items() if times > 1}

    def write(self, model: Model, name: Any, samples: Sequence[Sample]) -> dict[str, str]:
        """Explain every answer to one utterance.

        Returns:
            Nothing, or why there is no explanation as ``error``: the other utterances are not touched by it.

        Raises:
            EgmfError: the folder cannot be written.
        """
        try:
            found = {sample.task: model.explain_sample(sample) for sample in samples}
        except (EgmfError, torch.OutOfMemoryError) as error:
            return {"error": f"answered, but not explained: {unbroken(str(error))}"}
        made_of = _digest(samples[0])
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = self._name(str(name), made_of)
            for task, explanation in found.items():
                end = "png" if len(found) == 1 else f"{safe(task)}.png"
                explanation.plot(self.path / f"{file}.{end}")
            # Last, so that where it is everything is.
            answers = {task: explanation.to_json() for task, explanation in found.items()}
            line = {"id": name, "sha256": made_of, "explanations": answers}
            write_json_lines(self.path / f"{file}.json", [line])
        except OSError as error:
            raise EgmfError(f"--explain {self.path}: cannot be written: {error.strerror}") from error
        return {}

    def _name(self, name: str, made_of: str) -> str:
        """A name of files for an id; utterances of the same id have a part of their own hash behind it."""
        file, own = safe(name), f"{safe(name)}-{made_of[:8]}"
        there = self.path / f"{file}.json"
        if name in self._shared or (self.path / f"{own}.json").exists():
            return own
        if there.exists() and json.loads(there.read_text(encoding="utf-8"))["sha256"] != made_of:
            return own
        return file


def safe(name: str) -> str:
    """A file's name out of an id: letters of any script, digits, ``-`` and ``_``; where that changes it, a part of the
    id's hash behind it tells it from others."""
    kept = re.sub(r"[^\w-]+", "_", name)[:_LONGEST]
    # Characters of other scripts take up to four bytes, and a name has 255.
    while len(kept.encode()) > 2 * _LONGEST:
        kept = kept[:-1]
    return kept if kept and kept == name else f"{kept}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _digest(sample: Sample) -> str:
    """What an utterance is told by from another of the same id."""
    digest = hashlib.sha256(repr((sample.text, sample.speaker, sample.language, sample.context)).encode())
    for stream, frames in sorted(sample.features.items()):
        digest.update(f"{stream} {frames.shape}".encode() + frames.tobytes())
    return digest.hexdigest()
