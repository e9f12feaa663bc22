"""What a reader may rely on before it takes a slice: an index is a file, and anybody may have made it.

Every function says what is wrong; ``docs/shard-format.md`` says the same in words. Columns are gone through in pieces:
a hundred million samples take no more memory than a million.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np

from egmf_shards.format import rules
from egmf_shards.format.arrays import pieces, room
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
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def shard_faults(storage: Storage, index: Index, split: int | None = None) -> Iterator[str]:
    """One line for each shard that is missing or has another size than ``index`` counts on.

    Args:
        storage: the folder.
        index: its index.
        split: only the shards that samples of this split (a number of :data:`egmf_shards.format.sample.SPLITS`) lie in.
    """
    chosen = np.arange(len(index.shard_names))
    if split is not None:
        chosen = np.flatnonzero(index.facts.shard_splits & (1 << split))
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
    return (
        _dialogue_fault(index)
        or _text_fault(index)
        or _name_fault(index)
        or _number_fault(index)
        or next(filter(None, (_piece_fault(index, part) for part in index.pieces(samples))), None)
    )


def _dialogue_fault(index: Index) -> str | None:
    column = index.dialogue
    if column is None:
        return None
    if column.ndim != 1 or column.dtype.str != DIALOGUE_TYPE or len(column) != len(index.key):
        return f"the array dialogue is {column.dtype.str} {list(column.shape)}; one number for each sample is needed"
    return "the array dialogue holds a number below -1" if _extremes(index, column)[0] < -1 else None


def _extremes(index: Index, column: np.ndarray) -> tuple[int, int]:
    """The least and the largest number; of none 0 and 0."""
    found = [(int(column[part].min()), int(column[part].max())) for part in index.pieces(len(column))]
    return min((least for least, _ in found), default=0), max((most for _, most in found), default=0)


def _text_fault(index: Index) -> str | None:
    for name in ("shard_names", "task_names", "key"):
        column = getattr(index, name)
        for part in index.pieces(len(column)):
            codes = column[part].view("<u4")
            if codes.max() > 0x10FFFF or np.any((codes >= 0xD800) & (codes < 0xE000)):
                return f"the array {name} holds something other than characters"
    return None


def _name_fault(index: Index) -> str | None:
    for part in index.pieces(len(index)):
        bad = rules.first_bad_key(index.key[part])
        if bad is not None:
            key = str(index.key[part.start + bad])
            return f"key {key!r}: {rules.key_fault(key)}"
    if _key_twice(index):
        return "a key occurs twice"
    if len(set(index.task_names.tolist())) != len(index.task_names):
        return "the name of a task occurs twice"
    shards = index.shard_names.tolist()
    if len(set(shards)) != len(shards):
        return "a shard's name occurs twice"
    wrong = next((name for name in shards if not SHARD_NAME.fullmatch(name)), None)
    return None if wrong is None else f"{wrong!r} is not the name of a shard in this folder"


def _key_twice(index: Index) -> bool:
    """Equal keys have equal hashes, and equal hashes stand side by side once they are sorted.

    Eight bytes a sample, where a set of the keys would take more than a hundred. Which keys collide nobody can arrange:
    the hash is another one in every process.
    """
    salt = np.frombuffer(os.urandom(8), np.uint64) | np.uint64(1)
    hashes = room(len(index), np.uint64)
    for part in index.pieces(len(index)):
        hashes[part] = _hashes(index.key[part], salt)
    hashes.sort()
    # With the one in front of the piece.
    sorted_pieces = (hashes[max(part.start - 1, 0) : part.stop] for part in pieces(len(hashes)))
    twice = [own[1:][own[1:] == own[:-1]] for own in sorted_pieces]
    suspects = np.unique(np.concatenate(twice)) if twice else np.zeros(0, np.uint64)
    # Almost always there are none. Many at once are not the hash's chance, so the first few settle it.
    for first in range(0, len(suspects), 1000):
        seen: set[str] = set()
        for part in index.pieces(len(index)):
            keys = index.key[part]
            for key in keys[np.isin(_hashes(keys, salt), suspects[first : first + 1000])].tolist():
                if key in seen:
                    return True
                seen.add(key)
    return False


def _hashes(keys: np.ndarray, salt: np.ndarray) -> np.ndarray:
    """uint64 ``[S]``: multiplied and folded letter by letter."""
    found = np.full(len(keys), salt)
    for letters in keys.view("<u4").reshape(len(keys), -1).T:
        found = (found ^ letters) * (salt * _MULTIPLIER)
        found ^= found >> np.uint64(32)
    return found


def _number_fault(index: Index) -> str | None:
    """Numbers outside of what there is, each column by itself."""
    first, samples, members = index.first_member, len(index), len(index.member_kind)
    # Compared, not subtracted: a difference of wild numbers may overflow.
    ordered = len(first) == samples + 1 and first[0] == 0 and first[-1] == members
    if not ordered or any(np.any(first[1:][p] <= first[:-1][p]) for p in index.pieces(samples)):
        return "first_member does not divide the members among the samples"
    within = {
        "split": len(SPLITS),
        "task": len(index.task_names),
        "target": 2,
        "member_kind": len(index.kinds),
        "member_shard": len(index.shard_names),
    }
    for name, limit in within.items():
        least, most = _extremes(index, getattr(index, name))
        if len(getattr(index, name)) and not 0 <= least <= most < limit:
            return f"the array {name} points outside of the {limit} that there are"
    positive = {name: getattr(index, name) for name in ("shard_sizes", "text_chars", "member_offset", "member_size")}
    positive |= {f"{stream}_frames": column for stream, column in index.frames.items()}
    wrong = next((name for name, column in positive.items() if _extremes(index, column)[0] < 0), None)
    return None if wrong is None else f"the array {wrong} holds a negative number"


def _piece_fault(index: Index, part: slice) -> str | None:
    """What is wrong with the members of some samples."""
    first, count = index.first_member[part.start : part.stop + 1], len(index.kinds)
    lengths = np.diff(first)
    most = np.flatnonzero(lengths > count)
    if len(most):  # first of all: such a sample may claim as many members as there are
        return _said(index, part.start + int(most[0]))
    own, begins = slice(int(first[0]), int(first[-1])), first[:-1] - first[0]
    shard, offset, size = index.member_shard[own], index.member_offset[own], index.member_size[own]
    if np.any(size > index.shard_sizes[shard] - offset):
        return "a member ends behind its shard's end"
    if np.any(shard != np.repeat(shard[begins], lengths)):
        return "a sample's members lie in two shards"
    # One number a sample, four bits a kind: no count overflows, because there are no more members than kinds.
    kind = np.uint16 if count <= 4 else np.uint64
    weights = np.array([1 << 4 * number for number in range(count)], kind)
    needed = np.ones(len(lengths), kind)
    for number, frames in enumerate(index.frames.values(), 1):
        needed = needed + weights[number] * (frames[part] > 0)
    wrong = np.flatnonzero(np.add.reduceat(weights[index.member_kind[own]], begins, dtype=kind) != needed)
    if len(wrong):
        return _said(index, part.start + int(wrong[0]))
    # A sample is read as one slice, from its first member's beginning to its last one's end.
    follows = np.ones(len(shard), dtype=bool)
    follows[begins] = False
    if np.any(follows[1:] & (offset[1:] < (offset + size)[:-1])):
        return "a sample's members are not in the order of their places in the shard"
    return None


def _said(index: Index, row: int) -> str:
    """What a sample has, which is not one JSON member, and an array of a stream exactly where it has frames."""
    first, last = index.first_member[row : row + 2].tolist()
    kinds = [index.kinds[kind] for kind in index.member_kind[first:last][: len(index.kinds) + 1].tolist()]
    frames_found = ", ".join(f"{frames[row]} {stream}_frames" for stream, frames in index.frames.items())
    return (
        f"sample {str(index.key[row])!r} has the members {', '.join(kinds)} and {frames_found or 'no streams'}; one "
        "json, and arrays where there are frames alone, are needed"
    )
