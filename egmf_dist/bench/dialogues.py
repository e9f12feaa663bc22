"""Dialogues of MELD's lengths in generated words.

What a training step costs depends on lengths and shapes alone, so nothing need be fetched. The same settings and seed
give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from egmf_shards import MAX_CONTEXT_TURNS, Sample, ShardWriter, Task, Turn
from egmf_shards.importers.meld import TASK

DATASET = "dialogues"
TURNS = (1, 1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 24)
"""Utterances of a dialogue in MELD's training split: the quantiles of 0, 5, ... 100 %."""
WORDS = (1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 16, 18, 21, 24, 28, 93)
"""Tokens of an utterance there by Gemma 3's tokenizer: the same quantiles."""
AUDIO_DIM, VISION_DIM = 74, 35
"""COVAREP and Facet, as CMU-MOSEI has them."""
FRAMES = (10, 80)
"""Frames of a clip, uniform: one to eight seconds at ten a second."""
NUMBERS = Task(
    "numbers", "regression", {"en": "How positive is the speaker?"}, convention="mosei", low=-3.0, high=3.0, step=0.1
)
"""61 legal numbers."""
_VALIDATION = 8
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
WORDS_SAID = [c + v + d for c in _CONSONANTS for v in _VOWELS for d in _CONSONANTS]
PEOPLE = ["Ada Byron", "Alan Mathison", "Grace Murray", "Kurt Friedrich", "Emmy Amalie", "Claude Elwood"]


def generate(
    samples: int, split: str, frames: tuple[int, int] = FRAMES, seed: int = 0, task: Task = TASK
) -> Iterator[Sample]:
    """``samples`` utterances, dialogue after dialogue; the last one ends where they do."""
    rng = np.random.default_rng([seed, len(split)])
    quantiles = np.linspace(0, 1, len(TURNS))
    made = dialogue = 0
    while made < samples:
        people = rng.permutation(PEOPLE)[:3].tolist()
        turns: list[Turn] = []
        for _ in range(round(float(np.interp(rng.random(), quantiles, TURNS)))):
            if made == samples:
                return
            count = round(float(np.interp(rng.random(), quantiles, WORDS)))
            turn = Turn(str(rng.choice(people)), " ".join(rng.choice(WORDS_SAID, size=count)))
            yield Sample(
                id=f"{split}-{made:06d}",
                text=turn.text,
                language="en",
                task=task.name,
                dataset=DATASET,
                split=split,
                modalities=("text", "audio", "vision"),
                label=str(rng.choice(task.labels)) if task.labels else None,
                value=None if task.labels else float(rng.choice(task.values)),
                speaker=turn.speaker,
                dialogue=f"{split}-{dialogue:05d}",
                turn=len(turns),
                context=tuple(turns[-MAX_CONTEXT_TURNS:]),
                features={
                    name: rng.standard_normal((int(rng.integers(*frames, endpoint=True)), dim), dtype=np.float32)
                    for name, dim in (("audio", AUDIO_DIM), ("vision", VISION_DIM))
                },
            )
            turns.append(turn)
            made += 1
        dialogue += 1


def write_dialogues(folder: Path, samples: int, frames: tuple[int, int] = FRAMES, task: Task = TASK) -> None:
    """``samples`` training utterances, and a few for validation, as shards in a new folder; each stream of a clip has
    from ``frames[0]`` to ``frames[1]`` frames."""
    streams = {"audio": AUDIO_DIM, "vision": VISION_DIM}
    with ShardWriter(folder, DATASET, [task], streams) as writer:
        for split, count in (("train", samples), ("valid", _VALIDATION)):
            for sample in generate(count, split, frames, task=task):
                writer.write(sample)
