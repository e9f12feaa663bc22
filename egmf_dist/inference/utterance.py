"""What a person asks about, and what is answered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from egmf_dist.errors import EgmfError
from egmf_dist.metrics.calibration import Calibration
from egmf_shards import CLASSIFICATION, MAX_CONTEXT_TURNS, Sample, Task, Turn
from egmf_shards.format.text import clean_text
from egmf_shards.messages import unbroken

_HALF = re.compile(r"[\ud800-\udfff]")
_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")


@dataclass
class Utterance:
    """What was said, and what was heard and seen with it."""

    text: str = ""
    speaker: str = ""
    context: Sequence[str | tuple[str, str]] = ()
    """The preceding turns, oldest first: ``(speaker, text)``, or the text alone."""
    features: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """By feature stream an array ``[frames, dim]`` or the path of such a ``.npy`` file; a stream that is not there is
    absent, never zeros."""
    language: str | None = None
    """``en``, ``zh``, ...; None: told from the script, where the model knows more than one."""
    id: str = ""
    clip: str | Path | None = None
    """A recording of it: streams that ``features`` lacks are extracted as they were for training."""
    turn: int | None = None
    """Its place in its dialogue, from 0; None: ``context`` is all that was said before."""


@dataclass(frozen=True)
class Answer:
    """The answer to one question about one utterance."""

    id: str
    task: str
    language: str
    answer: str
    """The likeliest legal answer, in words."""
    probabilities: Mapping[str, float] = field(repr=False)
    """Of every legal answer; under the temperature that was fitted on validation, where it is ``calibrated``."""
    label: str | None = None
    """A class: its key, whatever the language."""
    value: float | None = None
    """A number: its expected value, along the line that was fitted on validation where it is ``calibrated``."""
    interval: tuple[float, float] | None = None
    """A number: what holds four fifths of the truth on validation; not ``calibrated``, of the model's probability."""
    calibrated: bool = False
    """Whether the model has a calibration of this task."""
    absent: tuple[str, ...] = ()
    """Modalities of the model that the utterance does not have."""
    diagnostics: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)
    """What the fusion says of itself, such as the gate's weights by expert and by modality."""
    why_absent: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Of a clip: by stream why it could not be had."""
    made_by: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Of a clip: by stream the specification of what extracted it, the model's own."""
    prompt_tokens_cut: int = 0
    """How many tokens of the prompt were left out to keep within the model's limit."""

    @property
    def probability(self) -> float:
        """Of the likeliest answer."""
        return self.probabilities[self.answer]


def as_utterance(given: str | Mapping[str, Any] | Utterance, number: int) -> Utterance:
    """An utterance out of its text, of a mapping of :class:`Utterance`'s fields, or of itself.

    Raises:
        EgmfError: it is none of them, or has a field that there is not.
    """
    if isinstance(given, str):
        given = Utterance(given)
    elif isinstance(given, Mapping):
        known = Utterance.__dataclass_fields__
        odd = [name for name in given if name not in known]
        if odd:
            raise EgmfError(f"utterance {number}: has no field {odd[0]!r}; it may have {', '.join(known)}")
        given = Utterance(**given)
    elif not isinstance(given, Utterance):
        raise EgmfError(
            f"utterance {number}: is a {type(given).__name__}; give a text, a mapping with text, speaker, context, "
            "features, or an Utterance"
        )
    fault = _fault(given)
    if fault:
        raise EgmfError(f"utterance {given.id or number}: {fault}")
    return given


def _fault(given: Utterance) -> str:
    """What is wrong with the kinds of its fields; empty for nothing."""
    for name in ("text", "speaker", "id"):
        if not isinstance(getattr(given, name), str):
            return f"its {name} is a {type(getattr(given, name)).__name__}; a string is needed"
    if not isinstance(given.language, str | None):
        return f"its language is a {type(given.language).__name__}; a string such as 'en', or None, is needed"
    if not isinstance(given.turn, int | None) or (given.turn or 0) < 0:
        return f"its turn is {given.turn!r}; a whole number from 0, or None, is needed"
    if not isinstance(given.features, Mapping):
        return f"its features are a {type(given.features).__name__}; a mapping of streams to arrays is needed"
    if isinstance(given.context, str) or not isinstance(given.context, Sequence):
        return "its context is no list of turns; (speaker, text), or the text alone, is a turn"
    if not isinstance(given.clip, str | Path | None):
        return f"its clip is a {type(given.clip).__name__}; the path of a recording is needed"
    texts = [given.text, given.speaker, given.id]
    for turn in given.context:
        parts = [turn] if isinstance(turn, str) else turn
        if (
            not isinstance(parts, list | tuple)
            or not 1 <= len(parts) <= 2
            or not all(isinstance(p, str) for p in parts)
        ):
            return f"its context holds {turn!r}; (speaker, text), or the text alone, is a turn"
        texts += parts
    if any(_HALF.search(text) for text in texts):
        return "holds half a character (a lone surrogate), which no text in UTF-8 can"
    if not given.text.strip() and not given.features and given.clip is None:
        return "has neither text nor features: nothing to answer from"
    return ""


def as_samples(
    utterance: Utterance, number: int, tasks: Mapping[str, Task], languages: Sequence[str], streams: Mapping[str, Any]
) -> list[Sample]:
    """One sample for each question.

    Args:
        utterance: what was said.
        number: its place, which names it where it has no id.
        tasks: the questions.
        languages: the model's.
        streams: the model's feature streams and their widths.

    Raises:
        EgmfError: its language is not the model's, or a feature array is none or cannot be used; names the utterance.
    """
    name = utterance.id or str(number)
    where = f"utterance {name}"
    language = utterance.language or _language(utterance.text, languages)
    asked = {key: task for key, task in tasks.items() if language in task.languages}
    if not asked:
        raise EgmfError(f"{where}: no task is asked in {language!r}; the model knows {', '.join(languages)}")
    features = {stream: _array(array, f"{where}: {stream}") for stream, array in utterance.features.items()}
    odd = [stream for stream in features if stream not in streams]
    if odd:
        known = ", ".join(streams) or "no feature stream"
        raise EgmfError(f"{where}: the model has no stream {odd[0]!r}; it has {known}")
    for stream, array in features.items():
        if array.shape[1] not in streams[stream]:
            wanted = " or ".join(map(str, streams[stream]))
            raise EgmfError(f"{where}: {stream} is {array.shape[1]} wide; this model's is {wanted}")
    turns = [("", turn) if isinstance(turn, str) else ("", *turn)[-2:] for turn in utterance.context]
    context = [Turn(speaker, clean_text(said)) for speaker, said in turns]
    text = clean_text(utterance.text)
    present = ("text",) if text else ()
    return [
        Sample(
            id=name,
            text=text,
            language=language,
            task=key,
            dataset="",
            split="",
            modalities=(*present, *features),
            speaker=utterance.speaker,
            turn=len(context) if utterance.turn is None else utterance.turn,
            context=tuple(context[-MAX_CONTEXT_TURNS:]),
            features=features,
        )
        for key in asked
    ]


def _language(text: str, languages: Sequence[str]) -> str:
    """Chinese where there are Chinese characters and the model knows it; else the first other one."""
    if "zh" in languages and (_HAN.search(text) or len(languages) == 1):
        return "zh"
    return next((language for language in languages if language != "zh"), languages[0])


def _array(given: Any, where: str) -> np.ndarray:
    if isinstance(given, str | Path):
        try:
            given, path = np.load(given, allow_pickle=False), given
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise EgmfError(f"{where}: {given} cannot be read: {unbroken(str(error))}") from error
        if not isinstance(given, np.ndarray):
            raise EgmfError(f"{where}: {path} holds several arrays; one .npy file is needed")
    try:
        array = np.asarray(given, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise EgmfError(f"{where}: is no array of numbers") from error
    if array.ndim != 2 or 0 in array.shape:
        raise EgmfError(f"{where}: has the shape {list(array.shape)}; [frames, dim] is needed, at least one of each")
    if not np.isfinite(array).all():
        raise EgmfError(f"{where}: holds numbers that are not finite; leave the stream out where there is none")
    return array


def answer_of(
    row: Mapping[str, Any],
    sample: Sample,
    task: Task,
    modalities: Sequence[str],
    calibration: Calibration | None = None,
) -> Answer:
    """A prediction as a person's answer.

    Args:
        row: of :func:`egmf_dist.inference.predictions.predictions`.
        sample: that was scored.
        task: its question.
        modalities: the model's.
        calibration: what was fitted of the task on validation; None: numbers are as the model states them.
    """
    p = row["probabilities"]
    if not np.isfinite(p).all():
        raise EgmfError(f"utterance {sample.id}: its scores are not finite: the model has diverged")
    words = task.legal_answers(sample.language)
    number = task.kind != CLASSIFICATION
    known = calibration or Calibration()
    low, high = known.intervals(task, p).tolist() if number else (0.0, 0.0)
    return Answer(
        id=sample.id,
        task=sample.task,
        language=sample.language,
        answer=row["answer"],
        probabilities=dict(zip(words, known.probabilities(p).tolist(), strict=True)),
        label=None if number else row["predicted"],
        value=float(known.values(task, p)) if number else None,
        interval=(low, high) if number else None,
        calibrated=calibration is not None,
        absent=tuple(m for m in modalities if m not in sample.modalities),
        why_absent=getattr(sample, "why_absent", {}),
        made_by=getattr(sample, "made_by", {}),
        diagnostics=row.get("gates", {}),
        prompt_tokens_cut=row.get("prompt_tokens_cut", 0),
    )
