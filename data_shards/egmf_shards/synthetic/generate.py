"""``egmf shards synth``: bilingual dialogues with cues in words and feature streams, and the ceilings they allow.

:mod:`egmf_shards.synthetic.construction` says what is drawn, :mod:`egmf_shards.synthetic.ceilings` what it allows.
Every utterance gives two samples, ``demo-000123-emotion`` and ``demo-000123-sentiment``. Each dialogue is drawn from
its own random stream (seed, split, dialogue), lies in one split, is in one language, and begins with an opening line
(turn 0) that is context and no sample. The same arguments give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.format.sample import LABELLED_SPLITS, Sample, Turn
from egmf_shards.progress import progress
from egmf_shards.synthetic import construction as c
from egmf_shards.synthetic.ceilings import compute_ceilings
from egmf_shards.write.writer import ShardWriter

DATASET = "demo"
SMALLEST = 30
_SHORTEST, _LONGEST = 2, 3


def synthesize(
    out: str | os.PathLike[str],
    seed: int = 0,
    samples: int = 4000,
    missing: float = 0.03,
    noise: float = 0.01,
    streams: str = "audio,vision",
    zeros: float = 0.0,
) -> dict[str, Any]:
    """Generate a folder of shards and return its manifest.

    Args:
        out: the folder to make; it must not exist.
        seed: chooses everything that is drawn, from 0.
        samples: utterances over all splits, 80 / 10 / 10; each gives one emotion and one sentiment sample.
        missing: the rate at which each modality is missing.
        noise: the rate at which a cue contradicts its emotion.
        streams: the feature streams, with commas between; each carries a cue of its own. Names other than ``audio`` and
            ``vision`` (``eda``, ``gaze``, ...) are made up for.
        zeros: the rate of utterances whose words take their sentiment to exactly 0, beside those whose cues cancel out
            (9 %): with 0.14 it is 0 in 22 % of all, as in CMU-MOSEI.

    Raises:
        ShardError: an argument is out of range, or ``out`` exists.
    """
    if samples < SMALLEST:
        raise ShardError(
            f"samples is {samples}; at least {SMALLEST} utterances are needed for three splits of whole dialogues"
        )
    for name, value, top in (("missing", missing, 1.0), ("noise", noise, 0.5), ("zeros", zeros, 1.0)):
        if not 0.0 <= value < top:
            raise ShardError(f"{name} is {value}; it must be at least 0 and below {top:g}")
    if seed < 0:
        raise ShardError(f"seed is {seed}; it must be at least 0")
    cues = c.Cues(tuple(name.strip() for name in streams.split(",") if name.strip()))
    source: dict[str, Any] = {
        "generator": "egmf shards synth", "seed": seed, "samples": samples, "missing": missing, "noise": noise,
    }  # fmt: skip
    if cues != c.STANDARD:
        source["streams"] = list(cues.streams)
    if zeros:
        source["zeros"] = zeros
    with ShardWriter(
        out,
        DATASET,
        [c.EMOTION, c.SENTIMENT],
        streams={name: c.signal(name).directions.shape[1] for name in cues.streams},
        provenance=source,
        ceilings=compute_ceilings(missing, noise, cues, zeros),
    ) as writer:
        pairs = _utterances(seed, samples, Settings(cues, missing, noise, zeros))
        for pair in progress(pairs, "generating utterances", total=samples):
            for sample in pair:
                writer.write(sample)
    return writer.manifest


def split_sizes(samples: int) -> dict[str, int]:
    """Utterances per split: a tenth each to ``valid`` and ``test``, the rest to ``train``."""
    tenth = round(samples / 10)
    return {"train": samples - 2 * tenth, "valid": tenth, "test": tenth}


def dialogue_lengths(utterances: int, rng: np.random.Generator) -> list[int]:
    """Lengths of 2 and 3 that sum to ``utterances`` (at least 2)."""
    lengths = []
    while utterances > _LONGEST:
        # At most what leaves enough for one more dialogue.
        length = min(int(rng.integers(_SHORTEST, _LONGEST + 1)), utterances - _SHORTEST)
        lengths.append(length)
        utterances -= length
    return [*lengths, utterances]


class Settings(NamedTuple):
    """How utterances are drawn."""

    cues: c.Cues
    missing: float
    noise: float
    zeros: float = 0.0


def _utterances(seed: int, samples: int, settings: Settings) -> Iterator[tuple[Sample, Sample]]:
    number = 0
    for s, (split, count) in enumerate(split_sizes(samples).items()):
        assert split == LABELLED_SPLITS[s]
        for d, length in enumerate(dialogue_lengths(count, np.random.default_rng([seed, s, 0]))):
            rng = np.random.default_rng([seed, s, d + 1])  # 0 drew the lengths
            for pair in _dialogue(rng, f"{split}-{d:05d}", split, length, number, settings):
                yield pair
                number += 1


@dataclass(frozen=True)
class _Drawn:
    """One utterance as the construction draws it."""

    emotion: int
    bits: np.ndarray
    levels: np.ndarray
    modalities: tuple[str, ...]
    calm: bool

    @property
    def sentiment(self) -> float:
        return 0.0 if self.calm else float(c.sentiment(self.bits, self.levels))


def _draw(rng: np.random.Generator, mood: int, settings: Settings) -> _Drawn:
    names = settings.cues.names
    emotion = int(rng.choice(len(c.LABELS), p=c.emotion_prior()[mood]))
    bits = settings.cues.code[emotion] ^ (rng.random(len(names)) < settings.cues.flips(settings.noise))
    levels = rng.integers(0, 3, size=len(names))
    absent = rng.random(len(names)) < settings.missing
    modalities = names if absent.all() else tuple(m for m, gone in zip(names, absent, strict=True) if not gone)
    # Nothing is drawn for it where there are none: the same arguments give the same bytes as before there were any.
    calm = settings.zeros > 0 and rng.random() < settings.zeros
    return _Drawn(emotion, bits, levels, modalities, calm)


def _dialogue(
    rng: np.random.Generator, name: str, split: str, length: int, number: int, settings: Settings
) -> Iterator[tuple[Sample, Sample]]:
    language = c.LANGUAGES[int(rng.integers(2))]
    mood = int(rng.integers(2))
    speakers = c.SPEAKERS[language]
    opening = _sentence(rng, language, c.MOOD_WORDS[language][mood], int(rng.integers(3, 5)), int(rng.integers(2, 5)))
    context = [Turn(speakers[0], opening)]
    for turn in range(1, length + 1):
        drawn = _draw(rng, mood, settings)
        words = c.BIT_WORDS[language][int(drawn.bits[0])]
        calm = c.CALM_WORDS[language] if drawn.calm else ()
        text = _sentence(rng, language, words, int(c.CUE_WORDS[drawn.levels[0]]), int(rng.integers(3, 7)), calm)
        # All of them, so that what is missing does not change what is drawn after it.
        features = {
            stream: _frames(rng, c.signal(stream), int(drawn.bits[i]), float(c.GAINS[drawn.levels[i]]))
            for i, stream in enumerate(settings.cues.names[1:], 1)
        }
        text = text if "text" in drawn.modalities else ""
        common: dict[str, Any] = {
            "text": text,
            "language": language,
            "dataset": DATASET,
            "split": split,
            "modalities": drawn.modalities,
            "speaker": speakers[turn % 2],
            "dialogue": name,
            "turn": turn,
            "context": tuple(context),
            "features": {stream: array for stream, array in features.items() if stream in drawn.modalities},
        }
        key = f"{DATASET}-{number + turn - 1:06d}"
        yield (
            Sample(id=f"{key}-emotion", task="emotion", label=c.LABELS[drawn.emotion], **common),
            Sample(id=f"{key}-sentiment", task="sentiment", value=drawn.sentiment, **common),
        )
        context.append(Turn(speakers[turn % 2], text))


def _sentence(
    rng: np.random.Generator, language: str, cues: tuple[str, ...], count: int, fillers: int, calm: tuple[str, ...] = ()
) -> str:
    """``fillers`` filler words with ``count`` of the ``cues`` (drawn with repetition) at random places among them, and
    one of ``calm`` where there are any."""
    words = [str(w) for w in rng.choice(c.FILLER_WORDS[language], size=fillers)]
    for word in [*rng.choice(cues, size=count), *(rng.choice(calm, size=1) if calm else ())]:
        words.insert(int(rng.integers(len(words) + 1)), str(word))
    return ("" if language == "zh" else " ").join(words)


def _frames(rng: np.random.Generator, signal: c.Signal, bit: int, gain: float) -> np.ndarray:
    """float32 ``[frames, dim]``: noise, with the bit's direction added to a burst of consecutive frames somewhere."""
    frames = int(rng.integers(*signal.lengths))
    array = rng.normal(scale=c.FRAME_NOISE, size=(frames, signal.directions.shape[1]))
    start = int(rng.integers(0, frames - signal.burst + 1))
    array[start : start + signal.burst] += signal.directions[bit] * gain
    return array.astype(np.float32)
