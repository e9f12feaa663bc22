"""What a reader may rely on before it takes a slice: an index is a file, and anybody may have made it.

Every function says what is wrong; ``docs/shard-format.md`` says the same in words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np

from egmf_shards.format import rules
from egmf_shards.format.sample import SPLITS
from egmf_shards.storage.base import Storage

if TYPE_CHECKING:
    from egmf_shards.format.index import Index

SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.tar")
COLUMN_TYPES = {
    "shard_names": "<U", "shard_sizes": "<i8", "task_names": "<U", "key": "<U", "split": "|u1", "task": "<i4",
    "text_chars": "<i4", "target": "|u1", "first_member": "<i8", "member_kind": "|u1", "member_shard": "<i4",
    "member_offset": "<i8", "member_size": "<i8", "member_crc": "<u4",
}  # fmt: skip
"""The numpy type of each column that every index has; ``<U`` of any length. The streams' frames are ``FRAMES_TYPE``."""
FRAMES_TYPE = "<i4"
DIALOGUE_TYPE = "<i4"


def shard_faults(storage: Storage, index: Index, split: int | None = None) -> Iterator[str]:
    """One line for each shard that is missing or has another size than ``index`` counts on.

    Args:
        storage: the folder.
        index: its index.
        split: only the shards that samples of this split (a number of :data:`egmf_shards.format.sample.SPLITS`) lie in.
    """
    chosen = np.arange(len(index.shard_names))
    if split is not None:
        chosen = np.unique(index.member_shard[np.repeat(index.split == split, np.diff(index.first_member))])
    names, sizes = index.shard_names[chosen].tolist(), index.shard_sizes[chosen].tolist()
    found = storage.sizes(names)
    for name, size in zip(names, sizes, strict=True):
        if name not in found:
            yield f"{storage.where(name)}: the shard is missing; the index counts on {size} bytes"
        elif found[name] not in (size, None):
            yield f"{storage.where(name)}: {found[name]} bytes, but the index counts on {size}: truncated or replaced"


def tasks_fault(index: Index, tasks: Collection[str]) -> str | None:
    """A task that the index names and the manifest lacks; None where there is none."""
    unknown = sorted(set(index.task_names.tolist()) - set(tasks))
    return f"the index names task {unknown[0]!r}, which the manifest lacks" if unknown else None


def structure_fault(index: Index) -> str | None:
    """What a reader must be able to rely on before it takes a slice; None where all of it holds."""
    shards, samples, members = len(index.shard_names), len(index.key), len(index.member_kind)
    columns = {name: (getattr(index, name), kind) for name, kind in COLUMN_TYPES.items()}
    frames = {f"{stream}_frames": column for stream, column in index.frames.items()}
    for name, (column, kind) in (columns | {name: (column, FRAMES_TYPE) for name, column in frames.items()}).items():
        if column.ndim != 1 or not column.dtype.str.startswith(kind):
            return f"the array {name} is {column.dtype.str} in {column.ndim} dimensions"
    lengths = (  # no dictionary by length: two of the three may be equal
        (shards, ("shard_sizes",)),
        (samples, ("split", "task", "text_chars", "target")),
        (members, ("member_shard", "member_offset", "member_size", "member_crc")),
    )
    counts = [(name, len(getattr(index, name)), length) for length, names in lengths for name in names]
    for name, found, length in [*counts, *((name, len(column), samples) for name, column in frames.items())]:
        if found != length:
            return f"the array {name} has {found} entries, and the others {length}"
    fault = _dialogue_fault(index)
    if fault:
        return fault
    for name in ("shard_names", "task_names", "key"):
        codes = getattr(index, name).view("<u4")
        if len(codes) and (codes.max() > 0x10FFFF or np.any((codes >= 0xD800) & (codes < 0xE000))):
            return f"the array {name} holds something other than characters"
    wrong = rules.first_bad_key(index.key)
    if wrong is not None:
        return f"key {str(index.key[wrong])!r}: {rules.key_fault(str(index.key[wrong]))}"
    if len(set(index.key.tolist())) != samples:
        return "a key occurs twice"
    if len(set(index.task_names.tolist())) != len(index.task_names):
        return "the name of a task occurs twice"
    if len(set(index.shard_names.tolist())) != shards:
        return "a shard's name occurs twice"
    for name in index.shard_names.tolist():
        if not SHARD_NAME.fullmatch(name):
            return f"{name!r} is not the name of a shard in this folder"
    first = index.first_member
    # Compared, not subtracted: a difference of wild numbers may overflow.
    if len(first) != samples + 1 or first[0] != 0 or first[-1] != members or np.any(first[1:] <= first[:-1]):
        return "first_member does not divide the members among the samples"
    within = {
        "split": len(SPLITS),
        "task": len(index.task_names),
        "target": 2,
        "member_kind": len(index.kinds),
        "member_shard": shards,
    }
    for name, limit in within.items():
        column = getattr(index, name)
        if len(column) and not 0 <= int(column.min()) <= int(column.max()) < limit:
            return f"the array {name} points outside of the {limit} that there are"
    positive = ("shard_sizes", "text_chars", "member_offset", "member_size")
    for name, column in ({name: getattr(index, name) for name in positive} | frames).items():
        if len(column) and column.min() < 0:
            return f"the array {name} holds a negative number"
    if members:
        if np.any(index.member_size > index.shard_sizes[index.member_shard] - index.member_offset):
            return "a member ends behind its shard's end"
        if np.any(index.member_shard != np.repeat(index.member_shard[first[:-1]], np.diff(first))):
            return "a sample's members lie in two shards"
    return _members_fault(index) or _order_fault(index)


def _dialogue_fault(index: Index) -> str | None:
    column = index.dialogue
    if column is None:
        return None
    if column.ndim != 1 or column.dtype.str != DIALOGUE_TYPE or len(column) != len(index.key):
        return f"the array dialogue is {column.dtype.str} {list(column.shape)}; one number for each sample is needed"
    return "the array dialogue holds a number below -1" if len(column) and column.min() < -1 else None


def _order_fault(index: Index) -> str | None:
    """A sample is read as one slice, from its first member's beginning to its last one's end."""
    follows = np.ones(len(index.member_kind), dtype=bool)
    follows[index.first_member[:-1]] = False
    ends = index.member_offset + index.member_size
    if np.any(follows[1:] & (index.member_offset[1:] < ends[:-1])):
        return "a sample's members are not in the order of their places in the shard"
    return None


def _members_fault(index: Index) -> str | None:
    """Each sample has one JSON member, and an array of a stream exactly where it has frames."""
    first, count = index.first_member, len(index.kinds)
    if not len(index):
        return None
    # One number a sample, four bits a kind: no count overflows, because more members than kinds are refused first.
    size = np.uint16 if count <= 4 else np.uint64
    weights = np.array([1 << 4 * kind for kind in range(count)], size)
    needed = np.ones(len(index), size)
    for number, frames in enumerate(index.frames.values(), 1):
        needed = needed + weights[number] * (frames > 0)
    found = np.add.reduceat(weights[index.member_kind], first[:-1], dtype=size)
    wrong = np.flatnonzero((found != needed) | (np.diff(first) > count))
    if not len(wrong):
        return None
    row = int(wrong[0])
    kinds = [index.kinds[kind] for kind in index.member_kind[first[row] : first[row + 1]].tolist()[: count + 1]]
    frames_found = ", ".join(f"{frames[row]} {stream}_frames" for stream, frames in index.frames.items())
    return (
        f"sample {str(index.key[row])!r} has the members {', '.join(kinds)} and {frames_found or 'no streams'}; one "
        "json, and arrays where there are frames alone, are needed"
    )
