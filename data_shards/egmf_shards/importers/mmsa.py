"""MMSA's feature pickles (MOSI, MOSEI, SIMS, SIMS-V2; MMSA-FET writes the same layout) to shards.

What becomes of a file, each rule counted in the manifest's ``source``:

* The text is ``raw_text``; ``audio`` and ``vision`` are stored at their real length (``audio_lengths``,
  ``vision_lengths``; a length beyond the padded array is cut to it). Without lengths (word-aligned files) the rows of
  zeros at the end are padding.
* A number that is not finite in float32 (MOSEI: -inf in audio, NaN in vision) becomes 0. A clip whose rows are then all
  0, or whose length is 0, lacks the modality. Numbers beyond fp16's 65504 (SIMS vision) are kept, because shards hold
  float32, and counted: training in fp16 would overflow on them.
* ``train_mix`` of SIMS-V2 repeats ``train`` and adds unlabelled clips. Beside ``train`` it is left out; alone, its rows
  with ``mask`` 1 are the train split, without text where it has no ``raw_text``. Rows with ``mask`` 0 are never used.
* An id may occur once in the whole file. The context is empty: see ``label_csv.py``, whose ids these are.

Labels per modality (``regression_labels_T``, ``_A``, ``_V``) are read where they are asked for: ``modality_labels.py``.
Not read: ``text``, ``text_bert`` (features of another model), ``annotations`` and ``classification_labels``.
"""

from __future__ import annotations

import os
import re
import reprlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.importers.label_csv import QUESTIONS
from egmf_shards.importers.modality_labels import ModalityLabels
from egmf_shards.importers.provenance import provenance
from egmf_shards.importers.repairs import PaddedReport
from egmf_shards.importers.report import say
from egmf_shards.importers.table import clean_text
from egmf_shards.importers.unpickle import load_pickle
from egmf_shards.progress import progress
from egmf_shards.sample import FEATURE_MODALITIES, MODALITIES, SPLITS, Sample
from egmf_shards.task import REGRESSION, Task
from egmf_shards.writer import ShardWriter

MIX = "train_mix"
DEFAULTS: dict[str, dict[str, Any]] = {
    "mosi": {"language": "en", "low": -3.0, "high": 3.0, "step": 0.2, "convention": "mosei"},
    "mosei": {"language": "en", "low": -3.0, "high": 3.0, "step": 1 / 3, "convention": "mosei"},
    "sims": {"language": "zh", "low": -1.0, "high": 1.0, "step": 0.2, "convention": "sims"},
    "simsv2": {"language": "zh", "low": -1.0, "high": 1.0, "step": 0.2, "convention": "sims"},
}
"""What a known data set's name decides; an argument overrules it."""
PUBLISHED_COUNTS = {
    "mosi": (1284, 229, 686),
    "mosei": (16326, 1871, 4659),
    "sims": (1368, 456, 457),
    "simsv2": (2722, 647, 1034),
}
KNOWN_FILES = {
    "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f": "MOSEI unaligned_50 of MMSA",
    "f8fd9a1dd070588a714ff357b00f31d5bb93277b4e502cf2dc4ff718a95fc49b": "SIMS-V2 ch-simsv2s.pkl",
}
_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_NOT_KEY = re.compile(r"[^A-Za-z0-9_-]")


@dataclass
class _Split:
    """The columns of one split that are read; ``rows`` are the places in the file's arrays that are used."""

    where: str
    rows: Sequence[int]
    ids: list[str]
    texts: list[str] | None
    values: np.ndarray
    features: dict[str, np.ndarray]
    lengths: dict[str, list[int] | None] = field(default_factory=dict)
    modality_values: dict[str, np.ndarray] = field(default_factory=dict)
    """Labels of one modality alone, where they are asked for."""


def import_mmsa(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dataset: str,
    language: str | None = None,
    low: float | None = None,
    high: float | None = None,
    step: float | None = None,
    convention: str | None = None,
    question: str | None = None,
    modality_labels: bool = False,
) -> dict[str, Any]:
    """Write an MMSA pickle as shards of the task ``<dataset>-sentiment`` and return the manifest.

    Args:
        source: the pickle; it is read by :func:`load_pickle`, so nothing of it is executed. out: the folder to make; it
            must not exist. dataset: the data set's name; ``mosi``, ``mosei``, ``sims`` and ``simsv2`` decide all that
            follows (:data:`DEFAULTS`), any other name needs language, low, high, step and convention. language: ``en``
            or ``zh``; any other needs ``question``. low, high: the range of labels. step: the distance between two
            legal answers. convention: the metrics' convention, ``sims`` or ``mosei``. question: the question in words,
            in place of the built-in one. modality_labels: also make samples of the tasks
            ``<dataset>-sentiment-{text,audio,vision}`` (:class:`ModalityLabels`).

    Raises:
        ShardError: the file is no plain pickle or not of this layout, a label is outside the range, an id occurs twice,
            labels per modality are asked for and absent; nothing is left behind.
    """
    task, language = sentiment_task(dataset, language, low, high, step, convention, question)
    alone = ModalityLabels(task) if modality_labels else None
    path = Path(source)
    about = provenance("mmsa", [path])
    described = about["files"][0]
    if described["sha256"] in KNOWN_FILES:
        described["known_as"] = KNOWN_FILES[described["sha256"]]
        print(f"{path.name}: {described['known_as']}", file=sys.stderr)
    data = load_pickle(path)
    if not isinstance(data, dict):
        raise ShardError(f"{path}: holds a {type(data).__name__}; a dict with the splits {', '.join(SPLITS)} is needed")
    reports = {modality: PaddedReport() for modality in FEATURE_MODALITIES}
    seen: dict[str, str] = {}
    clips: Counter[str] = Counter()
    tasks = [task, *(alone.tasks.values() if alone else ())]
    with ShardWriter(out, dataset, tasks, provenance=about) as writer:
        for split, part in _splits(path, data, writer.source, modality_labels):
            for row in progress(part.rows, f"importing {dataset} {split}"):
                clip = part.ids[row]
                where = f"{part.where}, row {row}, id {ascii(clip)[:80]}"
                if clip in seen:
                    raise ShardError(f"{where}: the id occurs in {seen[clip]} already; each id may occur once")
                seen[clip] = split
                sample = _sample(part, row, where, dataset, language, task, clips, split, reports)
                writer.write(sample)
                if alone:
                    for modality, values in part.modality_values.items():
                        name = f"{where}, {_modality_column(modality)}"
                        one = alone.sample(sample, modality, name, value=float(values[row]))
                        if one is not None:
                            writer.write(one)
        if alone:
            writer.source["modality_labels"] = alone.report
        present = {m: r for m, r in reports.items() if r.frames_kept + r.padding_frames_removed}
        writer.source["features"] = {modality: report.to_json() for modality, report in present.items()}
        _compare_counts(dataset, seen, writer.source)
    assert writer.manifest is not None
    say(writer.manifest)
    return writer.manifest


def sentiment_task(
    dataset: str,
    language: str | None,
    low: float | None,
    high: float | None,
    step: float | None,
    convention: str | None,
    question: str | None,
) -> tuple[Task, str]:
    """The task ``<dataset>-sentiment`` and its language, from :data:`DEFAULTS` and what overrules them.

    Raises:
        ShardError: the name is no data set's, or one that is not known and something is left open.
    """
    if not _DATASET.fullmatch(dataset):
        raise ShardError(f"dataset is {dataset!r}; letters, digits, '-' and '_' are needed, such as simsv2")
    given = {"language": language, "low": low, "high": high, "step": step, "convention": convention}
    chosen = DEFAULTS.get(dataset, {}) | {name: value for name, value in given.items() if value is not None}
    lacking = [name for name in given if name not in chosen]
    if lacking:
        raise ShardError(
            f"dataset {dataset!r} is not one of {', '.join(DEFAULTS)}: give its {', '.join(lacking)} as well"
        )
    if question is None:
        if chosen["language"] not in QUESTIONS:
            raise ShardError(
                f"language is {chosen['language']!r}; there is a question in {', '.join(QUESTIONS)} only: "
                "give one in words"
            )
        question = QUESTIONS[chosen["language"]].format(low=f"{chosen['low']:g}", high=f"{chosen['high']:g}")
    task = Task(
        name=f"{dataset}-sentiment",
        kind=REGRESSION,
        questions={chosen["language"]: question},
        convention=chosen["convention"],
        low=chosen["low"],
        high=chosen["high"],
        step=chosen["step"],
    )
    return task, chosen["language"]


def _modality_column(modality: str) -> str:
    return f"regression_labels_{modality[0].upper()}"


def _splits(path: Path, data: dict[Any, Any], source: dict[str, Any], alone: bool) -> list[tuple[str, _Split]]:
    """The splits to write, in our order; notes in ``source`` what is made of ``train_mix`` and other keys."""
    if not any(split in data for split in (*SPLITS, MIX)):
        raise ShardError(f"{path}: its keys are {reprlib.repr(sorted(map(str, data)))}; {', '.join(SPLITS)} are needed")
    lacking = [split for split in SPLITS if split not in data and not (split == "train" and MIX in data)]
    if lacking:
        raise ShardError(f"{path}: has no split {', '.join(lacking)}; {', '.join(SPLITS)} are needed")
    source["keys_not_read"] = sorted(ascii(key)[:40].strip("'") for key in data if key not in (*SPLITS, MIX))
    parts = {split: _read_split(path, split, data[split], alone=alone) for split in SPLITS if split in data}
    if MIX in data:
        mixed, labelled = _read_mix(path, data[MIX], alone and "train" not in parts)
        source[MIX] = {"labelled": len(labelled), "unlabelled_left_out": len(mixed.ids) - len(labelled)}
        if "train" in parts:
            source[MIX] |= {"used": False, "why": "its labelled rows repeat the train split"}
            known = set(parts["train"].ids)
            others = [mixed.ids[row] for row in labelled if mixed.ids[row] not in known]
            if others:
                raise ShardError(
                    f"{path}, {MIX}: {len(others)} labelled clips are not in train, the first is "
                    f"{ascii(others[0])[:80]}; {MIX} must repeat train, or train must be absent"
                )
            del data[MIX]
        else:
            source[MIX] |= {"used": True, "why": "there is no train split"}
            mixed.rows = labelled
            parts["train"] = mixed
    return [(split, parts[split]) for split in SPLITS]


def _read_mix(path: Path, data: Any, alone: bool) -> tuple[_Split, list[int]]:
    """``train_mix`` and its labelled rows."""
    part = _read_split(path, MIX, data, needs_text=False, alone=alone)
    mask = _column(data, "mask", len(part.ids), part.where)
    if any(isinstance(m, str) or m not in (0, 1) for m in mask):
        raise ShardError(f"{part.where}: mask holds more than 0 and 1; 1 (labelled) or 0 is needed for each row")
    return part, [row for row, m in enumerate(mask) if m == 1]


def _read_split(path: Path, split: str, data: Any, needs_text: bool = True, alone: bool = False) -> _Split:
    where = f"{path}, {split}"
    if not isinstance(data, dict):
        raise ShardError(f"{where}: is a {type(data).__name__}; a dict of columns is needed")
    ids = [clip if isinstance(clip, str) else "" for clip in _column(data, "id", None, where)]
    if not all(ids):
        raise ShardError(f"{where}: row {ids.index('')} of id is not text; video_id$_$clip_id is needed")
    texts = None
    if needs_text or "raw_text" in data:
        texts = _column(data, "raw_text", len(ids), where)
        wrong = next((row for row, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            raise ShardError(f"{where}: row {wrong} of raw_text is a {type(texts[wrong]).__name__}; text is needed")
    part = _Split(where, range(len(ids)), ids, texts, _numbers(data, "regression_labels", len(ids), where), {})
    for modality in MODALITIES if alone else ():
        part.modality_values[modality] = _numbers(data, _modality_column(modality), len(ids), where)
    for modality in FEATURE_MODALITIES:
        if modality in data:
            part.features[modality] = _features(data[modality], modality, len(ids), where)
            part.lengths[modality] = _lengths(data, f"{modality}_lengths", len(ids), where)
    return part


def _numbers(data: dict[Any, Any], name: str, count: int, where: str) -> np.ndarray:
    # An unlabelled row may hold anything; what is written is checked against the range.
    return np.array([_number(label) for label in _column(data, name, count, where)], dtype=np.float64)


def _number(label: Any) -> float:
    if isinstance(label, list) and len(label) == 1:  # [N, 1] instead of [N]
        label = label[0]
    return float(label) if isinstance(label, int | float) else float("nan")


def _column(data: dict[Any, Any], name: str, count: int | None, where: str) -> list[Any]:
    """The column as a list of ``count`` plain values, whether the file holds a list, a tuple or an array."""
    if name not in data:
        raise ShardError(f"{where}: has no {name}; it is needed for each row")
    column = data[name]
    if isinstance(column, np.ndarray) and column.ndim:
        column = column.tolist()
    if not isinstance(column, list | tuple):
        raise ShardError(f"{where}: {name} is a {type(column).__name__}; a list or an array is needed")
    if count is not None and len(column) != count:
        raise ShardError(f"{where}: {name} has {len(column)} rows; id has {count}")
    return [item.item() if isinstance(item, np.generic) else item for item in column]


def _features(array: Any, modality: str, count: int, where: str) -> np.ndarray:
    if not (isinstance(array, np.ndarray) and array.ndim == 3 and array.dtype.kind in "fiu" and array.shape[2]):
        form = list(array.shape) if isinstance(array, np.ndarray) else type(array).__name__
        raise ShardError(f"{where}: {modality} is {form}; an array of numbers [clips, frames, dim] is needed")
    if len(array) != count:
        raise ShardError(f"{where}: {modality} has {len(array)} rows; id has {count}")
    return array


def _lengths(data: dict[Any, Any], name: str, count: int, where: str) -> list[int] | None:
    if name not in data:
        return None
    lengths = _column(data, name, count, where)
    for row, length in enumerate(lengths):
        if not isinstance(length, int | float) or length != length or length < 0 or length % 1:
            raise ShardError(f"{where}: row {row} of {name} is {reprlib.repr(length)}; a whole number is needed")
    return [int(length) for length in lengths]


def _sample(
    part: _Split,
    row: int,
    where: str,
    dataset: str,
    language: str,
    task: Task,
    clips: Counter[str],
    split: str,
    reports: dict[str, PaddedReport],
) -> Sample:
    video, _, clip = part.ids[row].rpartition("$_$")
    if not video:
        raise ShardError(f"{where}: the id is not of the form video_id$_$clip_id")
    value = float(part.values[row])
    task.check_target(None, value, where)
    arrays = {}
    for modality, padded in part.features.items():
        lengths = part.lengths[modality]
        arrays[modality] = reports[modality].take(padded[row], None if lengths is None else lengths[row])
    text = "" if part.texts is None else clean_text(part.texts[row])
    clips[video] += 1
    return Sample(
        id=_NOT_KEY.sub("_", f"{dataset}-{video}-{clip}"),
        text=text,
        language=language,
        task=task.name,
        dataset=dataset,
        split=split,
        modalities=(*(("text",) if text else ()), *(m for m, array in arrays.items() if array is not None)),
        value=value,
        dialogue=f"{dataset}-{video}",
        turn=clips[video] - 1,
        audio=arrays.get("audio"),
        vision=arrays.get("vision"),
    )


def _compare_counts(dataset: str, seen: dict[str, str], source: dict[str, Any]) -> None:
    """Note, and say, where a known data set's file is not the published one by its counts."""
    if dataset in PUBLISHED_COUNTS:
        counts = Counter(seen.values())
        published = dict(zip(SPLITS, PUBLISHED_COUNTS[dataset], strict=True))
        source["published_counts"] = published
        source["counts_as_published"] = published == dict(counts)
        if not source["counts_as_published"]:
            told = ", ".join(f"{split} {counts[split]} of {n}" for split, n in published.items())
            print(f"{dataset}: not the published counts: {told}", file=sys.stderr)
