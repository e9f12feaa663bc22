"""CHERMA in its authors' layout (LFMIM): ``{train,valid,test}.json`` and one ``.npy`` a clip and modality.

Every entry becomes one sample of the task ``cherma-emotion``; its label is ``video_label``, the one given to all
modalities together (the four labels of an entry are of text alone, audio alone, vision alone, and the whole clip). The
files hold text as features only, never as words, and this project reads words: the text of these samples is absent.
MSE-Adapter's re-packaged CHERMA has the words.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from egmf_shards.errors import ShardError
from egmf_shards.importers.features import FeatureFolder, feature_source
from egmf_shards.importers.report import say
from egmf_shards.progress import progress
from egmf_shards.sample import Sample
from egmf_shards.task import CLASSIFICATION, Task
from egmf_shards.writer import ShardWriter

DATASET = "cherma"
SPLITS = ("train", "valid", "test")
NEEDED = ("audio_file", "video_file", "video_label")
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
_KEY = re.compile(r"[A-Za-z0-9_-]+")


def import_cherma(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> dict[str, Any]:
    """Write CHERMA as shards and return the manifest.

    Args:
        source: the folder that holds ``{train,valid,test}.json``, ``audio/{split}/{name}.npy`` (float
            ``[frames, 1024]``) and ``visual/{split}/{name}.mp4.npy`` (float ``[frames, 2048]``).
        out: the folder to make; it must not exist.

    Raises:
        ShardError: a file or folder is missing or no list of entries, an entry lacks a field, a label is unknown, an
            id occurs twice, a feature folder holds no clip; nothing is left behind.
    """
    root = Path(source)
    folders = {m: FeatureFolder(root / name, m) for m, name in (("audio", "audio"), ("vision", "visual"))}
    with ShardWriter(out, DATASET, [TASK], provenance={"importer": "cherma"}) as writer:
        for split in SPLITS:
            path = root / f"{split}.json"
            entries, digest = _entries(path)
            writer.source.setdefault("files", {})[path.name] = {"sha256": digest, "entries": len(entries)}
            for number, entry in enumerate(progress(entries, f"importing CHERMA {split}")):
                writer.write(_sample(entry, number, f"{path}, entry {number}", split, folders))
        writer.source["features"] = feature_source(folders["audio"], folders["vision"])
        writer.source["text"] = "absent: the files hold features of the text, not its words"
    assert writer.manifest is not None
    say(writer.manifest)
    return writer.manifest


def _entries(path: Path) -> tuple[list[dict[str, Any]], str]:
    try:
        content = path.read_bytes()
        entries = json.loads(content.decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise ShardError(f"{path}: there is no such file") from error
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ShardError(f"{path}: not UTF-8 (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{path}: not JSON ({getattr(error, 'msg', 'nested too deeply')})") from error
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise ShardError(f"{path}: a list of entries is needed, each with {', '.join(NEEDED)}")
    return entries, hashlib.sha256(content).hexdigest()


def _sample(entry: dict[str, Any], number: int, where: str, split: str, folders: dict[str, FeatureFolder]) -> Sample:
    for key in NEEDED:
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise ShardError(f"{where}: {key} is {entry.get(key)!r}; {', '.join(NEEDED)} are needed")
    label = LABELS.get(entry["video_label"])
    if label is None:
        raise ShardError(f"{where}: video_label is {entry['video_label']!r}; it must be one of {', '.join(LABELS)}")
    features = {}
    for modality, key in (("audio", "audio_file"), ("vision", "video_file")):
        file = PurePosixPath(entry[key].replace("\\", "/"))
        features[modality] = folders[modality].load(
            [f"{split}/{n}.npy" for n in (file.stem, f"{file.stem}.mp4", file.name)]
        )
    # A key is ASCII; clips named otherwise are told apart by their place in the file.
    clip = file.stem if _KEY.fullmatch(file.stem) else f"{number:05d}"
    return Sample(
        id=f"{DATASET}-{split}-{clip}",
        text="",
        language="zh",
        task=TASK.name,
        dataset=DATASET,
        split=split,
        modalities=tuple(m for m, array in features.items() if array is not None),
        label=label,
        audio=features["audio"],
        vision=features["vision"],
    )
