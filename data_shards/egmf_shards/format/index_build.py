"""An index made by walking finished tars: it describes what is on disk, not what was meant.

``tarfile`` knows about PAX headers, so shards of any WebDataset writer can be indexed.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from egmf_shards.accelerated import crc32
from egmf_shards.errors import ShardError
from egmf_shards.foreign_files import foreign_file
from egmf_shards.format import codec, rules
from egmf_shards.format.index import Index
from egmf_shards.format.index_checks import COLUMN_TYPES, DIALOGUE_TYPE, FRAMES_TYPE
from egmf_shards.format.sample import SPLITS
from egmf_shards.format.tar_walk import MAX_MEMBER, SPARSE
from egmf_shards.messages import one_line
from egmf_shards.progress import progress


def build_index(folder: Path, shards: Sequence[str]) -> Index:
    """Index the named tars of ``folder`` by reading each of them once.

    Raises:
        ShardError: a shard is unreadable, a member has an unknown kind, a sample's members are interleaved with
            another's, its JSON is missing or names another id, split or modalities, or an id occurs twice.
    """
    columns: dict[str, list] = {name: [] for name in COLUMN_TYPES}
    frames: dict[str, dict[int, int]] = {}
    task_numbers: dict[str, int] = {}
    seen: set[str] = set()
    dialogue: list[tuple[str, str]] = []
    names = sorted(shards)
    for number, name in enumerate(progress(names, "indexing shards")):
        columns["shard_names"].append(name)
        columns["shard_sizes"].append((folder / name).stat().st_size)
        for key, members in _walk(folder / name):
            where = f"{folder / name}, sample {key!r}"
            if key in seen:
                raise ShardError(f"{where}: the id occurs twice (or its members are interleaved with another sample's)")
            seen.add(key)
            if rules.key_fault(key):
                raise ShardError(f"{where}: {rules.key_fault(key)}")
            if codec.JSON_MEMBER not in members:
                raise ShardError(f"{where}: has no .json member")
            sample = codec.decode({kind: data for kind, (_, data) in members.items()}, where)
            if sample.id != key or sample.split not in SPLITS:
                raise ShardError(
                    f"{where}: its JSON says id {sample.id!r}, split {sample.split!r}; "
                    f"it must say {key!r} and one of {', '.join(SPLITS)}"
                )
            columns["key"].append(key)
            columns["split"].append(SPLITS.index(sample.split))
            columns["task"].append(task_numbers.setdefault(sample.task, len(task_numbers)))
            columns["text_chars"].append(len(sample.text))
            dialogue.append((sample.split, sample.dialogue))
            for stream, array in sample.features.items():
                frames.setdefault(stream, {})[len(columns["target"])] = len(array)
            columns["target"].append(sample.has_target)
            columns["first_member"].append(len(columns["member_kind"]))
            for kind, (offset, data) in members.items():
                columns["member_kind"].append(kind)
                columns["member_shard"].append(number)
                columns["member_offset"].append(offset)
                columns["member_size"].append(len(data))
                columns["member_crc"].append(crc32(data))
    columns["first_member"].append(len(columns["member_kind"]))
    columns["task_names"] = list(task_numbers)
    streams = sorted(frames)
    if len(streams) > rules.MAX_STREAMS:
        raise ShardError(f"{folder}: holds {len(streams)} feature streams; at most {rules.MAX_STREAMS} are indexed")
    numbers = {codec.JSON_MEMBER: 0} | {codec.array_member(stream): n for n, stream in enumerate(streams, 1)}
    columns["member_kind"] = [numbers[kind] for kind in columns["member_kind"]]
    return Index(
        **{name: np.array(columns[name], dtype=kind) for name, kind in COLUMN_TYPES.items()},
        frames={stream: _dense(frames[stream], len(columns["key"])) for stream in streams},
        dialogue=numbered(dialogue),
    )


def numbered(dialogues: Iterable[tuple[str, str]]) -> np.ndarray:
    """The index's column ``dialogue`` from each sample's split and dialogue; an empty name is none."""
    numbers: dict[tuple[str, str], int] = {}
    found = [numbers.setdefault(pair, len(numbers)) if pair[1] else -1 for pair in dialogues]
    return np.array(found, dtype=DIALOGUE_TYPE)


def dialogues_of(folder: Path, index: Index) -> np.ndarray:
    """The column for an index of before, read from the samples' JSON, where ``index`` says that it lies.

    Raises:
        ShardError: a sample's JSON is not what the index says.
    """
    json = np.flatnonzero(index.member_kind == 0)
    columns = (index.member_shard, index.member_offset, index.member_size, index.member_crc)
    places = zip(index.key.tolist(), *(column[json].tolist() for column in columns), strict=True)
    found, opened = [], (-1, b"")
    for key, shard, offset, size, crc in progress(list(places), "reading dialogues"):
        name = folder / str(index.shard_names[shard])
        if opened[0] != shard:
            opened = shard, name.read_bytes()
        data = opened[1][offset : offset + size]
        if crc32(data) != crc:
            raise ShardError(f"{name}, sample {key!r}: its JSON has changed since it was indexed")
        said = codec.decode_json(data, f"{name}, sample {key!r}")
        found.append((str(said.get("split")), str(said.get("dialogue", ""))))
    return numbered(found)


def _dense(found: dict[int, int], samples: int) -> np.ndarray:
    """int32 ``[samples]``: the numbers of those samples that have one, else 0."""
    column = np.zeros(samples, FRAMES_TYPE)
    column[list(found)] = list(found.values())
    return column


def _walk(shard: Path) -> Iterator[tuple[str, dict[str, tuple[int, bytes]]]]:
    """Yield ``(key, {member kind: (payload offset, payload)})`` for each run of members with one key."""
    key: str | None = None
    members: dict[str, tuple[int, bytes]] = {}
    try:
        with shard.open("rb") as file, tarfile.open(shard, "r:") as tar:
            size = file.seek(0, 2)
            for info in tar:
                stem, _, kind = info.name.partition(".")
                if info.issparse() or any(name.startswith(SPARSE) for name in info.pax_headers):
                    raise ShardError(f"{shard}: member {info.name!r} is a sparse file; only plain files are allowed")
                if not info.isfile() or (kind != codec.JSON_MEMBER and codec.stream_of(kind) is None):
                    raise ShardError(f"{shard}: member {info.name!r} is none of <id>.json, <id>.<stream>.npy")
                if stem != key:
                    if key is not None:
                        yield key, members
                    key, members = stem, {}
                if kind in members:
                    raise ShardError(f"{shard}: member {info.name!r} occurs twice")
                members[kind] = (info.offset_data, _payload(file, info, size))
    except ShardError:
        raise
    # tarfile trusts the numbers of extended headers: it may run out of memory or stack, or fail to parse them.
    except (tarfile.TarError, OSError, EOFError, ValueError, ArithmeticError, MemoryError, RecursionError) as error:
        reason = foreign_file(shard) or one_line(error)
        raise ShardError(f"{shard}: not a complete, uncompressed tar file ({reason})") from error
    if key is not None:
        yield key, members


def _payload(file: IO[bytes], info: tarfile.TarInfo, end: int) -> bytes:
    """The member's bytes as they lie in the tar; ``end`` is the tar's size."""
    if info.size > MAX_MEMBER or info.offset_data + info.size > end:
        raise tarfile.ReadError(f"member {info.name!r} claims {info.size} bytes")
    file.seek(info.offset_data)
    return file.read(info.size)
