"""CH-SIMS's ``label.csv`` and tables of its shape (SIMS-V2, MOSI, MOSEI in that form): one sentiment number per clip.

Needed columns: ``video_id, clip_id, text, label, mode``; the label of a clip of mode ``unlabelled`` is not read. Others
(``annotation``, per-modality labels) are not read.
The context is left empty on purpose: the clips of a video are not contiguous (numbers are left out where a clip was
not chosen) and carry no speaker, so the rows before a clip are not the turns before it.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any, Unpack

from egmf_shards.errors import ShardError
from egmf_shards.format.sample import UNLABELLED, Sample
from egmf_shards.format.text import clean_text
from egmf_shards.importers.common import done, not_a_number, number, split_of
from egmf_shards.importers.features import FeatureFolder, feature_source, streams_of
from egmf_shards.importers.keys import clip_name
from egmf_shards.importers.provenance import provenance
from egmf_shards.importers.sentiment import KNOWN, Clips, TaskOptions, check_value, sentiment_task
from egmf_shards.importers.table import Row, read_csv
from egmf_shards.progress import progress
from egmf_shards.write.writer import ShardWriter

COLUMNS = ("video_id", "clip_id", "text", "label", "mode")
_OTHERWISE = {name: value for name, value in KNOWN["sims"].items() if name != "language"}
"""A table of another data set is taken for one of CH-SIMS's kind."""


def import_label_csv(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dataset: str,
    language: str | None = None,
    audio: str | os.PathLike[str] | None = None,
    vision: str | os.PathLike[str] | None = None,
    **options: Unpack[TaskOptions],
) -> dict[str, Any]:
    """Write a ``label.csv`` as shards of the task ``<dataset>-sentiment`` and return the manifest.

    Args:
        source: the CSV file.
        out: the folder to make; it must not exist.
        dataset: the data set's name: letters, digits, ``-`` and ``_``. ``mosi``, ``mosei``, ``sims`` and ``simsv2``
            decide all that follows; any other needs a language, and is as SIMS is where nothing else is said.
        language: ``en`` or ``zh``; any other needs ``question``.
        audio: a folder of features, float ``[frames, dim]`` or ``[dim]``, named ``{video_id}/{clip_id}.npy``,
            ``{video_id}_{clip_id}.npy`` or ``{video_id}$_${clip_id}.npy``; optional.
        vision: likewise.
        options: see :class:`TaskOptions`.

    Raises:
        ShardError: a column is missing, a row has too many cells, a label is no number or outside the range (named with
            file and line), a mode is unknown, an id occurs twice, a feature folder holds no clip or none that can be
            read; nothing is left behind.
    """
    corpus = Clips(dataset, *sentiment_task(dataset, language, options, _OTHERWISE))
    folders = [FeatureFolder(audio, "audio"), FeatureFolder(vision, "vision")]
    about = provenance("label-csv", [source])
    rows = read_csv(source, COLUMNS)
    turns: Counter[str] = Counter()
    with ShardWriter(out, dataset, [corpus.task], streams=streams_of(folders), provenance=about) as writer:
        for row in progress(rows, f"importing {dataset}"):
            video = row.cells["video_id"].strip()
            writer.write(_sample(row, corpus, turns[video], folders), row.where)
            turns[video] += 1
        writer.source |= feature_source(*folders)
    return done(writer)


def _sample(row: Row, corpus: Clips, turn: int, folders: list[FeatureFolder]) -> Sample:
    video, clip = row.cells["video_id"].strip(), row.cells["clip_id"].strip()
    if not video or not clip:
        raise ShardError(f"{row.where}: video_id is {video!r} and clip_id is {clip!r}; both are needed")
    name = clip_name(corpus.dataset, video, clip)
    where = f"{row.where}: sample {name.key!r}"
    split = split_of(row.cells["mode"].strip().lower(), where)
    value = None if split == UNLABELLED else number(row.cells["label"])
    if value is not None:
        check_value(corpus.task, value, where)
    elif split != UNLABELLED:
        raise not_a_number(where, "label", row.cells["label"])
    names = [f"{video}/{clip}.npy", f"{video}_{clip}.npy", f"{video}$_${clip}.npy"]
    features = {folder.modality: folder.load(names) for folder in folders}
    text = clean_text(row.cells["text"])
    return corpus.sample(name, video, text, features, split=split, turn=turn, value=value)
