"""Several samples at once, their features end to end in one array a modality: what a batch is made of.

One slice of a shard per sample, one CRC32 per member, one copy from the mapped file to where the numbers stay. What
the index knows (offsets, lengths) is looked up for all samples together.

Invariants: every byte that is handed out was checked against its CRC32; a sample is whole or it is a
:class:`BadSample` with a placeholder in its place, never a part of itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from egmf_shards.accelerated import crc32
from egmf_shards.errors import ShardError, UnreachableError
from egmf_shards.format import codec, rules
from egmf_shards.format.index import Index
from egmf_shards.format.sample import FEATURE_MODALITIES, SPLITS, Sample
from egmf_shards.format.task import CLASSIFICATION, Task
from egmf_shards.storage.base import Storage

_JSON = codec.MEMBERS.index(codec.JSON_MEMBER)
_KINDS_OF = {m: codec.MEMBERS.index(f"{m}.npy") for m in FEATURE_MODALITIES}


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be read whole; a placeholder takes its place."""

    place: int
    """Which of the samples that were asked for."""
    index: int
    """Its number in the shard set."""
    key: str
    reason: str
    """One line that names shard, sample and member."""


@dataclass(frozen=True, eq=False)
class Packed:
    """B samples; ``samples[b].audio`` and ``.vision`` are parts of the packed arrays."""

    samples: list[Sample]
    audio: np.ndarray
    """float32 ``[sum of audio_frames, dim]``."""
    vision: np.ndarray
    """float32 ``[sum of vision_frames, dim]``."""
    audio_frames: np.ndarray
    """int32 ``[B]``; 0 where absent."""
    vision_frames: np.ndarray
    """int32 ``[B]``; 0 where absent."""
    bad: list[BadSample]
    """Empty unless bad samples are tolerated."""


class Table:
    """The rows of one split over several folders, side by side: where every member lies, and what is in it."""

    def __init__(
        self,
        parts: Sequence[tuple[Storage, Index]],
        split: str,
        tasks: Mapping[str, Task],
        languages: Sequence[str],
        dims: Mapping[str, int],
        datasets: Sequence[str],
    ) -> None:
        self.split, self.tasks, self.languages, self.dims, self.datasets = split, tasks, languages, dims, datasets
        self.shards = [(storage, name) for storage, index in parts for name in index.shard_names.tolist()]
        self.counts: list[int] = []
        numbers = {name: number for number, name in enumerate(tasks)}
        columns: dict[str, list[np.ndarray]] = {}
        shards = 0
        for storage, index in parts:
            rows = np.flatnonzero(index.split == SPLITS.index(split))
            codes = np.array([numbers[name] for name in index.task_names.tolist()], dtype=np.int32)
            first, lengths = index.first_member[rows], np.diff(index.first_member)[rows]
            ends = np.cumsum(lengths)
            members = np.arange(int(lengths.sum())) + np.repeat(first - (ends - lengths), lengths)
            part = {
                "key": index.key[rows],
                "task": codes[index.task[rows]],
                "members": lengths,
                "text_chars": index.text_chars[rows],
                "audio_frames": index.audio_frames[rows],
                "vision_frames": index.vision_frames[rows],
                "kind": index.member_kind[members],
                "shard": index.member_shard[members] + np.int32(shards),
                "offset": index.member_offset[members],
                "size": index.member_size[members],
                "crc": index.member_crc[members],
            }
            _check_sizes(storage, part, dims)
            for name, column in part.items():
                columns.setdefault(name, []).append(column)
            self.counts.append(len(rows))
            shards += len(index.shard_names)
        joined = {name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in columns.items()}
        self.key, self.task = joined["key"], joined["task"]
        self.last = np.cumsum(joined["members"])
        self.first = self.last - joined["members"]
        self.kind, self.shard, self.offset = joined["kind"], joined["shard"], joined["offset"]
        self.size, self.crc = joined["size"], joined["crc"]
        self.columns = {name: joined[name] for name in ("text_chars", "audio_frames", "vision_frames")}
        self.folder = np.repeat(np.arange(len(parts), dtype=np.int32), self.counts)
        # Samples that were found sound once. Their checksums say that the bytes are still the same, so what depends on
        # the bytes alone (finite numbers, agreement with index and manifest) is not checked again.
        self.proven = np.zeros(len(self.key), dtype=bool)

    def __len__(self) -> int:
        return len(self.first)

    def read(self, indices: Sequence[int] | np.ndarray, tolerate: bool = False) -> Packed:
        """See :meth:`egmf_shards.read.reader.ShardSet.read`."""
        at = np.asarray(indices, dtype=np.int64)
        if at.size and not 0 <= int(at.min()) <= int(at.max()) < len(self):
            raise IndexError(f"samples {int(at.min())} to {int(at.max())} of {len(self)}")
        frames = {m: self.columns[f"{m}_frames"][at] for m in FEATURE_MODALITIES}
        packed = {m: np.empty((int(frames[m].sum()), self.dims.get(m, 0)), np.float32) for m in FEATURE_MODALITIES}
        proven = self.proven[at]
        reader = _BatchReader(self, at, frames, packed, proven.tolist())
        samples: list[Sample] = []
        bad: list[BadSample] = []
        for b in range(len(at)):
            try:
                samples.append(reader.read(b))
            except ShardError as error:
                if not tolerate or isinstance(error, UnreachableError):
                    raise
                bad.append(BadSample(b, int(at[b]), reader.keys[b], str(error)))
                samples.append(self.placeholder(int(at[b])))
        if proven.all() and not bad:
            return Packed(samples, packed["audio"], packed["vision"], frames["audio"], frames["vision"], [])
        for b, modality in _not_finite(samples, packed, bad):
            reason = f"{reader.where(b)}, member {modality}.npy: holds a number that is not finite"
            if not tolerate:
                raise ShardError(reason)
            if all(known.place != b for known in bad):
                bad.append(BadSample(b, int(at[b]), reader.keys[b], reason))
                samples[b] = self.placeholder(int(at[b]))
        sound = np.ones(len(at), dtype=bool)
        sound[[known.place for known in bad]] = False
        self.proven[at[sound]] = True
        if bad:
            _close_gaps(samples, frames, packed)
        return Packed(
            samples, packed["audio"], packed["vision"], frames["audio"], frames["vision"],
            sorted(bad, key=lambda known: known.place),
        )  # fmt: skip

    def placeholder(self, index: int) -> Sample:
        """What replaces a sample that cannot be read: its task, no modality, any legal target."""
        task = list(self.tasks.values())[self.task[index]]
        classes = task.kind == CLASSIFICATION
        return Sample(
            id=str(self.key[index]),
            text="",
            language=next((name for name in self.languages if name in task.languages), task.languages[0]),
            task=task.name,
            dataset=self.datasets[int(self.folder[index])],
            split=self.split,
            modalities=(),
            label=task.labels[0] if classes else None,
            value=None if classes else task.low,
        )


class _Where:
    """Formats a sample's place only when a message is made of it."""

    __slots__ = ("b", "reader")

    def __init__(self, reader: _BatchReader, b: int) -> None:
        self.reader, self.b = reader, b

    def __str__(self) -> str:
        return self.reader.where(self.b)


class _ChangedError(Exception):
    """A member's CRC32 is not the index's."""


class _BatchReader:
    """One call of :meth:`Table.read`: the looked-up columns as plain lists."""

    def __init__(
        self,
        table: Table,
        at: np.ndarray,
        frames: Mapping[str, np.ndarray],
        packed: Mapping[str, np.ndarray],
        proven: list[bool],
    ) -> None:
        first, last = table.first[at], table.last[at]
        counts = last - first
        ends = np.cumsum(counts)
        members = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(first - (ends - counts), counts)
        offsets = table.offset[members]
        starts = offsets[ends - counts]
        begins = offsets - np.repeat(starts, counts)
        stops = begins + table.size[members]
        self.table, self.proven = table, proven
        self.keys: list[str] = table.key[at].tolist()
        self.bounds = [0, *ends.tolist()]
        self.shards = table.shard[members[ends - counts]].tolist()
        self.starts, self.lengths = starts.tolist(), stops[ends - 1].tolist()
        columns = (table.kind[members], begins, stops, table.crc[members])
        self.members = list(zip(*(column.tolist() for column in columns), strict=True))
        self.folders = table.folder[at].tolist()
        self.places = {
            _KINDS_OF[m]: (
                m, table.dims.get(m, 0), frames[m].tolist(), (np.cumsum(frames[m]) - frames[m]).tolist(), packed[m],
                packed[m].reshape(-1).view(np.uint8).data,  # memoryviews copy bytes with less ceremony than numpy
            )
            for m in FEATURE_MODALITIES
        }  # fmt: skip

    def where(self, b: int) -> str:
        """Shard and key of sample ``b``, for messages."""
        storage, name = self.table.shards[self.shards[b]]
        return f"{storage.where(name)}: sample {self.keys[b]!r}"

    def read(self, b: int) -> Sample:
        """Sample ``b``, its features copied to their place in the packed arrays."""
        storage, name = self.table.shards[self.shards[b]]
        place = (name, self.starts[b], self.lengths[b])
        try:
            try:
                return self._decode(b, storage.view(*place))
            except _ChangedError:
                if not storage.forget(*place):
                    raise
                return self._decode(b, storage.view(*place))
        except _ChangedError as error:
            raise ShardError(
                f"{self.where(b)}, member {error}: "
                "the bytes have changed since they were written (CRC32 mismatch); restore the shard"
            ) from None

    def _decode(self, b: int, span: memoryview) -> Sample:
        where = _Where(self, b)
        text: memoryview | None = None
        arrays: dict[str, np.ndarray] = {}
        for kind, begin, stop, crc in self.members[self.bounds[b] : self.bounds[b + 1]]:
            member = span[begin:stop]
            if kind != _JSON:
                modality, arrays[modality] = self._features(b, kind, member, crc)
            elif crc32(member) != crc:
                raise _ChangedError(codec.JSON_MEMBER)
            else:
                text = member
        if text is None:
            raise ShardError(f"{where}: has no .json member")
        sample = Sample.from_json(codec.decode_json(text, where), arrays, where)
        if not self.proven[b]:
            self._check(b, sample)
        return sample

    def _features(self, b: int, kind: int, member: memoryview, crc: int) -> tuple[str, np.ndarray]:
        modality, dim, frames, starts, packed, packed_bytes = self.places[kind]
        length, start = frames[b], starts[b]
        header, header_crc = codec.array_header(length, dim)
        size, first, last = len(header), 4 * start * dim, 4 * (start + length) * dim
        place = packed[start : start + length]
        if len(member) == size + last - first and member[:size] == header:
            # Copied before it is checked: the checksum then reads what the copy has just brought into the cache.
            packed_bytes[first:last] = member[size:]
            if crc32(packed_bytes[first:last], header_crc) != crc:
                raise _ChangedError(codec.MEMBERS[kind])
            return modality, place
        if crc32(member) != crc:
            raise _ChangedError(codec.MEMBERS[kind])
        array = codec.decode_array(member, f"{self.where(b)}, {modality}.npy")
        if array.shape != place.shape:
            raise ShardError(
                f"{self.where(b)}, member {modality}.npy: is {list(array.shape)}; "
                f"index and manifest say {list(place.shape)}"
            )
        place[:] = array
        return modality, place

    def _check(self, b: int, sample: Sample) -> None:
        """Whether index, manifest and the sample's own fields say the same; nothing behind the reader asks again."""
        table = self.table
        if sample.id != self.keys[b] or sample.split != table.split or sample.task not in table.tasks:
            raise ShardError(
                f"{self.where(b)}: its JSON says id {sample.id!r}, split {sample.split!r}, task {sample.task!r}; "
                f"index and manifest say {self.keys[b]!r}, {table.split!r}, one of {', '.join(table.tasks)}"
            )
        fault = rules.sample_fault(sample, table.tasks, table.datasets[self.folders[b]], table.languages)
        if fault:
            raise ShardError(f"{self.where(b)}: {fault}")


def _check_sizes(storage: Storage, part: Mapping[str, np.ndarray], dims: Mapping[str, int]) -> None:
    """Refuse lengths that the members' bytes cannot hold: memory is asked for by them before a member is read."""
    samples = np.repeat(np.arange(len(part["key"])), part["members"])
    for modality in FEATURE_MODALITIES:
        own = part["kind"] == _KINDS_OF[modality]
        sizes = np.zeros(len(part["key"]), np.int64)
        sizes[samples[own]] = part["size"][own]
        # The smallest float number has two bytes.
        wrong = part[f"{modality}_frames"].astype(np.int64) * (2 * dims.get(modality, 0)) > sizes
        if wrong.any():
            b = int(np.flatnonzero(wrong)[0])
            frames = int(part[f"{modality}_frames"][b])
            raise ShardError(
                f"{storage.location}: sample {str(part['key'][b])!r}: the index counts {frames} {modality} frames in "
                f"{int(sizes[b])} bytes: write the folder anew"
            )


def _not_finite(
    samples: Sequence[Sample], packed: Mapping[str, np.ndarray], bad: Sequence[BadSample]
) -> list[tuple[int, str]]:
    """Samples with a NaN or an infinity, and where. The dot product of everything with itself is the cheapest test
    that no such number passes; what overflows it is checked sample by sample."""
    found = []
    for modality, array in packed.items():
        flat = array.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            if not bad and np.isfinite(np.dot(flat, flat)):
                continue
        for b, sample in enumerate(samples):
            own = getattr(sample, modality)
            if own is not None and not np.isfinite(own).all():
                found.append((b, modality))
    return found


def _close_gaps(samples: list[Sample], frames: dict[str, np.ndarray], packed: dict[str, np.ndarray]) -> None:
    """Pack anew without what bad samples left; the samples' arrays become parts of the new ones."""
    for modality in FEATURE_MODALITIES:
        arrays = [getattr(sample, modality) for sample in samples]
        lengths = [0 if a is None else len(a) for a in arrays]
        frames[modality] = np.array(lengths, dtype=np.int32)
        packed[modality] = np.concatenate([packed[modality][:0], *(a for a in arrays if a is not None)])
        ends = np.cumsum(lengths)
        for sample, array, end, length in zip(samples, arrays, ends, lengths, strict=True):
            if array is not None:
                sample.__dict__[modality] = packed[modality][end - length : end]
