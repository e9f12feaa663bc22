"""MSE-Adapter's public feature pickles of MELD and CHERMA to shards: text, padded features and a label per utterance.

``{dataset}_{train,valid,test}.pkl`` hold lists of ``{"label", "features": {"text", "audio", "video", "audio_len",
"video_len"}}``. The files have no ids, speakers or dialogues: ids are made of split and row, the context stays empty
(so MELD from its CSV files is the better source where context matters). Features are stored at their real length
by the rules of ``repairs.py``, which the manifest counts. They hold no labels per modality.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.importers.cherma import TASK as CHERMA_TASK
from egmf_shards.importers.meld import TASK as MELD_TASK
from egmf_shards.importers.provenance import provenance
from egmf_shards.importers.repairs import PaddedReport
from egmf_shards.importers.report import say
from egmf_shards.importers.table import clean_text
from egmf_shards.importers.unpickle import load_pickle
from egmf_shards.progress import progress
from egmf_shards.sample import SPLITS, Sample
from egmf_shards.task import Task
from egmf_shards.writer import ShardWriter

DATASETS = {"meld": (MELD_TASK, "en"), "cherma": (CHERMA_TASK, "zh")}
"""Data set to its task and language."""
_COLUMNS = {"audio": ("audio", "audio_len"), "vision": ("video", "video_len")}


def import_mse_adapter(
    source: str | os.PathLike[str], out: str | os.PathLike[str], dataset: str = "meld"
) -> dict[str, Any]:
    """Write MSE-Adapter's three pickles of ``meld`` or ``cherma`` as shards and return the manifest.

    Args:
        source: the folder that holds ``{dataset}_train.pkl``, ``_valid.pkl`` and ``_test.pkl``; they are read by
            :func:`load_pickle`, so nothing of them is executed. out: the folder to make; it must not exist. dataset:
            ``meld`` or ``cherma``.

    Raises:
        ShardError: a file is missing, no plain pickle or not of this layout, a label is outside the label space;
            nothing is left behind.
    """
    if dataset not in DATASETS:
        raise ShardError(f"dataset is {dataset!r}; MSE-Adapter's files are of {' or '.join(DATASETS)}")
    task, language = DATASETS[dataset]
    reports = {modality: PaddedReport() for modality in _COLUMNS}
    files = {split: Path(source) / f"{dataset}_{split}.pkl" for split in SPLITS}
    about = provenance("mse-adapter", files.values())  # before any is read: all three must be there
    with ShardWriter(out, dataset, [task], provenance=about) as writer:
        for split, path in files.items():
            rows = load_pickle(path)
            if not isinstance(rows, list) or not rows:
                raise ShardError(f"{path}: holds a {type(rows).__name__}; a list of utterances is needed, not empty")
            for number, row in enumerate(progress(rows, f"importing {dataset} {split}")):
                writer.write(_sample(row, f"{path}, row {number}", number, dataset, language, task, split, reports))
            del rows, row
        writer.source["features"] = {modality: report.to_json() for modality, report in reports.items()}
    assert writer.manifest is not None
    say(writer.manifest)
    return writer.manifest


def _sample(
    row: Any,
    where: str,
    number: int,
    dataset: str,
    language: str,
    task: Task,
    split: str,
    reports: dict[str, PaddedReport],
) -> Sample:
    features = row.get("features") if isinstance(row, dict) else None
    if not isinstance(features, dict) or not isinstance(row.get("label"), str):
        raise ShardError(f"{where}: a dict with label (text) and features (a dict) is needed")
    if not isinstance(features.get("text"), str):
        raise ShardError(f"{where}: features has no text; the utterance is needed")
    label = _label(row["label"], task)
    task.check_target(label, None, where)
    arrays = {
        modality: reports[modality].take(*_padded(features, array, length, where))
        for modality, (array, length) in _COLUMNS.items()
    }
    text = clean_text(features["text"])
    return Sample(
        id=f"{dataset}-{split}-{number:05d}",
        text=text,
        language=language,
        task=task.name,
        dataset=dataset,
        split=split,
        modalities=(*(("text",) if text else ()), *(m for m, array in arrays.items() if array is not None)),
        label=label,
        audio=arrays["audio"],
        vision=arrays["vision"],
    )


def _label(word: str, task: Task) -> str:
    """The label key of a file's word: the key itself in any case, or the answer's word in the task's language."""
    word = clean_text(word).lower()
    for words in task.answers.values():
        if word in words:
            return task.labels[words.index(word)]
    return word[:40]


def _padded(features: dict[Any, Any], name: str, length_name: str, where: str) -> tuple[np.ndarray, int]:
    array, length = features.get(name), features.get(length_name)
    if not (isinstance(array, np.ndarray) and array.ndim == 2 and array.dtype.kind in "fiu" and array.shape[1]):
        form = list(array.shape) if isinstance(array, np.ndarray) else type(array).__name__
        raise ShardError(f"{where}: {name} is {form}; an array of numbers [frames, dim] is needed")
    if not isinstance(length, int | np.integer) or isinstance(length, bool) or length < 0:
        raise ShardError(f"{where}: {length_name} is a {type(length).__name__}; a whole number from 0 is needed")
    return array, int(length)
