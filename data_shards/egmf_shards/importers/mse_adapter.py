"""MSE-Adapter's public feature pickles of MELD and CHERMA to shards: text, padded features and a label per utterance.

``{dataset}_{train,valid,test}.pkl`` hold lists of ``{"label", "features": {"text", "audio", "video", "audio_len",
"video_len"}}``. The files have no ids, speakers or dialogues: ids are made of split and row, the context stays empty
(so MELD from its CSV files is the better source where context matters). Features are stored at their real length
by the rules of ``repairs.py``, which the manifest counts; on which side their padding is, each file says by its zeros
(``padding.py``). They hold no labels per modality.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.format.sample import LABELLED_SPLITS
from egmf_shards.format.task import Task
from egmf_shards.format.text import clean_text
from egmf_shards.importers.cherma import TASK as CHERMA_TASK
from egmf_shards.importers.common import build_sample, done, unwrapped
from egmf_shards.importers.keys import name
from egmf_shards.importers.meld import TASK as MELD_TASK
from egmf_shards.importers.padding import PaddingSide, ask_all, check_side
from egmf_shards.importers.provenance import provenance
from egmf_shards.importers.repairs import PaddedReport, shape_without_axes_of_1, without_axes_of_1
from egmf_shards.importers.streams import STREAMS
from egmf_shards.importers.unpickle import load_pickle
from egmf_shards.messages import shown
from egmf_shards.progress import progress
from egmf_shards.write.writer import ShardWriter

DATASETS = {"meld": (MELD_TASK, "en"), "cherma": (CHERMA_TASK, "zh")}
"""Data set to its task and language."""
_COLUMNS = {"audio": ("audio", "audio_len"), "vision": ("video", "video_len")}


def import_mse_adapter(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dataset: str,
    padding: Literal["front", "end"] | None = None,
) -> dict[str, Any]:
    """Write MSE-Adapter's three pickles of ``meld`` or ``cherma`` as shards and return the manifest.

    Args:
        source: the folder that holds ``{dataset}_train.pkl``, ``_valid.pkl`` and ``_test.pkl``; they are read by
            :func:`load_pickle`, so nothing of them is executed.
        out: the folder to make; it must not exist.
        dataset: ``meld`` or ``cherma``.
        padding: where the padding of every array is, ``front`` or ``end``; not given: each file says it by its zeros.

    Raises:
        ShardError: a file is missing, no plain pickle or not of this layout, a label is outside the label space,
            lengths and zeros contradict each other; nothing is left behind.
    """
    if dataset not in DATASETS:
        raise ShardError(f"dataset is {dataset!r}; MSE-Adapter's files are of {' or '.join(DATASETS)}")
    check_side(padding)
    task, language = DATASETS[dataset]
    reports = {modality: PaddedReport() for modality in _COLUMNS}
    sides: dict[str, dict[str, str]] = {modality: {} for modality in _COLUMNS}
    files = {split: Path(source) / f"{dataset}_{split}.pkl" for split in LABELLED_SPLITS}
    about = provenance("mse-adapter", files.values())  # before any is read: all three must be there
    with ShardWriter(out, dataset, [task], streams=STREAMS, provenance=about) as writer:
        for split, path in files.items():
            rows = load_pickle(path)
            if not isinstance(rows, list) or not rows:
                raise ShardError(f"{path}: holds a {type(rows).__name__}; a list of utterances is needed, not empty")
            utterances = [_utterance(row, f"{path}, row {number}", task) for number, row in enumerate(rows)]
            del rows
            found = _sides(path, utterances, padding, sides)
            for number, (label, text, arrays) in enumerate(progress(utterances, f"importing {dataset} {split}")):
                sample = build_sample(
                    name("", f"{number:05d}", prefix=f"{dataset}-{split}"),
                    text,
                    {m: reports[m].take(*padded, found[m]) for m, padded in arrays.items()},
                    language=language,
                    task=task.name,
                    dataset=dataset,
                    split=split,
                    label=label,
                )
                writer.write(sample, f"{path}, row {number}")
            del utterances, label, text, arrays
        writer.source["features"] = {modality: report.to_json() for modality, report in reports.items()}
        writer.source["padding"] = {modality: described for modality, described in sides.items() if described}
    return done(writer)


_Utterance = tuple[str, str, dict[str, tuple[np.ndarray, int]]]
"""Label, text, and for each modality the padded array and its length."""


def _sides(
    path: Path, utterances: list[_Utterance], given: str | None, described: dict[str, dict[str, str]]
) -> dict[str, str]:
    """For each modality of one file the side of its padding; notes in ``described`` what the manifest says of it."""
    found = {}
    for modality, (column, _) in _COLUMNS.items():
        asked = PaddingSide(f"{path}, {column}", given)
        clips = ((f"row {n}", *arrays[modality]) for n, (_, _, arrays) in enumerate(utterances))
        found[modality] = ask_all(asked, ((clip, without_axes_of_1(array), length) for clip, array, length in clips))
        description = asked.describe()
        if description:
            described[modality][path.name] = description
    return found


def _utterance(row: Any, where: str, task: Task) -> _Utterance:
    features = row.get("features") if isinstance(row, dict) else None
    word = unwrapped(row.get("label")) if isinstance(row, dict) else None
    if not isinstance(features, dict) or not isinstance(word, str):
        raise ShardError(f"{where}: a dict with label (text) and features (a dict) is needed")
    text = unwrapped(features.get("text"))
    if not isinstance(text, str):
        raise ShardError(f"{where}: features has no text; the utterance is needed")
    label = _label(word, task)
    task.check_target(label, None, where)
    arrays = {modality: _padded(features, array, length, where) for modality, (array, length) in _COLUMNS.items()}
    return label, clean_text(text), arrays


def _label(word: str, task: Task) -> str:
    """The label key of a file's word: the key itself in any case, or the answer's word in the task's language."""
    word = clean_text(word).lower()
    for words in task.answers.values():
        if word in words:
            return task.labels[words.index(word)]
    return word[:40]


def _padded(features: dict[Any, Any], column: str, length_column: str, where: str) -> tuple[np.ndarray, int]:
    array, length = features.get(column), unwrapped(features.get(length_column))
    shape = shape_without_axes_of_1(array.shape) if isinstance(array, np.ndarray) else ()
    if not (isinstance(array, np.ndarray) and len(shape) == 2 and array.dtype.kind in "fiu" and shape[1]):
        form = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ShardError(f"{where}: {column} is {form}; an array of numbers [frames, dim] is needed")
    if not isinstance(length, int) or isinstance(length, bool) or length < 0:
        raise ShardError(f"{where}: {length_column} is {shown(length)}; a whole number from 0 is needed")
    return array, length
