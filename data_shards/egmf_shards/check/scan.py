"""One shard after another, read whole: members, samples, and what index and manifest recorded of them.

The part of ``egmf shards verify`` that reads; ``verify`` says what was recorded, and compares the sums.
"""

from __future__ import annotations

import hashlib
import mmap
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from egmf_shards.accelerated import crc32
from egmf_shards.errors import ShardError
from egmf_shards.foreign_files import HEAD, foreign_kind
from egmf_shards.format import codec, rules
from egmf_shards.format.index import Index, frames_column
from egmf_shards.format.index_checks import SHARD_NAME
from egmf_shards.format.sample import SPLITS, Sample
from egmf_shards.format.tar_walk import Member, walk_tar
from egmf_shards.write.writer import ShardWriter

CAP = 1000
"""Problems of one kind that are kept; the rest is only counted."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; ``shard`` is a file's name, ``key`` and ``member`` are empty where none is meant."""

    kind: str
    shard: str
    key: str
    member: str
    what: str

    def __str__(self) -> str:
        """One line."""
        place = [self.shard, self.key and f"sample {self.key!r}", self.member and f"member {self.member!r}"]
        return " ".join(f"{', '.join(p for p in place if p)}: {self.kind}: {self.what}".splitlines())


@dataclass
class Report:
    """What was found in a folder."""

    folder: Path
    problems: list[Problem] = field(default_factory=list)
    """At most :data:`CAP` of a kind."""
    counts: Counter[str] = field(default_factory=Counter)
    """All problems by kind."""
    notes: list[str] = field(default_factory=list)
    shards: int = 0
    samples: int = 0
    members: int = 0
    bytes: int = 0

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.counts

    def add(self, kind: str, shard: str, key: str, member: str, what: str) -> None:
        """Take one problem."""
        self.counts[kind] += 1
        if self.counts[kind] <= CAP:
            self.problems.append(Problem(kind, shard, key, member, what))


@dataclass(frozen=True)
class Recorded:
    """What index and manifest say about one shard; None where they do not say it."""

    size: int | None = None
    sha256: str | None = None
    members: dict[tuple[str, str], tuple[int, int, int, int]] | None = None
    """(key, member kind) to (offset, size, CRC32, row of the sample)."""


class Scan:
    """Reads shards into ``report``. ``ledger`` holds the rules and counts sound samples; without it (no manifest),
    and without ``index``, what needs them is left out."""

    def __init__(self, report: Report, ledger: ShardWriter | None, index: Index | None) -> None:
        self.report = report
        self.hashes: dict[str, str] = {}
        """SHA-256 (hex) of every shard read, by name."""
        self._ledger, self._index = ledger, index
        self._dims: dict[str, tuple[int, str]] = {}
        self._ids: dict[str, tuple[str, str]] = {}
        self._texts: dict[int, int] = {}
        self._dialogues: dict[tuple[str, str], int] = {}
        self._numbered: dict[int, tuple[str, str]] = {}

    def shard(self, name: str, recorded: Recorded) -> None:
        """Read one shard of the folder."""
        report, path = self.report, self.report.folder / name
        if not SHARD_NAME.fullmatch(name):
            report.add("shard name", name, "", "", "letters, digits, '.', '_' and '-' are allowed, no '.' in front")
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except (OSError, ValueError) as error:
            report.add("unreadable", name, "", "", f"cannot be read ({error})")
            return
        report.shards += 1
        report.bytes += size
        if recorded.size is not None and recorded.size != size:
            report.add("size", name, "", "", f"{size} bytes; {recorded.size} were written: truncated or replaced")
        if not size:
            report.add("empty file", name, "", "", "holds no byte")
        else:
            self.hashes[name] = hashlib.sha256(data).hexdigest()
            if recorded.sha256 is not None and recorded.sha256 != self.hashes[name]:
                report.add(
                    "hash", name, "", "", "SHA-256 is not the manifest's: a byte has changed since it was written"
                )
            foreign = foreign_kind(data[:HEAD])
            if foreign:
                report.add("header", name, "", "", f"{foreign}; a shard is an uncompressed tar")
                return
            members = walk_tar(data, lambda kind, member, what: report.add(kind, name, "", member, what))
            report.members += len(members)
            samples = self._group(name, members)
            for key, parts in samples.items():
                self._sample(
                    name, key, {kind: (m, data[m.offset : m.offset + m.size]) for kind, m in parts.items()}, recorded
                )
            for key, kind in sorted(
                set(recorded.members or ()) - {(k, kind) for k, parts in samples.items() for kind in parts}
            ):
                report.add("index", name, key, kind, "the index names it; the shard does not hold it")

    def _group(self, name: str, members: list[Member]) -> dict[str, dict[str, Member]]:
        """Members by key and kind. Reported: names that are not ours, a key's members apart, a member twice."""
        samples: dict[str, dict[str, Member]] = {}
        before = ""
        for member in members:
            key, _, kind = member.name.partition(".")
            if member.name.startswith("/") or ".." in member.name.split("/"):
                self.report.add("unsafe name", name, "", member.name, "leads out of the folder where it is unpacked")
                continue
            if rules.key_fault(key) or (kind != codec.JSON_MEMBER and codec.stream_of(kind) is None):
                what = "is none of <key>.json, <key>.<stream>.npy (a key: letters, digits, '-' and '_')"
                self.report.add("unknown member", name, "", member.name, what)
                continue
            parts = samples.setdefault(key, {})
            if kind in parts:
                self.report.add("duplicate key", name, key, kind, "occurs twice in this shard")
            else:
                if parts and key != before:
                    self.report.add("interleaved", name, key, kind, "lies apart from the sample's other members")
                parts[kind] = member
            before = key
        return samples

    def _sample(self, name: str, key: str, parts: dict[str, tuple[Member, bytes]], recorded: Recorded) -> None:
        row, intact = self._against_index(name, key, parts, recorded)
        self.report.samples += 1
        if not intact:
            return
        before = self.report.counts.total()
        sample = self._decode(name, key, parts)
        if sample is None:
            return
        if row is not None and self._index is not None:
            self._columns(name, key, row, sample, self._index)
        self._features(name, sample)
        other = self._ids.setdefault(key, (sample.split, name))
        if other != (sample.split, name):
            kind = "duplicate key" if other[0] == sample.split else "leakage"
            self.report.add(kind, name, key, "", f"the id occurs in {other[1]}, too (split {other[0]!r})")
        if self._ledger is None or self.report.counts.total() != before:
            return
        try:
            self._ledger.check(sample)
        except ShardError as error:
            self.report.add("schema", name, key, "", str(error).removeprefix(f"sample {key!r}: "))
            return
        self._ledger.count(sample, name)
        if sample.text:
            target = hash((sample.text, sample.task, sample.label, sample.value))
            self._texts[target] = self._texts.get(target, 0) | 1 << SPLITS.index(sample.split)

    def _against_index(
        self, name: str, key: str, parts: dict[str, tuple[Member, bytes]], recorded: Recorded
    ) -> tuple[int | None, bool]:
        """The sample's row in the index, and whether every member is what was written."""
        row, intact = None, True
        for kind, (member, data) in parts.items() if recorded.members is not None else ():
            place = (recorded.members or {}).get((key, kind))
            if place is None:
                self.report.add("index", name, key, kind, "is not in the index")
                continue
            row = place[3]
            if place[:2] != (member.offset, member.size):
                what = (
                    f"lies at byte {member.offset} with {member.size} bytes; the index says {place[0]} and {place[1]}"
                )
                self.report.add("index", name, key, kind, what)
            if place[2] != crc32(data):
                self.report.add("crc", name, key, kind, "the bytes are not those that were indexed (CRC32 mismatch)")
                intact = False
        return row, intact

    def _decode(self, name: str, key: str, parts: dict[str, tuple[Member, bytes]]) -> Sample | None:
        if codec.JSON_MEMBER not in parts:
            self.report.add("no json", name, key, "", "the sample has no .json member")
            return None
        kind, arrays = codec.JSON_MEMBER, {}
        try:
            data = codec.decode_json(parts[kind][1], "")
            faults = rules.json_faults(data)
            for fault in faults:
                self.report.add("schema", name, key, kind, fault)
            for kind in sorted(parts.keys() - {codec.JSON_MEMBER}):
                with np.errstate(over="ignore"):
                    arrays[kind.removesuffix(".npy")] = codec.decode_array(parts[kind][1], "")
            if faults:
                return None
            kind = codec.JSON_MEMBER
            sample = Sample.from_json(data, arrays, "")
        except (ShardError, MemoryError, OverflowError, RecursionError) as error:
            what = str(error).removeprefix(": ") or type(error).__name__
            self.report.add("schema" if kind == codec.JSON_MEMBER else "features", name, key, kind, what)
            return None
        if sample.id != key:
            self.report.add("schema", name, key, codec.JSON_MEMBER, f"names the id {sample.id!r}")
            return None
        return sample

    def _features(self, name: str, sample: Sample) -> None:
        for stream, array in sample.features.items():
            kind = codec.array_member(stream)
            broken = array.size - int(np.isfinite(array).sum())
            if broken:
                what = f"{broken} of {array.size} numbers are not finite in float32"
                self.report.add("not finite", name, sample.id, kind, what)
            recorded = self._recorded_width(stream)
            width, where = self._dims.setdefault(stream, recorded or (array.shape[1], f"{name}, sample {sample.id!r}"))
            fault = rules.width_fault(array.shape[1], width, where)
            if fault:
                self.report.add("width", name, sample.id, kind, fault)

    def _recorded_width(self, stream: str) -> tuple[int, str] | None:
        known = self._ledger.streams.get(stream) if self._ledger else None
        return None if known is None else (known.dim, "the manifest")

    def _columns(self, name: str, key: str, row: int, sample: Sample, index: Index) -> None:
        split = SPLITS.index(sample.split) if sample.split in SPLITS else None
        found: dict[str, Any] = {
            "split": split,
            "text_chars": len(sample.text),
            "target": int(sample.has_target),
        }
        recorded: dict[str, Any] = {column: int(getattr(index, column)[row]) for column in found}
        for stream in sorted({*sample.features, *index.frames}):
            found[frames_column(stream)] = len(sample.features.get(stream, ()))
            recorded[frames_column(stream)] = int(index.frames[stream][row]) if stream in index.frames else 0
        found["task"], recorded["task"] = sample.task, str(index.task_names[index.task[row]])
        if index.dialogue is not None and not self._numbered_alike(sample, int(index.dialogue[row])):
            what = f"dialogue is {sample.dialogue!r}; the index counts it among another's, or among none's"
            self.report.add("index", name, key, "", what)
        for column, value in found.items():
            if value != recorded[column]:
                self.report.add("index", name, key, "", f"{column} is {value}; the index says {recorded[column]}")

    def _numbered_alike(self, sample: Sample, number: int) -> bool:
        """Whether one number stands for one dialogue so far, and the other way round."""
        dialogue = sample.split, sample.dialogue
        if not sample.dialogue or number < 0:
            return not sample.dialogue and number < 0
        known = self._dialogues.setdefault(dialogue, number), self._numbered.setdefault(number, dialogue)
        return known == (number, dialogue)

    def repeats(self) -> list[str]:
        """Notes: how many texts occur with the same answer in two splits."""
        notes = []
        for a, b in combinations(range(len(SPLITS)), 2):
            both = sum(mask >> a & mask >> b & 1 for mask in self._texts.values())
            if both:
                notes.append(f"{both} texts occur with the same answer in {SPLITS[a]} and {SPLITS[b]}")
        return notes
