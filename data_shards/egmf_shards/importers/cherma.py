"""CHERMA in its authors' layout (LFMIM): ``{train,valid,test}.json`` and one ``.npy`` a clip and modality.

Every entry becomes one sample of the task ``cherma-emotion``; its label is ``video_label``, the one given to all
modalities together. The labels of audio alone and vision alone are read where they are asked for
(``modality_labels.py``). The files hold text as features only, never as words, and this project reads words: the text
of these samples is absent, so the label of text alone has nothing to stand for. MSE-Adapter's re-packaged CHERMA has
the words, and no labels per modality.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from egmf_shards.errors import ShardError
from egmf_shards.format.sample import LABELLED_SPLITS, Sample
from egmf_shards.format.task import CLASSIFICATION, Task
from egmf_shards.importers.common import build_sample, done, read_json
from egmf_shards.importers.features import FeatureFolder, feature_source, streams_of
from egmf_shards.importers.keys import name, without_modality
from egmf_shards.importers.modality_labels import ModalityLabels
from egmf_shards.importers.provenance import provenance
from egmf_shards.messages import shown
from egmf_shards.progress import progress
from egmf_shards.write.writer import ShardWriter

DATASET = "cherma"
NEEDED = ("audio_file", "video_file", "video_label")
MODALITY_LABELS = {"text": "txt_label", "audio": "audio_label", "vision": "visual_label"}
LABELS = {
    "愤怒": "anger",
    "厌恶": "disgust",
    "恐惧": "fear",
    "高兴": "happiness",
    "平静": "neutral",
    "悲伤": "sadness",
    "惊奇": "surprise",
}
"""The file's words to label keys, in the data set's order."""
TASK = Task(
    name="cherma-emotion",
    kind=CLASSIFICATION,
    questions={"zh": "说话人表达了哪种情绪：愤怒、厌恶、恐惧、高兴、平静、悲伤还是惊奇？"},
    labels=tuple(LABELS.values()),
    answers={"zh": tuple(LABELS)},
)


def import_cherma(
    source: str | os.PathLike[str], out: str | os.PathLike[str], modality_labels: bool = False
) -> dict[str, Any]:
    """Write CHERMA as shards and return the manifest.

    Args:
        source: the folder that holds ``{train,valid,test}.json``, ``audio/{split}/{name}.npy`` (float
            ``[frames, 1024]``) and ``visual/{split}/{name}.mp4.npy`` (float ``[frames, 2048]``).
        out: the folder to make; it must not exist.
        modality_labels: also make samples of the tasks ``cherma-emotion-{text,audio,vision}``
            (:class:`ModalityLabels`; of text there are none, see above).

    Raises:
        ShardError: a file or folder is missing or no list of entries, an entry lacks a field, a label is unknown, an
            id occurs twice, a feature folder holds no clip; nothing is left behind.
    """
    root = Path(source)
    alone = ModalityLabels(TASK) if modality_labels else None
    folders = {m: FeatureFolder(root / folder, m) for m, folder in (("audio", "audio"), ("vision", "visual"))}
    files = {split: root / f"{split}.json" for split in LABELLED_SPLITS}
    about = provenance("cherma", files.values())
    tasks = [TASK, *(alone.tasks.values() if alone else ())]
    with ShardWriter(out, DATASET, tasks, streams=streams_of(folders.values()), provenance=about) as writer:
        for split, path in files.items():
            entries = _entries(path)
            for number, entry in enumerate(progress(entries, f"importing CHERMA {split}")):
                where = f"{path}, entry {number}"
                sample = _sample(entry, where, split, folders)
                # One clip asked about several times is one utterance: it needs a place that all its samples name.
                writer.write(sample if alone is None else replace(sample, dialogue=sample.id), where)
                if alone:
                    for modality, key in MODALITY_LABELS.items():
                        label = _label(entry, key, where)
                        one = alone.sample(sample, modality, f"{where}, {key}", label=label)
                        if one is not None:
                            writer.write(replace(one, dialogue=sample.id), f"{where}, {key}")
        writer.source |= feature_source(*folders.values())
        if alone:
            writer.source["modality_labels"] = alone.report
        writer.source["text"] = "absent: the files hold features of the text, not its words"
    return done(writer)


def _entries(path: Path) -> list[dict[str, Any]]:
    entries = read_json(path)
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise ShardError(f"{path}: a list of entries is needed, each with {', '.join(NEEDED)}")
    return entries


def _sample(entry: dict[str, Any], where: str, split: str, folders: dict[str, FeatureFolder]) -> Sample:
    for key in NEEDED:
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise ShardError(f"{where}: {key} is {shown(entry.get(key))}; {', '.join(NEEDED)} are needed")
    label = _label(entry, "video_label", where)
    stems = {}
    features = {}
    for modality, key in (("audio", "audio_file"), ("vision", "video_file")):
        file = PurePosixPath(entry[key].replace("\\", "/"))
        stems[modality] = file.stem
        names = [f"{split}/{n}.npy" for n in (file.stem, f"{file.stem}.mp4", file.name)]
        features[modality] = folders[modality].load(names)
    clip = stems["vision"]
    return build_sample(
        without_modality(name(clip, clip, prefix=f"{DATASET}-{split}"), clip),
        "",
        features,
        language="zh",
        task=TASK.name,
        dataset=DATASET,
        split=split,
        label=label,
    )


def _label(entry: dict[str, Any], key: str, where: str) -> str:
    label = LABELS.get(entry[key]) if isinstance(entry.get(key), str) else None
    if label is None:
        raise ShardError(f"{where}: {key} is {shown(entry.get(key))}; it must be one of {', '.join(LABELS)}")
    return label
