"""CH-SIMS's ``label.csv`` and tables of its shape (SIMS-V2, MOSI, MOSEI in that form): one sentiment number per clip.

Needed columns: ``video_id, clip_id, text, label, mode``. Others (``annotation``, per-modality labels) are not read.
The context is left empty on purpose: the clips of a video are not contiguous (numbers are left out where a clip was
not chosen) and carry no speaker, so the rows before a clip are not the turns before it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import Any

from egmf_shards.errors import ShardError
from egmf_shards.importers.features import FeatureFolder, feature_source
from egmf_shards.importers.provenance import provenance
from egmf_shards.importers.report import say
from egmf_shards.importers.table import Row, clean_text, read_csv
from egmf_shards.progress import progress
from egmf_shards.sample import Sample
from egmf_shards.task import REGRESSION, Task
from egmf_shards.writer import ShardWriter

COLUMNS = ("video_id", "clip_id", "text", "label", "mode")
MODES = {"train": "train", "valid": "valid", "val": "valid", "dev": "valid", "test": "test"}
"""What a table calls a split, to our name for it."""
QUESTIONS = {
    "en": "How does the speaker feel, on a scale from {low} (negative) to {high} (positive)?",
    "zh": "说话人的情感是多少，从{low}（消极）到{high}（积极）？",
}
_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_NOT_KEY = re.compile(r"[^A-Za-z0-9_-]")


def import_label_csv(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dataset: str,
    language: str,
    audio: str | os.PathLike[str] | None = None,
    vision: str | os.PathLike[str] | None = None,
    low: float = -1.0,
    high: float = 1.0,
    step: float = 0.2,
    convention: str = "sims",
    question: str | None = None,
) -> dict[str, Any]:
    """Write a ``label.csv`` as shards of the task ``<dataset>-sentiment`` and return the manifest.

    Args:
        source: the CSV file.
        out: the folder to make; it must not exist.
        dataset: the data set's name: letters, digits, ``-`` and ``_``.
        language: ``en`` or ``zh``; any other needs ``question``.
        audio: a folder of features, float ``[frames, dim]`` or ``[dim]``, named ``{video_id}/{clip_id}.npy``,
            ``{video_id}_{clip_id}.npy`` or ``{video_id}$_${clip_id}.npy``; optional.
        vision: likewise.
        low: the smallest legal label.
        high: the largest legal label.
        step: the distance between two legal answers.
        convention: the metrics' convention, ``sims`` or ``mosei``.
        question: the question in words, in place of the built-in one.

    Raises:
        ShardError: a column is missing, a label is no number or outside the range (named with its sample), a mode is
            unknown, an id occurs twice, a feature folder holds no clip; nothing is left behind.
    """
    if not _DATASET.fullmatch(dataset):
        raise ShardError(f"dataset is {dataset!r}; letters, digits, '-' and '_' are needed, such as simsv2")
    if question is None:
        if language not in QUESTIONS:
            raise ShardError(
                f"language is {language!r}; there is a question in {', '.join(QUESTIONS)} only: give one in words"
            )
        question = QUESTIONS[language].format(low=f"{low:g}", high=f"{high:g}")
    task = Task(
        name=f"{dataset}-sentiment",
        kind=REGRESSION,
        questions={language: question},
        convention=convention,
        low=low,
        high=high,
        step=step,
    )
    folders = [FeatureFolder(audio, "audio"), FeatureFolder(vision, "vision")]
    rows = read_csv(source, COLUMNS)
    clips: Counter[str] = Counter()
    with ShardWriter(out, dataset, [task], provenance=provenance("label-csv", [source])) as writer:
        for row in progress(rows, f"importing {dataset}"):
            video = row.cells["video_id"].strip()
            writer.write(_sample(row, dataset, language, task, clips[video], folders))
            clips[video] += 1
        writer.source["features"] = feature_source(*folders)
    assert writer.manifest is not None
    say(writer.manifest)
    return writer.manifest


def _sample(row: Row, dataset: str, language: str, task: Task, turn: int, folders: list[FeatureFolder]) -> Sample:
    video, clip = row.cells["video_id"].strip(), row.cells["clip_id"].strip()
    if not video or not clip:
        raise ShardError(f"{row.where}: video_id is {video!r} and clip_id is {clip!r}; both are needed")
    key = _NOT_KEY.sub("_", f"{dataset}-{video}-{clip}")
    mode = row.cells["mode"].strip().lower()
    if mode not in MODES:
        raise ShardError(f"{row.where}: sample {key!r}: mode is {mode!r}; it must be one of {', '.join(MODES)}")
    try:
        value = float(row.cells["label"])
    except ValueError as error:
        raise ShardError(f"{row.where}: sample {key!r}: label is {row.cells['label']!r}; a number is needed") from error
    text = clean_text(row.cells["text"])
    names = [f"{video}/{clip}.npy", f"{video}_{clip}.npy", f"{video}$_${clip}.npy"]
    features = {folder.modality: folder.load(names) for folder in folders}
    return Sample(
        id=key,
        text=text,
        language=language,
        task=task.name,
        dataset=dataset,
        split=MODES[mode],
        modalities=(*(("text",) if text else ()), *(m for m, array in features.items() if array is not None)),
        value=value,
        dialogue=f"{dataset}-{video}",
        turn=turn,
        audio=features["audio"],
        vision=features["vision"],
    )
