"""CMU-MultimodalSDK's computational sequences (``.csd``, HDF5: CMU-MOSI and CMU-MOSEI as published) to shards.

A file holds ``NAME/data/ID/features`` ``[T, dim]`` and ``NAME/data/ID/intervals`` ``[T, 2]`` (seconds): ID is a video,
or ``VIDEO[3]``, its segment 3, where the SDK aligned the file to the labels. Four files make a data set: labels (a row
a segment; its first number is the sentiment), words, one of audio features, one of vision features. Rules, each counted
in the manifest's ``source``:

* What overlaps a segment by more than 10 microseconds belongs to it, which is the SDK's own rule; segments of MOSEI
  overlap each other, so a word or frame may belong to two. Rows are put in the order of time.
* The text is the segment's words without the pauses (``sp``).
* A segment without length, and a video in no split, are left out. A segment without a frame lacks the modality; what
  else becomes of the numbers is said in ``repairs.py``.
* The context is empty, as in ``label_csv.py``; ``turn`` is the segment's place in time.

Read with h5py, one video at a time. Nothing outside of the files is followed: no links, no external or virtual storage.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.format.sample import LABELLED_SPLITS, Sample
from egmf_shards.format.text import clean_text
from egmf_shards.importers.common import done, read_json
from egmf_shards.importers.keys import clip_name
from egmf_shards.importers.provenance import provenance
from egmf_shards.importers.repairs import Repairs, without_axes_of_1
from egmf_shards.importers.sentiment import Clips, TaskOptions, check_value, sentiment_task
from egmf_shards.importers.streams import STREAMS
from egmf_shards.progress import progress
from egmf_shards.write.writer import ShardWriter

EPSILON = 1e-5
"""Seconds; shorter than that is no length and no overlap, as in the SDK."""
MAX_BYTES = 1 << 30
"""Of one array: COVAREP of an hour is 107 MB. HDF5 compresses, so a small file may declare any size."""
PAUSE = "sp"
ROLES = {
    "labels": re.compile(r"label", re.IGNORECASE),
    "words": re.compile(r"words\.csd$", re.IGNORECASE),
    "audio": re.compile(r"covarep|opensmile", re.IGNORECASE),
    "vision": re.compile(r"facet|openface", re.IGNORECASE),
}
"""Which files of a folder serve as what, by the names that the SDK publishes."""
_SEGMENT = re.compile(r"(.+)\[(\d+)\]")


class CsdFile:
    """One computational sequence, open for reading.

    Raises:
        ShardError: h5py is not installed, or the file is missing, no HDF5 or of another layout.
    """

    def __init__(self, path: Path) -> None:
        try:
            import h5py
        except ImportError as error:
            raise ShardError(
                f"{path}: reading .csd needs h5py; install it with `pip install 'egmf-dist[csd]'`"
            ) from error
        self.path, self._h5py = path, h5py
        self.with_axes_of_1: set[str] = set()
        """Ids whose features had axes of 1, which were taken off."""
        try:
            self._file = h5py.File(path, "r")
        except FileNotFoundError as error:
            raise ShardError(f"{path}: there is no such file") from error
        except OSError as error:
            raise ShardError(f"{path}: not a readable HDF5 file") from error
        try:
            names = list(self._file)
            if len(names) != 1:
                raise ShardError(f"{path}: holds {len(names)} groups; one computational sequence is needed")
            self._data = self._child(self._child(self._file, names[0], h5py.Group), "data", h5py.Group)
            self.ids = set(self._data)
        except (RuntimeError, KeyError, OSError) as error:
            self._file.close()
            raise ShardError(f"{path}: damaged") from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> CsdFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _child(self, group: Any, name: str, kind: type) -> Any:
        where = f"{self.path}, {ascii(name)[:80]}"
        link = group.get(name, getlink=True)
        if link is None:
            raise ShardError(f"{where}: is not there; NAME/data/ID/{{features,intervals}} is needed")
        if not isinstance(link, self._h5py.HardLink):
            raise ShardError(f"{where}: a link to elsewhere, which is not followed")
        child = group[name]
        if not isinstance(child, kind):
            raise ShardError(f"{where}: is a {type(child).__name__.lower()}; a {kind.__name__.lower()} is needed")
        return child

    def read(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """``features`` ``[T, dim]`` and ``intervals`` float64 ``[T, 2]`` of one id.

        Raises:
            ShardError: they are not there, damaged, too large, or do not fit each other.
        """
        where = f"{self.path}, {ascii(key)[:80]}"
        try:
            group = self._child(self._data, key, self._h5py.Group)
            features, intervals = (self._array(group, name, where) for name in ("features", "intervals"))
        except ShardError:
            raise
        except (RuntimeError, KeyError, OSError, ValueError, TypeError) as error:
            raise ShardError(f"{where}: damaged") from error
        if features.ndim == 1:
            features = features[:, None]
        flat = without_axes_of_1(features)
        if flat.ndim != features.ndim:
            self.with_axes_of_1.add(key)
        features = flat
        if features.ndim != 2 or intervals.shape != (len(features), 2) or intervals.dtype.kind not in "fiu":
            raise ShardError(
                f"{where}: features are {features.dtype} {list(features.shape)}, "
                f"intervals {intervals.dtype} {list(intervals.shape)}; "
                "[T, dim] and numbers [T, 2] are needed"
            )
        return features, intervals.astype(np.float64)

    def _array(self, group: Any, name: str, where: str) -> np.ndarray:
        data = self._child(group, name, self._h5py.Dataset)
        if data.external or data.is_virtual:
            raise ShardError(f"{where}: {name} lie in another file, which is not followed")
        if data.size is None or data.size * max(data.dtype.itemsize, 1) > MAX_BYTES:
            raise ShardError(f"{where}: {name} declare more than {MAX_BYTES >> 20} MiB")
        return np.asarray(data[()])

    def of_segment(self, video: str, number: int, whole: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
        """Features and intervals from which the segment's are taken; ``whole`` keeps the video's from call to call."""
        aligned = f"{video}[{number}]"
        if aligned in self.ids:
            return self.read(aligned)
        if video not in self.ids:
            return None
        if "read" not in whole:
            whole["read"] = self.read(video)
        found: tuple[np.ndarray, np.ndarray] = whole["read"]
        return found


class _Modality(Repairs):
    """One feature file and what became of its segments."""

    def __init__(self, file: CsdFile) -> None:
        super().__init__()
        self.file = file
        self.found = self.absent = self.frames = 0

    def take(self, video: str, number: int, span: np.ndarray, whole: dict[str, Any]) -> np.ndarray | None:
        """float32 ``[frames, dim]`` of one segment; None: it lacks the modality."""
        part = self.file.of_segment(video, number, whole)
        rows = np.zeros(0) if part is None else overlapping(part[1], span)
        if part is None or not len(rows):
            self.absent += 1
            return None
        if part[0].dtype.kind not in "fiu":
            raise ShardError(f"{self.file.path}, {ascii(video)[:80]}: features are {part[0].dtype}; numbers are needed")
        array = self.present(self.finite(part[0][rows]))
        if array is None:
            return None
        self.found += 1
        self.frames += len(array)
        return array

    def to_json(self) -> dict[str, int]:
        """The counts as the manifest stores them."""
        return {
            "clips_found": self.found,
            "clips_without_frames": self.absent,
            "frames_kept": self.frames,
            "sequences_with_axes_of_1_taken_off": len(self.file.with_axes_of_1),
            "clips_of_zeros": self.clips_of_zeros,
            "clips_with_non_finite_set_to_0": self.clips_with_non_finite_set_to_0,
            "numbers_not_finite_set_to_0": self.numbers_not_finite_set_to_0,
            "clips_beyond_fp16": self.clips_beyond_fp16,
            "numbers_beyond_fp16": self.numbers_beyond_fp16,
        }


def overlapping(intervals: np.ndarray, span: np.ndarray) -> np.ndarray:
    """The rows of ``intervals`` ``[T, 2]`` that overlap ``span`` ``[2]`` by over :data:`EPSILON`, by their start."""
    overlap = np.minimum(intervals[:, 1], span[1]) - np.maximum(intervals[:, 0], span[0])
    rows = np.flatnonzero(overlap > EPSILON)
    return rows[np.argsort(intervals[rows, 0], kind="stable")]


class CsdOptions(TaskOptions, total=False):
    """What may be said about the task, and which file of the folder serves as what; None is the same as left out."""

    labels: str | None
    """The name of the file of labels in the folder; left out, the one whose name fits (:data:`ROLES`)."""
    words: str | None
    audio: str | None
    vision: str | None


@dataclass(frozen=True)
class _Corpus:
    """The opened files, what the samples of all videos have in common, and what is counted over them."""

    files: dict[str, CsdFile]
    modalities: dict[str, _Modality]
    clips: Clips
    counts: Counter[str] = field(default_factory=Counter)


def import_csd(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dataset: str,
    split_file: str | os.PathLike[str],
    language: str | None = None,
    **options: Unpack[CsdOptions],
) -> dict[str, Any]:
    """Write computational sequences as shards of the task ``<dataset>-sentiment`` and return the manifest.

    Args:
        source: the folder of ``.csd`` files.
        out: the folder to make; it must not exist.
        dataset: ``mosi`` and ``mosei`` decide language, range, step and convention, as for :func:`import_mmsa`.
        split_file: JSON ``{"train": [video ids], "valid": [...], "test": [...]}``; the files do not hold the standard
            folds, the SDK does.
        language: ``en`` or ``zh``; any other needs ``question``.
        options: see :class:`CsdOptions`. Labels are needed; without one of the other files that modality is absent.

    Raises:
        ShardError: h5py is not installed, a file is missing, damaged or one of several that fit, a video is in two
            splits, a label is outside the range; nothing is left behind.
    """
    named = {role: options.pop(role, None) for role in ROLES}  # type: ignore[misc]
    clips = Clips(dataset, *sentiment_task(dataset, language, options))
    paths = _files(Path(source), named)
    about = provenance("csd", [*paths.values(), split_file])
    splits = _splits(Path(split_file))
    with ExitStack() as stack:
        files = {role: stack.enter_context(CsdFile(path)) for role, path in paths.items()}
        modalities = {m: _Modality(files[m]) for m in STREAMS if m in files}
        corpus = _Corpus(files, modalities, clips)
        counts = corpus.counts
        with ShardWriter(out, dataset, [clips.task], streams=STREAMS, provenance=about) as writer:
            segments = _segments(files["labels"])
            known = {video for videos in splits.values() for video in videos}
            counts["videos_in_no_split_left_out"] = len(segments.keys() - known)
            counts["videos_of_a_split_without_labels"] = len(known - segments.keys())
            for split, videos in splits.items():
                for video in progress([v for v in videos if v in segments], f"importing {dataset} {split}"):
                    for sample, where in _video(video, segments[video], corpus, split):
                        writer.write(sample, where)
            writer.source["features"] = {name: modality.to_json() for name, modality in modalities.items()}
            writer.source["segments"] = dict(counts)
    return done(writer)


def _files(folder: Path, named: dict[str, str | None]) -> dict[str, Path]:
    """Role to file; labels are there."""
    if not folder.is_dir():
        raise ShardError(f"{folder}: there is no such folder of .csd files")
    present = sorted(p.name for p in folder.iterdir() if p.name.lower().endswith(".csd"))
    found = {}
    for role, name in named.items():
        fitting = [name] if name is not None else [n for n in present if ROLES[role].search(n)]
        if len(fitting) > 1:
            raise ShardError(f"{folder}: {', '.join(fitting)} may all be the {role}; name one with --{role}")
        if fitting:
            if fitting[0] not in present:
                raise ShardError(f"{folder / fitting[0]}: there is no such .csd file for the {role}")
            found[role] = folder / fitting[0]
    if "labels" not in found:
        raise ShardError(f"{folder}: holds no .csd of labels; it holds {', '.join(present) or 'no .csd file'}")
    return found


def _splits(path: Path) -> dict[str, list[str]]:
    data = read_json(path)
    if not isinstance(data, dict) or not data or set(data) - set(LABELLED_SPLITS):
        raise ShardError(f'{path}: {{"train": [video ids], "valid": [...], "test": [...]}} is needed')
    seen: dict[str, str] = {}
    for split, videos in data.items():
        if not isinstance(videos, list) or not all(isinstance(video, str) and video for video in videos):
            raise ShardError(f"{path}: {split} is not a list of video ids")
        for video in videos:
            if video in seen:
                raise ShardError(f"{path}: video {video!r} is in {seen[video]} and {split}; each may be in one, once")
            seen[video] = split
    return {split: data[split] for split in LABELLED_SPLITS if split in data}


def _segments(labels: CsdFile) -> dict[str, list[tuple[str, int, int]]]:
    """Video to (id in the label file, its row there, the segment's number)."""
    found: dict[str, list[tuple[str, int, int]]] = {}
    for key in sorted(labels.ids):
        match = _SEGMENT.fullmatch(key)
        if match and len(match[2]) > 9:
            raise ShardError(f"{labels.path}, {ascii(key)[:80]}: a segment's number has at most 9 digits")
        if match:
            found.setdefault(match[1], []).append((key, 0, int(match[2])))
        else:
            rows = len(labels.read(key)[1])
            found.setdefault(key, []).extend((key, row, row) for row in range(rows))
    return found


def _video(
    video: str, segments: list[tuple[str, int, int]], corpus: _Corpus, split: str
) -> Iterator[tuple[Sample, str]]:
    """The samples of one video, in the order of time, and where each is in the file of labels."""
    files = corpus.files
    whole: dict[str, dict[str, Any]] = {role: {} for role in files}
    labelled = []
    for key, row, number in segments:
        if "labels" not in whole or whole["labels"].get("key") != key:
            whole["labels"] = {"key": key, "read": files["labels"].read(key)}
        features, intervals = whole["labels"]["read"]
        where = f"{files['labels'].path}, {ascii(video)[:80]}, segment {number}"
        if not len(features) or not features.shape[1] or features.dtype.kind not in "fiu":
            raise ShardError(f"{where}: labels are {features.dtype} {list(features.shape)}; numbers are needed")
        if not intervals[row, 1] - intervals[row, 0] > EPSILON:
            corpus.counts["segments_without_length_left_out"] += 1
            continue
        labelled.append((intervals[row], number, float(features[row, 0]), where))
    labelled.sort(key=lambda segment: (segment[0][0], segment[1]))
    for turn, (span, number, value, where) in enumerate(labelled):
        check_value(corpus.clips.task, value, where)
        text = _text(files["words"], video, number, span, whole["words"]) if "words" in files else ""
        arrays = {m: one.take(video, number, span, whole[m]) for m, one in corpus.modalities.items()}
        name = clip_name(corpus.clips.dataset, video, str(number), f"{video}[{number}]")
        yield corpus.clips.sample(name, video, text, arrays, split=split, turn=turn, value=value), where


def _text(words: CsdFile, video: str, number: int, span: np.ndarray, whole: dict[str, Any]) -> str:
    part = words.of_segment(video, number, whole)
    if part is None:
        return ""
    spoken = []
    for word in part[0][overlapping(part[1], span), 0].tolist():
        if not isinstance(word, bytes | str):
            raise ShardError(f"{words.path}, {ascii(video)[:80]}: holds {type(word).__name__}; words are needed")
        spoken.append(word.decode("utf-8", "replace") if isinstance(word, bytes) else word)
    return clean_text(" ".join(word for word in spoken if word.strip() != PAUSE))
