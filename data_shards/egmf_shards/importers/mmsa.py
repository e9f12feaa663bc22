"""MMSA's feature pickles (MOSI, MOSEI, SIMS, SIMS-V2; MMSA-FET writes the same layout) to shards.

What becomes of a file, each rule counted in the manifest's ``source``:

* The text is ``raw_text``; ``audio`` and ``vision`` are stored at their real length (``audio_lengths``,
  ``vision_lengths``; a length beyond the padded array is cut to it). Without lengths (word-aligned files) the rows of
  zeros on the padded side are padding. Which side that is each modality says by its zeros: ``padding.py``.
* A clip whose length is 0 lacks the modality; what else becomes of its numbers (MOSEI: -inf in audio, NaN in vision;
  SIMS: vision beyond fp16) is said in ``repairs.py``.
* ``train_mix`` of SIMS-V2 repeats ``train`` and adds unlabelled clips, its rows with ``mask`` 0: the split
  ``unlabelled``. Rows with ``mask`` 1 are left out beside ``train`` and are the train split where there is none. There
  is no text where it has no ``raw_text``.
* An id may occur once in the whole file. The context is empty: see ``label_csv.py``, whose ids these
  are.

Labels per modality (``regression_labels_T``, ``_A``, ``_V``) are read where they are asked for: ``modality_labels.py``.
Not read: ``text``, ``text_bert`` (features of another model), ``annotations`` and ``classification_labels``.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal, Unpack

from egmf_shards.errors import ShardError
from egmf_shards.format.sample import LABELLED_SPLITS, UNLABELLED
from egmf_shards.format.text import clean_text
from egmf_shards.importers.common import done, not_a_number, number
from egmf_shards.importers.keys import clip_name
from egmf_shards.importers.mmsa_layout import LABELS, Split, modality_column, read_splits
from egmf_shards.importers.modality_labels import ModalityLabels
from egmf_shards.importers.padding import PaddingSide, ask_all, check_side
from egmf_shards.importers.provenance import provenance
from egmf_shards.importers.repairs import PaddedReport, without_axes_of_1
from egmf_shards.importers.sentiment import Clips, TaskOptions, check_value, sentiment_task
from egmf_shards.importers.streams import STREAMS
from egmf_shards.importers.unpickle import load_pickle
from egmf_shards.progress import progress
from egmf_shards.write.writer import ShardWriter

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


def import_mmsa(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dataset: str,
    language: str | None = None,
    modality_labels: bool = False,
    padding: Literal["front", "end"] | None = None,
    **options: Unpack[TaskOptions],
) -> dict[str, Any]:
    """Write an MMSA pickle as shards of the task ``<dataset>-sentiment`` and return the manifest.

    Args:
        source: the pickle; it is read by :func:`load_pickle`, so nothing of it is executed.
        out: the folder to make; it must not exist.
        dataset: the data set's name; ``mosi``, ``mosei``, ``sims`` and ``simsv2`` decide language, range, step and
            convention, any other name needs them.
        language: ``en`` or ``zh``; any other needs ``question``.
        modality_labels: also make samples of the tasks ``<dataset>-sentiment-{text,audio,vision}``
            (:class:`ModalityLabels`).
        padding: where the padding of the arrays is, ``front`` or ``end``; not given: the file says it by its zeros.
        options: see :class:`TaskOptions`.

    Raises:
        ShardError: the file is no plain pickle or not of this layout, a label is no number or outside the range, an id
            occurs twice, lengths and zeros contradict each other, labels per modality are asked for and absent; nothing
            is left behind.
    """
    corpus = Clips(dataset, *sentiment_task(dataset, language, options))
    check_side(padding)
    alone = ModalityLabels(corpus.task) if modality_labels else None
    path = Path(source)
    about = provenance("mmsa", [path])
    described = about["files"][0]
    if described["sha256"] in KNOWN_FILES:
        described["known_as"] = KNOWN_FILES[described["sha256"]]
        print(f"{path.name}: {described['known_as']}", file=sys.stderr)
    data = load_pickle(path)
    if not isinstance(data, dict):
        raise ShardError(
            f"{path}: holds a {type(data).__name__}; a dict with the splits {', '.join(LABELLED_SPLITS)} is needed"
        )
    seen: dict[str, str] = {}
    turns: Counter[str] = Counter()
    tasks = [corpus.task, *(alone.tasks.values() if alone else ())]
    with ShardWriter(out, dataset, tasks, streams=STREAMS, provenance=about) as writer:
        parts = read_splits(path, data, writer.source, modality_labels)
        features = _Features(path, parts, padding)
        for split, part in parts:
            for row in progress(part.rows, f"importing {dataset} {split}"):
                clip = part.ids[row]
                where = f"{part.where}, row {row}, id {ascii(clip)[:80]}"
                if clip in seen:
                    raise ShardError(f"{where}: the id occurs in {seen[clip]} already; each id may occur once")
                seen[clip] = split
                video, _, in_video = clip.rpartition("$_$")
                value = None if split == UNLABELLED else _value(part.labels[row], where, LABELS)
                if value is not None:
                    check_value(corpus.task, value, where)
                if not video:
                    raise ShardError(f"{where}: the id is not of the form video_id$_$clip_id")
                sample = corpus.sample(
                    clip_name(dataset, video, in_video),
                    video,
                    "" if part.texts is None else clean_text(part.texts[row]),
                    features.take(part, row),
                    split=split,
                    turn=turns[video],
                    value=value,
                )
                turns[video] += 1
                writer.write(sample, where)
                if alone and split != UNLABELLED:
                    for modality, labels in part.modality_labels.items():
                        column = modality_column(modality)
                        # Clips without such a label hold NaN or nothing.
                        own = None if labels[row] is None else _value(labels[row], where, column)
                        one = alone.sample(sample, modality, f"{where}, {column}", value=own)
                        if one is not None:
                            writer.write(one, f"{where}, {column}")
        if alone:
            writer.source["modality_labels"] = alone.report
        writer.source |= features.to_json()
        _compare_counts(dataset, seen, writer.source)
    return done(writer)


class _Features:
    """The padded arrays of every modality that the file has, and what became of them."""

    def __init__(self, path: Path, parts: list[tuple[str, Split]], padding: str | None) -> None:
        self._path = path
        self._reports: dict[str, PaddedReport] = {}
        self._asked: dict[str, PaddingSide] = {}
        self._sides: dict[str, str] = {}
        for modality in STREAMS:
            having = [part for _, part in parts if modality in part.features]
            if having:
                self._reports[modality] = PaddedReport()
                self._asked[modality] = PaddingSide(f"{path}, {modality}", padding)
                clips = (
                    (f"{part.where.rpartition(', ')[2]}, row {row}", without_axes_of_1(part.features[modality][row]), n)
                    for part in having
                    for row in part.rows
                    for n in [part.length(modality, row)]
                )
                self._sides[modality] = ask_all(self._asked[modality], clips)

    def take(self, part: Split, row: int) -> dict[str, Any]:
        """Modality to float32 ``[frames, dim]`` of one clip, or None."""
        return {
            modality: self._reports[modality].take(padded[row], part.length(modality, row), self._sides[modality])
            for modality, padded in part.features.items()
        }

    def to_json(self) -> dict[str, Any]:
        """What the manifest's ``source`` says: ``features`` and ``padding``."""
        sides = {modality: asked.describe() for modality, asked in self._asked.items()}
        return {
            "features": {modality: report.to_json() for modality, report in self._reports.items()},
            "padding": {modality: {self._path.name: side} for modality, side in sides.items() if side},
        }


def _value(label: Any, where: str, column: str) -> float:
    value = number(label)
    if value is None:
        raise not_a_number(where, column, label)
    return value


def _compare_counts(dataset: str, seen: dict[str, str], source: dict[str, Any]) -> None:
    """Note, and say, where a known data set's file is not the published one by its counts."""
    if dataset in PUBLISHED_COUNTS:
        counts = Counter(seen.values())
        published = dict(zip(LABELLED_SPLITS, PUBLISHED_COUNTS[dataset], strict=True))
        source["published_counts"] = published
        source["counts_as_published"] = all(counts[split] == n for split, n in published.items())
        if not source["counts_as_published"]:
            found = ", ".join(f"{split} {counts[split]} of {n}" for split, n in published.items())
            print(f"{dataset}: not the published counts: {found}", file=sys.stderr)
