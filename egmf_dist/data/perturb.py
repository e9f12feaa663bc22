"""Samples as a worse recording would give them: frames, words and streams lost, noise, context that is not there.

What is drawn follows from a seed, the sample's name and what is done to it, and from nothing else: not from ranks,
batches, loader processes or what was drawn before.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from egmf_dist.config import DataConfig
from egmf_dist.data.words import words
from egmf_shards import TEXT, Sample


def drawn_from(seed: int, *names: str | int) -> np.random.Generator:
    """Random numbers of their own for a seed and some names."""
    keys = [name if isinstance(name, int) else zlib.crc32(name.encode()) for name in names]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *keys])))


def drop_frames(sample: Sample, stream: str, rate: float, rng: np.random.Generator) -> Sample:
    """Each frame of a stream is lost with probability ``rate``; those that are left close up. One is always left."""
    frames = sample.features.get(stream)
    if frames is None or rate <= 0:
        return sample
    kept = rng.random(len(frames)) >= rate
    kept[int(rng.integers(len(frames)))] |= not kept.any()
    return replace(sample, features={**sample.features, stream: frames[kept]})


def drop_words(sample: Sample, rate: float, rng: np.random.Generator) -> Sample:
    """Each word of the utterance (each Chinese character) is lost with probability ``rate``; one is always left."""
    said = words(sample.text)
    if not said or rate <= 0:
        return sample
    kept = rng.random(len(said)) >= rate
    kept[int(rng.integers(len(said)))] |= not kept.any()
    # What stood before a word goes with it.
    starts = [0, *(end for _, end in said[:-1])]
    text = "".join(sample.text[start:end] for start, (_, end), keep in zip(starts, said, kept, strict=True) if keep)
    return replace(sample, text=text.strip())


def add_noise(
    sample: Sample, stream: str, decibels: float, rng: np.random.Generator, std: np.ndarray | None = None
) -> Sample:
    """White noise on a stream, whose power in each dimension is that dimension's own over 10 ** (decibels / 10).

    Extractors write magnitudes of 1e4 beside 1e-3: noise of one deviation for all would be nothing in some dimensions
    and everything in others.

    Args:
        sample: left as it is where it lacks the stream.
        stream: its name.
        decibels: signal to noise.
        rng: draws it.
        std: float64 ``[dim]``, each dimension's deviation over the training split; None: over this sample's frames,
            which says nothing of a sample with one frame.
    """
    frames = sample.features.get(stream)
    if frames is None:
        return sample
    own = frames.astype(np.float64).std(0) if std is None else std
    noisy = frames + rng.normal(size=frames.shape) * own * 10 ** (-decibels / 20)
    return replace(sample, features={**sample.features, stream: noisy.astype(np.float32)})


def without_context(sample: Sample) -> Sample:
    """No preceding turn is known."""
    return replace(sample, context=(), turn=0)


def shuffle_context(sample: Sample, rng: np.random.Generator) -> Sample:
    """The preceding turns in random order."""
    return replace(sample, context=tuple(sample.context[i] for i in rng.permutation(len(sample.context))))


def with_stream_of(sample: Sample, other: Sample, stream: str) -> Sample:
    """The sample with another one's text or feature stream in place of its own."""
    if stream == TEXT:
        return replace(sample, text=other.text)
    return replace(sample, features={**sample.features, stream: other.features[stream]})


@dataclass(frozen=True)
class Augmentation:
    """What is lost of a training sample, drawn anew each time it comes round.

    Rates are uniform between 0 and the setting, for each sample and stream.
    """

    seed: int
    frames: float
    """``data.drop_frames``"""
    words: float
    """``data.drop_words``"""
    stream: float
    """``data.drop_stream``"""

    @classmethod
    def of(cls, config: DataConfig, seed: int) -> Augmentation | None:
        """As the settings say; None where they ask for nothing."""
        made = cls(seed, config.drop_frames, config.drop_words, config.drop_stream)
        return made if made.frames or made.words or made.stream else None

    def __call__(self, sample: Sample, position: int) -> Sample:
        """The sample at a position of the stream."""
        rng = drawn_from(self.seed, "augmentation", position)
        if self.stream and len(sample.modalities) > 1:
            lost = [m for m in sample.modalities if rng.random() < self.stream]
            spared = sample.modalities[int(rng.integers(len(sample.modalities)))]
            for modality in lost:
                if modality != spared:  # a sample keeps one
                    sample = sample.without(modality)
        for stream in sorted(sample.features):
            sample = drop_frames(sample, stream, rng.random() * self.frames, rng)
        return drop_words(sample, rng.random() * self.words, rng)


def exchanged(truth: Sequence[str] | Sequence[float], rng: np.random.Generator) -> list[int | None]:
    """For each of some samples another one with another truth, each at most once; None where there is none left.

    A number's partner is half of all samples away in their order, so that the two truths are far apart: whose of two
    near ones an answer is nearer to says nothing.

    Args:
        truth: of the samples: classes, or numbers.
        rng: draws who goes with whom.
    """
    # Sorted by truth and turned by the size of the largest group, nobody meets his own group, unless that has more than
    # half of all.
    by_truth = sorted(rng.permutation(len(truth)).tolist(), key=truth.__getitem__)
    turn = max(Counter(truth).values(), default=0)
    if truth and not isinstance(truth[0], str):
        turn = max(turn, len(truth) // 2)
    partner: list[int | None] = [None] * len(truth)
    for place, i in enumerate(by_truth):
        other = by_truth[(place + turn) % len(truth)]
        if truth[other] != truth[i]:
            partner[i] = other
    return partner
