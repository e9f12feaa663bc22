"""Several samples at once, their features end to end in one array a stream and width: what a batch is made of.

One slice of a shard per sample, one CRC32 per member, one copy from the mapped file to where the numbers stay. What
the index knows (offsets, lengths) is looked up for all samples together.

Invariants: every byte that is handed out was checked against its CRC32; a sample is whole or it is a
:class:`BadSample` with a placeholder in its place, never a part of itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from egmf_shards.accelerated import crc32
from egmf_shards.errors import ShardError, UnreachableError
from egmf_shards.format import codec, rules
from egmf_shards.format.arrays import pieces
from egmf_shards.format.index import Index, frames_column
from egmf_shards.format.index_facts import ANY_WIDTH
from egmf_shards.format.sample import SPLITS, Sample
from egmf_shards.format.task import CLASSIFICATION, Task
from egmf_shards.read.columns import FOLDER, KEY, TARGET, TASK, TEXT, Column, Columns, Found, Part
from egmf_shards.storage.base import Storage

_JSON = 0
"""The kind of a JSON member; a feature member's kind is its :class:`FeatureInput`'s place and 1."""


class FeatureInput(NamedTuple):
    """A feature stream in one width: two folders of a run may hold a stream made by different extractors."""

    stream: str
    dim: int

    @property
    def key(self) -> str:
        """A name for it, such as ``audio_74``."""
        return f"{self.stream}_{self.dim}"


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
    """B samples; the arrays of ``samples[b].features`` are parts of the packed ones."""

    samples: list[Sample]
    features: dict[FeatureInput, np.ndarray]
    """float32 ``[sum of frames, dim]``."""
    frames: dict[FeatureInput, np.ndarray]
    """int32 ``[B]``; 0 where absent."""
    bad: list[BadSample]
    """Empty unless bad samples are tolerated."""


class Table:
    """The samples of one split over several folders, side by side: where every member lies, and what is in it."""

    def __init__(
        self,
        parts: Sequence[tuple[Storage, Index]],
        split: str,
        tasks: Mapping[str, Task],
        languages: Sequence[str],
        dims: Sequence[Mapping[str, int]],
        datasets: Sequence[str],
    ) -> None:
        self.split, self.tasks, self.languages, self.datasets = split, tasks, languages, datasets
        self.inputs = sorted({FeatureInput(*width) for own in dims for width in own.items() if width[1]})
        self._dims = {m: np.array([own.get(m, 0) for own in dims]) for m in sorted({m for own in dims for m in own})}
        self.shards = [(storage, name) for storage, index in parts for name in index.shard_names.tolist()]
        numbers = {name: number for number, name in enumerate(tasks)}
        own_split, known = SPLITS.index(split), []
        shards = dialogues = 0
        for folder, ((storage, index), own) in enumerate(zip(parts, dims, strict=True)):
            kinds = np.array([_JSON, *(self._kind(storage, index, m, own.get(m, 0)) for m in index.frames)], np.uint16)
            codes = np.array([numbers[name] for name in index.task_names.tolist()], dtype=np.int32)
            frames = {frames_column(m): m for m in index.frames}
            known.append(Part(index, own_split, codes, kinds, frames, folder, shards, dialogues))
            _check_sizes(storage, known[-1], own)
            shards += len(index.shard_names)
            dialogues += int(index.facts.dialogues[own_split])
        self.columns = Columns(known)
        self.counts = self.columns.counts
        self.lengths = (TEXT, *map(frames_column, self._dims))
        """The columns of lengths."""
        # A bit for each sample that was found sound once. Their checksums say that the bytes are still the same, so
        # what depends on the bytes alone (finite numbers, agreement with index and manifest) is not checked again.
        self._proven = np.zeros(-(-len(self) // 8), np.uint8)

    def __len__(self) -> int:
        return len(self.columns)

    def column(self, name: str) -> Column:
        """One of the columns, over all samples."""
        return Column(self.columns, name, 0, len(self))

    def proven(self, at: np.ndarray) -> np.ndarray:
        """bool ``[B]``: which samples were found sound once."""
        return (self._proven[at >> 3] >> (at & 7).astype(np.uint8)) & 1 > 0

    def _kind(self, storage: Storage, index: Index, stream: str, dim: int) -> int:
        """The number of a folder's members of one stream among all folders' kinds."""
        if not dim and (index.facts.widest[:, list(index.frames).index(stream)] == ANY_WIDTH).all():
            return _JSON  # no member is of this kind
        if not dim:
            raise ShardError(
                f"{storage.location}: the index has {stream} frames, but the manifest gives no width for them: "
                "write the folder anew"
            )
        return 1 + self.inputs.index(FeatureInput(stream, dim))

    def _frames(self, own: FeatureInput, found: Sequence[Found], count: int) -> np.ndarray:
        """int32 ``[count]``: the frames of one input that samples have."""
        frames, widths = self.columns.take(frames_column(own.stream), found, count), self._dims[own.stream]
        if np.all((widths == own.dim) | (widths == 0)):
            return frames
        return np.where(widths[self.columns.take(FOLDER, found, count)] == own.dim, frames, np.int32(0))

    def read(self, indices: Sequence[int] | np.ndarray, tolerate: bool = False) -> Packed:
        """See :meth:`egmf_shards.read.reader.ShardSet.read`."""
        at = np.asarray(indices, dtype=np.int64)
        if at.size and not 0 <= int(at.min()) <= int(at.max()) < len(self):
            raise IndexError(f"samples {int(at.min())} to {int(at.max())} of {len(self)}")
        found = self.columns.find(at)
        frames = {own: self._frames(own, found, len(at)) for own in self.inputs}
        packed = {own: np.empty((int(frames[own].sum()), own.dim), np.float32) for own in self.inputs}
        proven = self.proven(at)
        reader = _BatchReader(self, found, frames, packed, proven.tolist())
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
            return Packed(samples, packed, frames, [])
        for b, modality in _not_finite(samples, packed, bad):
            reason = f"{reader.where(b)}, member {modality}.npy: holds a number that is not finite"
            if not tolerate:
                raise ShardError(reason)
            if all(known.place != b for known in bad):
                bad.append(BadSample(b, int(at[b]), reader.keys[b], reason))
                samples[b] = self.placeholder(int(at[b]))
        sound = np.ones(len(at), dtype=bool)
        sound[[known.place for known in bad]] = False
        np.bitwise_or.at(self._proven, at[sound] >> 3, np.uint8(1) << (at[sound] & 7).astype(np.uint8))
        if bad:
            _close_gaps(samples, frames, packed)
        return Packed(samples, packed, frames, sorted(bad, key=lambda known: known.place))

    def placeholder(self, index: int) -> Sample:
        """What replaces a sample that cannot be read: its task, no modality, any legal target."""
        found = self.columns.find(np.array([index]))
        key, number, folder = (self.columns.take(name, found, 1)[0] for name in (KEY, TASK, FOLDER))
        task = list(self.tasks.values())[number]
        classes = task.kind == CLASSIFICATION
        return Sample(
            id=str(key),
            text="",
            language=next((name for name in self.languages if name in task.languages), task.languages[0]),
            task=task.name,
            dataset=self.datasets[int(folder)],
            split=self.split,
            modalities=(),
            label=task.labels[0] if classes else None,
            value=None if classes else task.low,
        )


def _check_sizes(storage: Storage, part: Part, dims: Mapping[str, int]) -> None:
    """Refuse lengths that the members' bytes cannot hold: memory is asked for by them before a member is read."""
    index = part.index
    for number, stream in enumerate(index.frames):
        dim = dims.get(stream, 0)
        if dim <= index.facts.widest[part.split, number]:
            continue
        for piece in pieces(len(part)):
            rows = np.asarray(part.rows(np.arange(piece.start, piece.stop)))
            found = part.members(rows)
            sizes = np.zeros(len(rows), np.int64)
            own = found.kind == part.kinds[number + 1]
            sizes[np.repeat(np.arange(len(rows)), found.counts)[own]] = found.size[own]
            frames = index.frames[stream][rows].astype(np.int64)
            # The smallest float number has two bytes.
            for b in np.flatnonzero(frames * (2 * dim) > sizes)[:1].tolist():
                raise ShardError(
                    f"{storage.location}: sample {str(index.key[rows[b]])!r}: the index counts {frames[b]} {stream} "
                    f"frames in {sizes[b]} bytes: write the folder anew"
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
        found: Sequence[Found],
        frames: Mapping[FeatureInput, np.ndarray],
        packed: Mapping[FeatureInput, np.ndarray],
        proven: list[bool],
    ) -> None:
        count = len(proven)
        counts, kind, shard, offset, size, crc = table.columns.members(found, count)
        ends = np.cumsum(counts)
        starts = offset[ends - counts]
        begins = offset - np.repeat(starts, counts)
        stops = begins + size
        self.table, self.proven = table, proven
        self.keys: list[str] = table.columns.take(KEY, found, count).tolist()
        self.bounds = [0, *ends.tolist()]
        self.shards = shard[ends - counts].tolist()
        self.starts, self.lengths = starts.tolist(), stops[ends - 1].tolist()
        self.members = list(zip(kind.tolist(), begins.tolist(), stops.tolist(), crc.tolist(), strict=True))
        self.folders = table.columns.take(FOLDER, found, count).tolist()
        self.places = {
            kind: (
                *own, frames[own].tolist(), (np.cumsum(frames[own]) - frames[own]).tolist(), packed[own],
                packed[own].reshape(-1).view(np.uint8).data,  # memoryviews copy bytes with less ceremony than numpy
            )
            for kind, own in enumerate(table.inputs, 1)
        }  # fmt: skip
        self.targets: list[int] = table.columns.take(TARGET, found, count).tolist()

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
                raise _ChangedError(codec.array_member(modality))
            return modality, place
        if crc32(member) != crc:
            raise _ChangedError(codec.array_member(modality))
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
        if not fault and sample.has_target is not bool(self.targets[b]):
            fault = f"{'holds a' if sample.has_target else 'lacks its'} target; the index says otherwise"
        if fault:
            raise ShardError(f"{self.where(b)}: {fault}")


def _not_finite(
    samples: Sequence[Sample], packed: Mapping[FeatureInput, np.ndarray], bad: Sequence[BadSample]
) -> list[tuple[int, str]]:
    """Samples with a NaN or an infinity, and where. The dot product of everything with itself is the cheapest test
    that no such number passes; what overflows it is checked sample by sample."""
    found = []
    for own, array in packed.items():
        flat = array.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            if not bad and np.isfinite(np.dot(flat, flat)):
                continue
        for b, sample in enumerate(samples):
            part = _part(sample, own)
            if part is not None and not np.isfinite(part).all():
                found.append((b, own.stream))
    return found


def _part(sample: Sample, own: FeatureInput) -> np.ndarray | None:
    """A sample's array of one input."""
    array = sample.features.get(own.stream)
    return array if array is not None and array.shape[1] == own.dim else None


def _close_gaps(
    samples: list[Sample], frames: dict[FeatureInput, np.ndarray], packed: dict[FeatureInput, np.ndarray]
) -> None:
    """Pack anew without what bad samples left; the samples' arrays become parts of the new ones."""
    for own in packed:
        arrays = [_part(sample, own) for sample in samples]
        lengths = [0 if a is None else len(a) for a in arrays]
        frames[own] = np.array(lengths, dtype=np.int32)
        packed[own] = np.concatenate([packed[own][:0], *(a for a in arrays if a is not None)])
        ends = np.cumsum(lengths)
        for b, (sample, array) in enumerate(zip(samples, arrays, strict=True)):
            if array is not None:
                part = packed[own][ends[b] - lengths[b] : ends[b]]
                samples[b] = replace(sample, features={**sample.features, own.stream: part})
