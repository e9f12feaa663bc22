"""Samples in, a finished folder of WebDataset shards out: tars, ``index.npz`` and ``manifest.json``.

Invariants: every sample is checked before it is written, and a message names it; the same samples in the same order
give the same bytes; the folder appears whole or not at all (everything is written to a hidden sibling and renamed at
the end).
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from egmf_shards.checksums import sha256
from egmf_shards.errors import ShardError
from egmf_shards.format import codec, rules
from egmf_shards.format.index import Index, save_index
from egmf_shards.format.index_build import build_index
from egmf_shards.format.manifest import SCHEMA, FeatureStream, stream_fault, write_manifest
from egmf_shards.format.sample import SPLITS, TEXT, Sample
from egmf_shards.format.task import Task
from egmf_shards.messages import shown
from egmf_shards.write.tar import new_tar


class _SplitStatistics:
    """What the manifest says about one split."""

    def __init__(self) -> None:
        self.samples = 0
        self.utterances: set[tuple[str, str | int]] = set()
        self.labels: dict[str, Counter[str]] = {}
        self.values: dict[str, list[float]] = {}
        self.present: Counter[str] = Counter()

    def add(self, sample: Sample) -> None:
        self.samples += 1
        # Several tasks may ask about one utterance; a sample outside any dialogue is an utterance of its own.
        self.utterances.add((sample.dialogue, sample.turn) if sample.dialogue else ("", sample.id))
        if sample.label is not None:
            self.labels.setdefault(sample.task, Counter())[sample.label] += 1
        if sample.value is not None:
            self.values.setdefault(sample.task, []).append(sample.value)
        self.present.update(sample.modalities)

    def to_json(self, tasks: Mapping[str, Task], modalities: Sequence[str]) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "utterances": len(self.utterances),
            "labels": {
                name: {label: self.labels[name][label] for label in tasks[name].labels} for name in sorted(self.labels)
            },
            "values": {name: _statistics(self.values[name]) for name in sorted(self.values)},
            "missing": {modality: self.samples - self.present[modality] for modality in modalities},
        }


def _statistics(values: list[float]) -> dict[str, float]:
    return {
        "count": len(values),
        "mean": round(float(np.mean(values)), 6),
        "std": round(float(np.std(values)), 6),
        "min": min(values),
        "max": max(values),
    }


class _FeatureStatistics:
    """Per-dimension count, mean, standard deviation, least and largest of one modality, sample by sample.

    Means and squared deviations are merged as in Chan, Golub and LeVeque (1979): no large sums, no second pass.
    """

    def __init__(self, dim: int) -> None:
        self.frames = 0
        self._mean, self._squares = np.zeros(dim), np.zeros(dim)
        self._low, self._high = np.full(dim, np.inf), np.full(dim, -np.inf)

    def add(self, array: np.ndarray) -> None:
        """Count ``array``, ``[frames, dim]``."""
        x = array.astype(np.float32).astype(np.float64)  # what the shard stores
        mean, frames = x.mean(axis=0), self.frames + len(x)
        delta = mean - self._mean
        self._squares += ((x - mean) ** 2).sum(axis=0) + delta**2 * (self.frames * len(x) / frames)
        self._mean += delta * (len(x) / frames)
        self._low, self._high = np.minimum(self._low, x.min(axis=0)), np.maximum(self._high, x.max(axis=0))
        self.frames = frames

    def to_json(self) -> dict[str, Any]:
        # A constant's deviation is exactly 0, not what rounding left of it: whoever divides by it can tell.
        std = np.where(self._low == self._high, 0.0, np.sqrt(self._squares / self.frames))
        columns = {"mean": self._mean, "std": std, "min": self._low, "max": self._high}
        # Nine digits write any float32, so a mean far from 0 is not moved by as much as a small deviation. More would
        # show the last bits of a sum's order.
        return {"frames": self.frames} | {name: [float(f"{v:.9g}") for v in x] for name, x in columns.items()}


class ShardWriter:
    """Context manager: ``with ShardWriter(out, "meld", [task]) as writer: writer.write(sample)``.

    Args:
        out_dir: the folder to make; it must not exist.
        dataset: the data set's name; every sample must carry it.
        tasks: the tasks that samples may name.
        streams: the feature streams by name (``{"audio": 16, "eda": FeatureStream(1, rate=4.0)}``; a number is a
            width). One of width 0 is named although no array may come; what an array brings that is not named is added.
        samples_per_shard: samples in one tar.
        provenance: what the manifest's ``source`` says (JSON); it can be added to through :attr:`source` until the end.
        ceilings: what the manifest's ``ceilings`` says, for generated data.

    Raises:
        ShardError: on entering, the folder exists; on writing, a bad sample; on leaving, no sample was written.
    """

    def __init__(
        self,
        out_dir: str | os.PathLike[str],
        dataset: str,
        tasks: Sequence[Task],
        streams: Mapping[str, FeatureStream | int] | None = None,
        samples_per_shard: int = 1000,
        provenance: Mapping[str, Any] | None = None,
        ceilings: Mapping[str, Any] | None = None,
    ) -> None:
        if samples_per_shard < 1:
            raise ShardError(f"samples_per_shard is {samples_per_shard}; at least 1 is needed")
        if len({task.name for task in tasks}) != len(tasks) or not tasks:
            raise ShardError(f"tasks are {[task.name for task in tasks]}; at least one is needed, each name once")
        self.out = Path(os.path.abspath(out_dir))
        self.dataset = dataset
        self.tasks = {task.name: task for task in tasks}
        self.source: dict[str, Any] = dict(provenance or {})
        self._manifest: dict[str, Any] | None = None
        self._ceilings = ceilings
        self.streams = {m: FeatureStream(s) if isinstance(s, int) else s for m, s in (streams or {}).items()}
        """The feature streams, as far as they are known."""
        for name, stream in self.streams.items():
            fault = stream_fault(name, stream.to_json())
            if fault:
                raise ShardError(f"stream {shown(name)}: {fault}")
        if len(self.streams) > rules.MAX_STREAMS:
            raise ShardError(f"{len(self.streams)} feature streams; at most {rules.MAX_STREAMS} are kept in one folder")
        self._samples_per_shard = samples_per_shard
        self._keys: dict[str, str] = {}  # to the place in the source file, where the importer names it
        self._languages: set[str] = set()
        self._splits: dict[str, _SplitStatistics] = {}
        self._features: dict[str, _FeatureStatistics] = {}
        self._open: dict[str, Any] = {}
        self._shards: dict[str, int] = {}
        self._made_parents: list[Path] = []
        self._tmp = self.out.parent / f".{self.out.name}.{os.getpid()}-{secrets.token_hex(4)}.partial"

    @property
    def manifest(self) -> dict[str, Any]:
        """The written manifest; RuntimeError before the folder is finished."""
        if self._manifest is None:
            raise RuntimeError(f"{self.out}: the manifest is there once the writer was left without an error")
        return self._manifest

    def __enter__(self) -> ShardWriter:
        if self.out.exists() or self.out.is_symlink():
            raise ShardError(f"{self.out}: exists already; name a folder that does not exist, or remove it first")
        try:
            for parent in reversed([p for p in self.out.parents if not p.exists()]):
                parent.mkdir()
                self._made_parents.append(parent)
            self._tmp.mkdir()
        except OSError as error:
            self._discard()
            raise ShardError(f"{self.out}: cannot be written ({error.strerror})") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for tar in self._open.values():
                tar.close()
            if kind is None:
                self._finish()
        except BaseException:
            self._discard()
            raise
        if kind is not None:
            self._discard()

    def write(self, sample: Sample, place: str = "") -> None:
        """Check ``sample`` and append it to its split's open shard.

        Args:
            sample: what is written.
            place: its place in the source file, such as ``label.csv, line 7``; messages begin with it.

        Raises:
            ShardError: the sample breaks a rule; the message names it.
        """
        self.check(sample, place)
        members = codec.encode(sample)
        written = self._splits[sample.split].samples if sample.split in self._splits else 0
        if written % self._samples_per_shard == 0:
            self._next_shard(sample.split, written // self._samples_per_shard)
        self._open[sample.split].write({"__key__": sample.id, **members})
        self.count(sample, f"{sample.split}-{written // self._samples_per_shard:06d}.tar", place)

    def count(self, sample: Sample, shard: str, place: str = "") -> None:
        """Count a checked sample of ``shard`` for the manifest without writing it (shards that exist already)."""
        self._splits.setdefault(sample.split, _SplitStatistics()).add(sample)
        self._shards[shard] = self._shards.get(shard, 0) + 1
        self._keys[sample.id] = place
        self._languages.add(sample.language)
        if sample.split == "train":
            for stream, array in sample.features.items():
                self._features.setdefault(stream, _FeatureStatistics(array.shape[1])).add(array)

    def _next_shard(self, split: str, number: int) -> None:
        if split in self._open:
            self._open.pop(split).close()
        name = f"{split}-{number:06d}.tar"
        self._open[split] = new_tar(self._tmp / name)
        self._shards[name] = 0

    def check(self, sample: Sample, place: str = "") -> None:
        """Check ``sample`` without writing it; the rules are those of ``rules.py``.

        Raises:
            ShardError: the sample breaks a rule; the message names it.
        """
        where = f"{place}: sample {sample.id!r}" if place else f"sample {sample.id!r}"
        fault = (
            next(iter(rules.json_faults(sample.to_json())), "")
            or rules.key_fault(sample.id)
            or rules.sample_fault(sample, self.tasks, self.dataset, None)
        )
        if not fault and sample.id in self._keys:
            first = self._keys[sample.id]
            fault = "the id occurs twice" + (f", first in {first}; each id may occur once" if first else "")
        fault = fault or rules.presence_fault(sample.modalities, sample.features.keys())
        if fault:
            raise ShardError(f"{where}: {fault}")
        for name, array in sample.features.items():
            fault = rules.array_fault(array)
            if not fault:
                if name not in self.streams and len(self.streams) == rules.MAX_STREAMS:
                    known = ", ".join(self.streams)
                    raise ShardError(f"{where}: {name} is one stream too many; this folder has {known}")
                stream = self.streams.setdefault(name, FeatureStream(array.shape[1]))
                if not stream.dim:
                    stream = self.streams[name] = replace(stream, dim=array.shape[1])
                fault = rules.width_fault(array.shape[1], stream.dim, "this folder")
            if fault:
                raise ShardError(f"{where}: {name} {fault}")

    def _finish(self) -> None:
        if not self._keys:
            raise ShardError(f"{self.out}: no sample was written")
        self._open.clear()
        index = build_index(self._tmp, list(self._shards))
        save_index(self._tmp, index)
        self._manifest = self.manifest_for(index, {name: sha256(self._tmp / name) for name in self._shards})
        write_manifest(self._tmp, self._manifest)
        try:
            self._tmp.rename(self.out)
        except OSError as error:
            raise ShardError(f"{self.out}: cannot be put in place ({error.strerror})") from error

    def manifest_for(self, index: Index, hashes: Mapping[str, str]) -> dict[str, Any]:
        """The manifest of everything that was counted; ``index`` is the shards', ``hashes`` their SHA-256 by name."""
        sizes = dict(zip(index.shard_names.tolist(), index.shard_sizes.tolist(), strict=True))
        modalities = (TEXT, *sorted(self.streams))
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            "dataset": self.dataset,
            "tasks": [task.to_json() for task in self.tasks.values()],
            "streams": {name: self.streams[name].to_json() for name in sorted(self.streams)},
            "languages": sorted(self._languages),
            "splits": {s: self._splits[s].to_json(self.tasks, modalities) for s in SPLITS if s in self._splits},
            "statistics": {name: self._features[name].to_json() for name in sorted(self._features)},
            "shards": [
                {"name": name, "size": sizes[name], "samples": self._shards[name], "sha256": hashes[name]}
                for name in sorted(self._shards)
            ],
            "index": index.content_hash,
            "source": self.source,
        }
        if self._ceilings is not None:
            manifest["ceilings"] = dict(self._ceilings)
        return manifest

    def _discard(self) -> None:
        shutil.rmtree(self._tmp, ignore_errors=True)
        for parent in reversed(self._made_parents):
            with suppress(OSError):  # somebody else may have put something there meanwhile
                parent.rmdir()
