"""The corruption matrix at training time: each kind of damage is named, under each policy, and no part is trained on.

``strict`` reads with errors, ``skip`` and ``quarantine`` tolerate: the sample keeps its place with weight 0.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from indexes import held_index

from egmf_shards import Sample, ShardError, ShardSet, Stream, StreamOptions
from egmf_shards.format import codec
from egmf_shards.format.index import INDEX_NAME, load_index, save_index
from egmf_shards.format.index_build import build_index

SHARD = "train-000000.tar"


def entries(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as tar:
        return [(info, handle.read() if (handle := tar.extractfile(info)) else b"") for info in tar]


def rewrite(folder: Path, items: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(folder / SHARD, "w") as tar:
        for info, data in items:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def edit_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / SHARD).write_bytes(change((folder / SHARD).read_bytes())) and None


def edit_tar(change: Callable[[list], list]) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, change(entries(folder / SHARD)))


def reindex(folder: Path) -> None:
    """As a foreign writer might: index and manifest agree with the tars, whatever these hold."""
    index = build_index(folder, [p.name for p in folder.glob("*.tar")])
    save_index(folder, index)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"index": index.content_hash}), encoding="utf-8")


def flip(data: bytes) -> bytes:
    """One bit in the middle of the first feature payload."""
    place = data.index(b"\x93NUMPY") + 140
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


def renamed(old: str, new: str) -> Callable[[list], list]:
    def change(items: list) -> list:
        for info, _ in items:
            info.name = new if info.name == old else info.name
        return items

    return change


def link(items: list) -> list:
    info = tarfile.TarInfo("toy-99.json")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return [(info, b""), *items]


def poison(folder: Path, value: float) -> None:
    items = entries(folder / SHARD)
    at = next(i for i, (info, _) in enumerate(items) if info.name == "toy-1.vision.npy")
    array = codec.decode_array(items[at][1], "x").copy()
    array[1, 2] = value
    items[at] = (items[at][0], codec.encode_array(array))
    rewrite(folder, items)
    reindex(folder)


def other_index(folder: Path) -> None:
    index = held_index(folder)
    index.member_offset[:] += 512
    index.member_size[:] = 0
    save_index(folder, index)


def other_version(folder: Path) -> None:
    with np.load(folder / INDEX_NAME) as data:
        arrays = dict(data)
    np.savez(folder / INDEX_NAME, **(arrays | {"version": np.int64(7)}))


def short_member(folder: Path) -> None:
    """An index from a program that counts a member's bytes wrongly, with a manifest that agrees."""
    index = held_index(folder)
    index.member_size[np.flatnonzero(index.member_shard == index.shard_names.tolist().index(SHARD))[1]] -= 4
    save_index(folder, index)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"index": index.content_hash}), encoding="utf-8")


# What is done; what the message must name; whether only some samples of the folder are bad (else: index or folder).
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (edit_bytes(lambda b: b[:3000]), SHARD),
    "zero-byte": (edit_bytes(lambda b: b""), SHARD),
    "garbage": (edit_bytes(lambda b: random.Random(0).randbytes(len(b))), SHARD),
    "bit-flipped": (edit_bytes(flip), SHARD),
    "interleaved": (edit_tar(lambda items: [items[0], items[3], *items[1:3], *items[4:]]), SHARD),
    "duplicate key": (edit_tar(lambda items: [items[3], *items[1:]]), SHARD),
    "../ key": (edit_tar(renamed("toy-0.json", "../toy-0.json")), SHARD),
    "link member": (edit_tar(link), SHARD),
    "oversized member": (edit_tar(lambda items: [(items[0][0], items[0][1] + b" " * 10**6), *items[1:]]), SHARD),
    "not a number": (lambda folder: poison(folder, np.nan), "member vision.npy: holds a number that is not finite"),
    "infinite": (lambda folder: poison(folder, -np.inf), "member vision.npy: holds a number that is not finite"),
    "missing shard": (lambda folder: (folder / SHARD).unlink(), SHARD),
    "index does not match": (other_index, "index and manifest do not belong together"),
    "index of another version": (other_version, "index version is 7"),
    "index with a wrong size": (short_member, "CRC32 mismatch"),
}


@pytest.fixture
def good(folder, sample) -> Path:
    """Twelve samples, eight of them for training, in shards of four."""
    return folder(samples=[sample(i) for i in range(12)], samples_per_shard=4)


def read_all(folder: Path, tolerate: bool) -> tuple[list[str], list[tuple[Sample, float]], list[str]]:
    """Faults at opening, samples with weights, reasons, of one epoch on two ranks."""
    shards = ShardSet.open([folder], "train", tolerate=tolerate)
    found: list[tuple[Sample, float]] = []
    reasons: list[str] = []
    for rank in (0, 1):
        shape = {"seed": 0, "global_batch": len(shards), "micro_batch": 3, "rank": rank, "world": 2}
        for batch in Stream(shards, options=StreamOptions(tolerate=tolerate), **shape).read(0):
            found += zip(batch.samples, batch.weights, strict=True)
            reasons += [bad.reason for bad in batch.bad]
    return shards.faults, found, reasons


@pytest.mark.parametrize("name", DAMAGE)
def test_strict_stops_and_names_it(good, name):
    change, named = DAMAGE[name]
    change(good)
    if name == "../ key":  # the payloads and the file's size are as they were: what is read is what was indexed
        assert len(read_all(good, tolerate=False)[1]) == 8
        with pytest.raises(ShardError, match=r"\.\./toy-0\.json"):
            build_index(good, [SHARD])
        return
    with pytest.raises(ShardError) as caught:
        read_all(good, tolerate=False)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", DAMAGE)
def test_tolerance_names_it_and_trains_on_whole_samples_only(good, name, equal):
    truth = {s.id: s for s in ShardSet.open([good], "train")}
    change, named = DAMAGE[name]
    change(good)
    if named.startswith("index"):
        with pytest.raises(ShardError, match=named):  # nothing can be known about such a folder
            read_all(good, tolerate=True)
        return
    faults, found, reasons = read_all(good, tolerate=True)
    assert len(found) == 8
    assert {s.id for s, _ in found} == truth.keys(), "a bad sample keeps its place and is never replaced"
    for one, weight in found:
        if weight:
            assert equal(one, truth[one.id])
        else:
            assert one.modalities == ()
            assert not one.features
    assert len(reasons) == sum(weight == 0 for _, weight in found)
    if name != "../ key":
        assert any(named in line for line in [*faults, *reasons]), (faults, reasons)
    assert all("\n" not in line for line in [*faults, *reasons])


@pytest.mark.parametrize("name", ["truncated", "zero-byte", "garbage", "bit-flipped", "missing shard", "not a number"])
def test_some_are_bad_and_the_rest_is_read(good, name):
    """The other shard's four samples at least come through; the damaged one's are not all good."""
    DAMAGE[name][0](good)
    _, found, reasons = read_all(good, tolerate=True)
    assert sum(weight for _, weight in found) >= 4
    assert reasons


def test_two_hundred_flipped_bits_are_two_hundred_bad_samples(good):
    """Any single bit of any payload, wherever it lies: the reader names its sample, and only that."""
    index, shards = load_index(good), ShardSet.open([good], "train")
    keys = {key: i for i, key in enumerate(shards.key(i) for i in range(len(shards)))}
    members = np.repeat(np.arange(len(index)), np.diff(index.first_member))
    names = index.shard_names.tolist()
    rng = random.Random(5)
    mine = [m for m in range(len(members)) if str(index.key[members[m]]) in keys]
    for _ in range(200):
        m = rng.choice(mine)
        key, path = str(index.key[members[m]]), good / names[index.member_shard[m]]
        place = int(index.member_offset[m]) + rng.randrange(int(index.member_size[m]))
        data = bytearray(path.read_bytes())
        data[place] ^= 1 << rng.randrange(8)
        copy = good.parent / "flipped"
        shutil.copytree(good, copy)
        (copy / path.name).write_bytes(data)
        packed = ShardSet.open([copy], "train").read(range(len(shards)), tolerate=True)
        shutil.rmtree(copy)
        assert [(bad.key, bad.index, bad.place) for bad in packed.bad] == [(key, keys[key], keys[key])]
        assert f"sample {key!r}" in packed.bad[0].reason


def test_packed_arrays_have_no_gaps_after_a_bad_sample(good, equal):
    truth = list(ShardSet.open([good], "train"))
    DAMAGE["bit-flipped"][0](good)
    packed = ShardSet.open([good], "train").read([0, 1, 2, 3, 4, 5, 0], tolerate=True)
    assert {bad.key for bad in packed.bad} == {"toy-0"}
    assert [bad.place for bad in packed.bad] == [0, 6]
    assert [own.stream for own in packed.features] == ["audio", "vision"]
    for (modality, _), rows in packed.features.items():
        frames = packed.frames[modality, rows.shape[1]]
        assert frames.sum() == len(rows)
        parts = np.split(rows, np.cumsum(frames)[:-1])
        for part, one in zip(parts[1:6], truth[1:6], strict=True):
            own = one.features.get(modality)
            assert np.array_equal(part, np.zeros_like(part) if own is None else own)
    assert all(equal(a, b) for a, b in zip(packed.samples[1:6], truth[1:6], strict=True))


def test_a_huge_finite_number_is_no_infinity(good):
    """The cheap test of finiteness overflows here; the exact one behind it must not cry wolf."""
    poison(good, 3e38)
    _, found, reasons = read_all(good, tolerate=True)
    assert reasons == []
    assert all(weight == 1 for _, weight in found)
