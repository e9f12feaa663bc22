"""MELD (Poria et al., 2019) from its three official CSV files: seven emotions in English dialogues, context kept.

Every utterance of ``train_sent_emo.csv``, ``dev_sent_emo.csv`` and ``test_sent_emo.csv`` becomes one sample of the
task ``meld-emotion``; its context is the up to 12 turns before it in ``Utterance_ID`` order (some numbers are absent
in the files). MELD counts its dialogues anew in each split, so ids name the split, and features lie in one folder per
split.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from egmf_shards.errors import ShardError
from egmf_shards.format.sample import MAX_CONTEXT_TURNS, Sample, Turn
from egmf_shards.format.task import CLASSIFICATION, Task
from egmf_shards.format.text import clean_text
from egmf_shards.importers.common import build_sample, done
from egmf_shards.importers.features import FeatureFolder, feature_source, streams_of
from egmf_shards.importers.keys import name as key_name
from egmf_shards.importers.provenance import provenance
from egmf_shards.importers.table import Row, read_csv
from egmf_shards.progress import progress
from egmf_shards.write.writer import ShardWriter

DATASET = "meld"
FILES = {"train": "train", "valid": "dev", "test": "test"}
"""Our split to MELD's name for it."""
COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
LABELS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")

TASK = Task(
    name="meld-emotion",
    kind=CLASSIFICATION,
    questions={
        "en": "Which emotion does the speaker express: neutral, surprise, fear, sadness, joy, disgust or anger?"
    },
    labels=LABELS,
    answers={"en": LABELS},
)


def import_meld(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    audio: str | os.PathLike[str] | None = None,
    vision: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Write MELD as shards and return the manifest.

    Args:
        source: the folder that holds the three ``*_sent_emo.csv``.
        out: the folder to make; it must not exist.
        audio: a folder of features ``{train,dev,test}/dia{D}_utt{U}.npy``, float ``[frames, dim]`` or ``[dim]``;
            optional.
        vision: likewise.

    Raises:
        ShardError: a file or column is missing, a label is outside the label space, an id occurs twice, a feature
            folder holds no clip; nothing is left behind.
    """
    folders = [_feature_folder(audio, "audio"), _feature_folder(vision, "vision")]
    files = {split: Path(source) / f"{name}_sent_emo.csv" for split, name in FILES.items()}
    with ShardWriter(
        out, DATASET, [TASK], streams=streams_of(folders), provenance=provenance("meld", files.values())
    ) as writer:
        for split, name in FILES.items():
            path = files[split]
            dialogues: dict[int, list[tuple[int, Row]]] = {}
            for row in read_csv(path, COLUMNS):
                dialogues.setdefault(row.integer("Dialogue_ID"), []).append((row.integer("Utterance_ID"), row))
            for number in progress(sorted(dialogues), f"importing MELD {name}"):
                turns = sorted(dialogues[number], key=_utterance_number)
                for sample, (_, row) in zip(_dialogue(split, name, number, turns, folders), turns, strict=True):
                    writer.write(sample, row.where)
        writer.source |= feature_source(*folders)
    return done(writer)


def _utterance_number(turn: tuple[int, Row]) -> int:
    return turn[0]


def _feature_folder(path: str | os.PathLike[str] | None, modality: str) -> FeatureFolder:
    folder = FeatureFolder(path, modality)
    if folder.path is not None and not any((folder.path / name).is_dir() for name in FILES.values()):
        raise ShardError(
            f"{folder.path}: has none of the folders {', '.join(FILES.values())}; MELD counts its dialogues "
            f"anew in each split, so features lie in train/dia0_utt0.npy, dev/..., test/..."
        )
    return folder


def _dialogue(
    split: str, name: str, number: int, turns: list[tuple[int, Row]], folders: list[FeatureFolder]
) -> list[Sample]:
    samples: list[Sample] = []
    past: list[Turn] = []
    for utterance, row in turns:
        text, speaker = clean_text(row.cells["Utterance"]), clean_text(row.cells["Speaker"])
        features = {folder.modality: folder.load([f"{name}/dia{number}_utt{utterance}.npy"]) for folder in folders}
        sample = build_sample(
            key_name("", f"dia{number}", f"utt{utterance}", prefix=f"{DATASET}-{name}"),
            text,
            features,
            language="en",
            task=TASK.name,
            dataset=DATASET,
            split=split,
            label=row.cells["Emotion"].strip().lower(),
            speaker=speaker,
            dialogue=f"{name}-dia{number}",
            turn=utterance,
            context=tuple(past[-MAX_CONTEXT_TURNS:]),
        )
        samples.append(sample)
        past.append(Turn(speaker, text))
    return samples
