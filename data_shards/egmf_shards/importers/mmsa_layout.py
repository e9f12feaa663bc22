"""MMSA's pickle as columns: which splits there are, which rows of them are used, and what each column must hold.

Labels, lengths, ids and texts may be in lists, tuples or arrays, each item as itself, as text, or in an array or
list of one item (``[N]``, ``[N, 1]``, ``[N, 1, 1]``, 0-d arrays): files of all these kinds are about.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.format.sample import LABELLED_SPLITS, SPLITS, UNLABELLED
from egmf_shards.importers.common import number, unwrapped
from egmf_shards.importers.repairs import shape_without_axes_of_1
from egmf_shards.importers.streams import MODALITIES, STREAMS
from egmf_shards.messages import shown

MIX = "train_mix"
LABELS = "regression_labels"


@dataclass
class Split:
    """The columns of one split that are read; ``rows`` are the places in the file's arrays that are used."""

    where: str
    rows: Sequence[int]
    ids: list[str]
    texts: list[str] | None
    labels: list[Any]
    """Whatever the file holds: a row that is not used may hold anything."""
    features: dict[str, np.ndarray]
    lengths: dict[str, list[int] | None] = field(default_factory=dict)
    modality_labels: dict[str, list[Any]] = field(default_factory=dict)
    """Labels of one modality alone, where they are asked for."""

    def length(self, modality: str, row: int) -> int | None:
        """The frames that the file gives a clip; None where it gives none."""
        lengths = self.lengths.get(modality)
        return None if lengths is None else lengths[row]


def modality_column(modality: str) -> str:
    """The column of labels that were given to ``modality`` alone."""
    return f"{LABELS}_{modality[0].upper()}"


def read_splits(path: Path, data: dict[Any, Any], source: dict[str, Any], alone: bool) -> list[tuple[str, Split]]:
    """The splits to write, in our order; notes in ``source`` what is made of ``train_mix`` and other keys."""
    if not any(split in data for split in (*LABELLED_SPLITS, MIX)):
        raise ShardError(
            f"{path}: its keys are {reprlib.repr(sorted(map(str, data)))}; {', '.join(LABELLED_SPLITS)} are needed"
        )
    lacking = [split for split in LABELLED_SPLITS if split not in data and not (split == "train" and MIX in data)]
    if lacking:
        raise ShardError(f"{path}: has no split {', '.join(lacking)}; {', '.join(LABELLED_SPLITS)} are needed")
    source["keys_not_read"] = sorted(ascii(key)[:40].strip("'") for key in data if key not in (*LABELLED_SPLITS, MIX))
    parts = {split: _read_split(path, split, data[split], alone=alone) for split in LABELLED_SPLITS if split in data}
    if MIX in data:
        mixed, labelled = _read_mix(path, data[MIX], alone and "train" not in parts)
        known = set(labelled)
        unlabelled = [row for row in range(len(mixed.ids)) if row not in known]
        source[MIX] = {"labelled": len(labelled), "unlabelled": len(unlabelled)}
        if "train" in parts:
            source[MIX] |= {"used": "unlabelled", "why": "its labelled rows repeat the train split"}
            repeated = set(parts["train"].ids)
            others = [mixed.ids[row] for row in labelled if mixed.ids[row] not in repeated]
            if others:
                raise ShardError(
                    f"{path}, {MIX}: {len(others)} labelled clips are not in train, the first is "
                    f"{ascii(others[0])[:80]}; {MIX} must repeat train, or train must be absent"
                )
        else:
            source[MIX] |= {"used": "all", "why": "there is no train split"}
            parts["train"] = replace(mixed, rows=labelled)
        if unlabelled:
            parts[UNLABELLED] = replace(mixed, rows=unlabelled)
    return [(split, parts[split]) for split in SPLITS if split in parts]


def _read_mix(path: Path, data: Any, alone: bool) -> tuple[Split, list[int]]:
    """``train_mix`` and its labelled rows."""
    part = _read_split(path, MIX, data, needs_text=False, alone=alone)
    mask = _column(data, "mask", len(part.ids), part.where)
    if any(number(m) not in (0, 1) for m in mask):
        raise ShardError(f"{part.where}: mask holds more than 0 and 1; 1 (labelled) or 0 is needed for each row")
    return part, [row for row, m in enumerate(mask) if number(m) == 1]


def _read_split(path: Path, split: str, data: Any, needs_text: bool = True, alone: bool = False) -> Split:
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
    part = Split(where, range(len(ids)), ids, texts, _column(data, LABELS, len(ids), where), {})
    for modality in MODALITIES if alone else ():
        part.modality_labels[modality] = _column(data, modality_column(modality), len(ids), where)
    for modality in STREAMS:
        if modality in data:
            part.features[modality] = _features(data[modality], modality, len(ids), where)
            part.lengths[modality] = _lengths(data, f"{modality}_lengths", len(ids), where)
    return part


def _column(data: dict[Any, Any], name: str, count: int | None, where: str) -> list[Any]:
    """The column as a list of ``count`` plain values, whatever the file holds it in."""
    if name not in data:
        raise ShardError(f"{where}: has no {name}; it is needed for each row")
    column = data[name]
    if isinstance(column, np.ndarray) and column.ndim:
        column = list(column)
    if not isinstance(column, list | tuple):
        raise ShardError(f"{where}: {name} is a {type(column).__name__}; a list or an array is needed")
    if count is not None and len(column) != count:
        raise ShardError(f"{where}: {name} has {len(column)} rows; id has {count}")
    return [unwrapped(item) for item in column]


def _features(array: Any, modality: str, count: int, where: str) -> np.ndarray:
    shape = shape_without_axes_of_1(array.shape[1:]) if isinstance(array, np.ndarray) and array.ndim > 2 else ()
    if not (isinstance(array, np.ndarray) and len(shape) == 2 and array.dtype.kind in "fiu" and shape[1]):
        form = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ShardError(f"{where}: {modality} is {form}; an array of numbers [clips, frames, dim] is needed")
    if len(array) != count:
        raise ShardError(f"{where}: {modality} has {len(array)} rows; id has {count}")
    return array


def _lengths(data: dict[Any, Any], name: str, count: int, where: str) -> list[int] | None:
    if name not in data:
        return None
    lengths = _column(data, name, count, where)
    found = []
    for row, length in enumerate(lengths):
        value = number(length)
        if value is None or not 0 <= value < 1 << 53 or value % 1:
            raise ShardError(f"{where}: row {row} of {name} is {shown(length)}; a whole number is needed")
        found.append(int(value))
    return found
