"""Samples to read: this project's schema, features of ragged length, the same for every reader.

The same count, size and seed give the same bytes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egmf_shards import Sample, ShardWriter, Task, Turn
from egmf_shards.format.index import load_index

DATASET = "bench"
TASK = Task(
    name="sentiment",
    kind="regression",
    questions={"en": "How negative or positive is the speaker?"},
    convention="mosei",
    low=-3.0,
    high=3.0,
    step=0.2,
)
# Lengths are uniform from 50 % to 150 % of the mean.
SHORTEST, LONGEST = 0.5, 1.5
_TEXT = (
    "well I really think this movie was not as good people said but the music made me feel happy again and then we "
    "left before it ended because nobody wanted to stay"
)
_WORDS = _TEXT.split()


@dataclass(frozen=True)
class Size:
    """How large the samples of one measurement are."""

    name: str
    audio_frames: int
    """Mean number of frames."""
    audio_dim: int
    vision_frames: int
    vision_dim: int


# COVAREP is 74 wide and Facet 35, as in CMU-MOSI; the large sample has a wider vision.
SMALL = Size("27 KB", audio_frames=60, audio_dim=74, vision_frames=60, vision_dim=35)
LARGE = Size("300 KB", audio_frames=500, audio_dim=74, vision_frames=360, vision_dim=105)


def generate(size: Size, count: int, seed: int = 0) -> Iterator[Sample]:
    """``count`` training samples."""
    rng = np.random.default_rng([seed, size.audio_frames])
    for i in range(count):
        context = tuple(Turn(f"speaker {rng.integers(4)}", _sentence(rng)) for _ in range(rng.integers(0, 9)))
        yield Sample(
            id=f"{DATASET}-{i:06d}",
            text=_sentence(rng),
            language="en",
            task=TASK.name,
            dataset=DATASET,
            split="train",
            modalities=("text", "audio", "vision"),
            value=float(rng.choice(TASK.values)),
            speaker=f"speaker {rng.integers(4)}",
            dialogue=f"dialogue-{i // 10:05d}",
            turn=len(context),
            context=context,
            features={
                "audio": _features(rng, size.audio_frames, size.audio_dim),
                "vision": _features(rng, size.vision_frames, size.vision_dim),
            },
        )


def _sentence(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(_WORDS, size=rng.integers(4, 18)))


def _features(rng: np.random.Generator, mean: int, dim: int) -> np.ndarray:
    frames = int(rng.integers(round(SHORTEST * mean), round(LONGEST * mean) + 1))
    return rng.standard_normal((frames, dim), dtype=np.float32)


def write(size: Size, count: int, folder: Path, samples_per_shard: int) -> float:
    """Generate ``count`` samples into a new folder: ``shards/``, and ``truth.json``, which every pass is checked with.

    The truth is each id's JSON and the CRC32 of audio's, then vision's float32 bytes.

    Returns:
        The mean bytes of a sample's members.
    """
    truth = {}
    with ShardWriter(folder / "shards", DATASET, [TASK], samples_per_shard=samples_per_shard) as writer:
        for sample in generate(size, count):
            writer.write(sample)
            crc = zlib.crc32(sample.features["vision"].tobytes(), zlib.crc32(sample.features["audio"].tobytes()))
            truth[sample.id] = {"crc": crc, "facts": sample.to_json()}
    (folder / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    return float(load_index(folder / "shards").member_size.sum()) / count
