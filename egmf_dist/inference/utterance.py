"""What a person asks about, and what is answered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from egmf_dist.errors import EgmfError
from egmf_dist.metrics.calibration import Calibration
from egmf_shards import CLASSIFICATION, MAX_CONTEXT_TURNS, Sample, Task, Turn
from egmf_shards.format.text import clean_text
from egmf_shards.importers.features import layout_fault, read_array
from egmf_shards.importers.repairs import Repairs, shape_without_axes_of_1
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
    """By feature stream an array ``[frames, dim]``, or ``[dim]`` for one frame, or the path of such a ``.npy`` file,
    read as for training: one of nothing but zeros is absent. So is a stream that is not there."""
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
    """By stream that was given, or was to come out of a clip, why it could not be had."""
    repaired: Mapping[str, str] = field(default_factory=dict, repr=False)
    """By stream what was done to its numbers, as for training."""
    made_by: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Of a clip: by stream the specification of what extracted it, the model's own."""
    prompt_tokens_cut: int = 0
    """How many tokens of the prompt were left out to keep within the model's limit."""

    @property
    def probability(self) -> float:
        """Of the likeliest answer."""
        return self.probabilities[self.answer]


@dataclass(frozen=True)
class NotedSample(Sample):
    """A sample with what is to be said about its features; see :class:`Answer`."""

    why_absent: Mapping[str, str] = field(default_factory=dict)
    made_by: Mapping[str, str] = field(default_factory=dict)
    repaired: Mapping[str, str] = field(default_factory=dict)


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
    """One sample for each question; its features as training has them.

    Args:
        utterance: what was said.
        number: its place, which names it where it has no id.
        tasks: the questions.
        languages: the model's.
        streams: the model's feature streams and their widths.

    Raises:
        EgmfError: its language is not the model's, a feature array is none or cannot be used, or there is nothing to
            answer from; names the utterance.
    """
    name = utterance.id or str(number)
    where = f"utterance {name}"
    language = language_of(utterance, languages)
    asked = {key: task for key, task in tasks.items() if language in task.languages}
    if not asked:
        raise EgmfError(f"{where}: no task is asked in {language!r}; the model knows {', '.join(languages)}")
    odd = [stream for stream in utterance.features if stream not in streams]
    if odd:
        known = ", ".join(streams) or "no feature stream"
        raise EgmfError(f"{where}: the model has no stream {odd[0]!r}; it has {known}")
    features: dict[str, np.ndarray] = {}
    why_absent: dict[str, str] = {}
    repaired: dict[str, str] = {}
    for stream, given in utterance.features.items():
        read = _read(given, f"{where}: {stream}")
        repairs = Repairs()
        array = repairs.whole(read)
        width = shape_without_axes_of_1(read.shape)[-1]
        if width not in streams[stream]:
            wanted = " or ".join(map(str, streams[stream]))
            raise EgmfError(f"{where}: {stream} is {width} wide; this model's is {wanted}")
        if repairs.numbers_not_finite_set_to_0:
            repaired[stream] = f"numbers that were not finite set to 0: {repairs.numbers_not_finite_set_to_0}"
        if array is None:
            said = f" ({repaired.pop(stream)})" if stream in repaired else ""
            why_absent[stream] = f"nothing but zeros{said}"
        else:
            features[stream] = array
    turns = [("", turn) if isinstance(turn, str) else ("", *turn)[-2:] for turn in utterance.context]
    context = [Turn(speaker, clean_text(said)) for speaker, said in turns]
    text = clean_text(utterance.text)
    present = ("text",) if text else ()
    if not present and not features:
        said = "; ".join(f"{stream}: {reason}" for stream, reason in why_absent.items())
        raise EgmfError(f"{where}: nothing to answer from: {said or 'no features'}; and no words are given")
    return [
        NotedSample(
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
            why_absent=why_absent,
            repaired=repaired,
        )
        for key in asked
    ]


def language_of(utterance: Utterance, languages: Sequence[str]) -> str:
    """Its own, or where it has none Chinese where there are Chinese characters and the model knows it; else the first
    other one of the model's ``languages``."""
    if utterance.language:
        return utterance.language
    if "zh" in languages and (_HAN.search(utterance.text) or len(languages) == 1):
        return "zh"
    return next((language for language in languages if language != "zh"), languages[0])


def _read(given: Any, where: str) -> np.ndarray:
    """Real numbers of any type ``[frames, dim]`` or ``[dim]``, axes of 1 aside, as the importers take them."""
    if isinstance(given, str | Path):
        read = read_array(Path(given))
        if isinstance(read, str):
            raise EgmfError(f"{where}: {unbroken(f'{given}: {read}')}")
        return read
    try:
        array = np.asarray(given)
    # What is no array says so in the way of its own type, a tensor on a GPU by TypeError, one with a gradient by
    # RuntimeError, and so on.
    except Exception as error:
        raise EgmfError(f"{where}: is no array of numbers ({type(error).__name__})") from error
    fault = layout_fault(array.dtype, array.shape)
    if fault:
        raise EgmfError(f"{where}: is {fault}")
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
        repaired=getattr(sample, "repaired", {}),
        diagnostics=row.get("gates", {}),
        prompt_tokens_cut=row.get("prompt_tokens_cut", 0),
    )
