"""Indexes, arrays and tars of other people: what is wrong is one line, and nothing huge is allocated."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from egmf_shards import ShardError
from egmf_shards.format import arrays, codec, index
from egmf_shards.format.index import load_index
from egmf_shards.format.index_build import build_index
from egmf_shards.format.tar_walk import walk_tar
from egmf_shards.storage.base import Storage

Arrays = dict[str, np.ndarray]


def arrays_of(out: Path) -> Arrays:
    with np.load(out / "index.npz") as data:
        return dict(data)


def put(array: np.ndarray, at: int, value: int) -> np.ndarray:
    array = array.copy()
    array[at] = value
    return array


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text.encode() + b"\n"


def declared(shape: str, kind: str = "<f4") -> bytes:
    return header(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}")


@pytest.mark.parametrize("name", ["shard_sizes", "split", "target", "vision_frames", "member_crc"])
def test_columns_are_counted_even_where_shards_samples_and_members_are_as_many(folder, sample, name, refused):
    out = folder(samples=[sample(0, modalities=("vision",), text="", audio=None)])
    np.savez(out / "index.npz", **(arrays_of(out) | {name: arrays_of(out)[name][:0]}))
    refused(lambda: load_index(out), f"the array {name} has 0 entries, and the others [12]")


PER_MEMBER = ("member_kind", "member_shard", "member_offset", "member_size", "member_crc")
BROKEN = {
    # The first sample in the index is toy-4: json, audio and vision. The fifth, toy-2, has no audio.
    "frames, no array": (lambda a: {"audio_frames": put(a["audio_frames"], 4, 5)}, "'toy-2' has the members json"),
    "array, no frames": (
        lambda a: {"vision_frames": a["vision_frames"] * 0},
        "'toy-4' has the members .* 0 vision",
    ),
    "two json": (lambda a: {"member_kind": put(a["member_kind"], 0, 0)}, "one json, and arrays where"),
    "no json": (lambda a: {"member_kind": a["member_kind"].clip(1)}, "one json, and arrays where"),
    "16 of a kind": (
        lambda a: {"first_member": np.array([0, 17, 18]), "member_kind": np.zeros(18, np.uint8)} | first(a, 2, 18),
        "'toy-4' has the members json, json, json, json and 5 audio_frames",
    ),
    "members backwards": (lambda a: {"first_member": put(a["first_member"], 1, 2**63 - 1)}, "does not divide"),
    "offset overflows": (lambda a: {"member_offset": put(a["member_offset"], 0, 2**63 - 1)}, "behind its shard"),
    "negative size": (lambda a: {"shard_sizes": -a["shard_sizes"]}, "shard_sizes holds a negative number"),
    "a shard twice": (lambda a: {"shard_names": a["shard_names"][[0, 0, 2]]}, "a shard's name occurs twice"),
    "a key twice": (lambda a: {"key": a["key"][[0, 0, *range(2, 10)]]}, "a key occurs twice"),
    "NUL in a key": (
        lambda a: {"key": np.array(["a\0b", *a["key"][1:]])},
        r"key 'a\\x00b': an id may hold only letters",
    ),
    "a task twice": (lambda a: {"task_names": a["task_names"][[0, 0]]}, "the name of a task occurs twice"),
    "members out of order": (
        lambda a: {n: a[n][[1, 0, *range(2, len(a[n]))]] for n in PER_MEMBER},
        "a sample's members are not in the order of their places",
    ),
    "no characters": (lambda a: {"key": np.full(10, 0x110000, "<u4").view("<U1")}, "key holds something other"),
    "half a pair": (lambda a: {"task_names": np.full(2, 0xD800, "<u4").view("<U1")}, "task_names holds something"),
    "no version": (lambda a: {"version": np.array([1])}, "index version is None"),
    "matrix": (lambda a: {"split": np.zeros((5, 2), np.uint8)}, "split: its header does not fit"),
    "objects": (lambda a: {"split": np.array([{}] * 10)}, "split: its header declares object"),
}


@pytest.mark.parametrize("piece", [3, 1 << 18], ids=["in pieces", "at once"])
@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_an_index_that_does_not_hold_together(folder, sample, monkeypatch, piece, change, message, refused):
    monkeypatch.setattr(arrays, "PIECE", piece)
    out = folder(samples=[sample(i) for i in range(10)])
    columns = arrays_of(out)
    np.savez(out / "index.npz", **(columns | change(columns)))
    refused(lambda: load_index(out, check_shards=False), message)


def first(arrays: Arrays, samples: int, members: int) -> Arrays:
    """All other columns of so many samples and members, members over and over the first one."""
    per_sample = ("key", "split", "task", "text_chars", "target", "audio_frames", "vision_frames", "dialogue")
    per_member = ("member_shard", "member_offset", "member_size", "member_crc")
    return {n: arrays[n][:samples] for n in per_sample} | {n: np.repeat(arrays[n][:1], members) for n in per_member}


def archive(path: Path, method: int = zipfile.ZIP_STORED, **changed: bytes) -> None:
    """The index at ``path`` anew, with other bytes for some entries."""
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", method) as new:
        for name, data in (entries | {f"{k}.npy": v for k, v in changed.items()}).items():
            new.writestr(name, data)


def mark(path: Path, local: int, central: int, value: int) -> None:
    """Set one byte in every entry's two headers."""
    data = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        at = data.find(magic)
        while at >= 0:
            data[at + offset] = value
            at = data.find(magic, at + 4)
    path.write_bytes(data)


NOISE = random.Random(0).randbytes(4 << 20)
HARMFUL = {
    "encrypted": (lambda p: mark(p, 6, 8, 1), "is encrypted"),
    "patch data": (lambda p: mark(p, 6, 8, 0x20), "not a readable index"),
    "method": (lambda p: mark(p, 8, 10, 99), "version: compression method 99"),
    "bz2": (lambda p: archive(p, zipfile.ZIP_BZIP2), "version: compression method 12"),
    "1e12 numbers": (lambda p: archive(p, split=declared("(1000000000000,)", "|u1")), "does not fit its"),
    "open brackets": (lambda p: archive(p, split=header("(((")), "split: its header is malformed: TokenError"),
    "deep": (lambda p: archive(p, split=header("-" * 9000 + "1")), "split: its header is malformed: "),
    "bomb": (lambda p: archive(p, zipfile.ZIP_DEFLATED, key=bytes(1 << 20)), "key: 1048576 bytes from 1"),
    "all of it": (lambda p: archive(p, zipfile.ZIP_DEFLATED, key=NOISE), "its arrays declare more than 0 GiB"),
    "lacking": (lambda p: p.write_bytes(zip_of(p, "key.npy")), "it lacks key"),
    "flipped": (lambda p: p.write_bytes(flip(p, b"t\0\0\0o\0\0\0y\0\0\0")), "Bad CRC-32"),
}


@pytest.mark.parametrize(("damage", "message"), HARMFUL.values(), ids=HARMFUL)
def test_an_archive_that_does_harm(folder, monkeypatch, damage, message, refused):
    monkeypatch.setattr(arrays, "EXPANDS_FREELY", 1 << 17)
    monkeypatch.setattr(index, "MAX_UNPACKED", 2 << 20)
    out = folder()
    damage(out / "index.npz")
    refused(lambda: load_index(out), message)


def zip_of(path: Path, without: str) -> bytes:
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist() if name != without}
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as new:
        for name, content in entries.items():
            new.writestr(name, content)
    return data.getvalue()


def flip(path: Path, what: bytes) -> bytes:
    data = bytearray(path.read_bytes())
    data[data.index(what)] ^= 1
    return bytes(data)


def test_a_random_mutant_is_read_or_refused_in_one_line(folder):
    out, rng = folder(), random.Random(7)
    sound = (out / "index.npz").read_bytes()
    refusals = []
    for _ in range(300):
        data = bytearray(sound)
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.choice((rng.randrange(len(data)), rng.randrange(len(data) - 1500, len(data))))] = rng.randrange(
                256
            )
        (out / "index.npz").write_bytes(data)
        try:
            load_index(out)
        except ShardError as error:
            refusals.append(str(error))
    assert len(refusals) > 200
    assert not any("\n" in line for line in refusals)


def test_a_compressed_index_and_one_that_is_no_local_file_are_the_same(folder):
    class Remote(Storage):
        location = "memory"
        data: bytes

        def is_folder(self) -> bool:
            return True

        def read_file(self, name: str) -> bytes:
            return self.data

        def size(self, name: str) -> int:
            return len(self.data)

        sizes = view = None  # type: ignore[assignment]

    out = folder()
    plain, remote = load_index(out), Remote()
    remote.data = (out / "index.npz").read_bytes()
    assert load_index(remote, check_shards=False).content_hash == plain.content_hash
    archive(out / "index.npz", zipfile.ZIP_DEFLATED)
    packed = load_index(out)
    assert packed.content_hash == plain.content_hash
    packed.split[0] = 2
    assert packed.split[0] == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (declared("(100000000000, 74)"), "29600000000000 bytes of numbers; 0 are there"),
        (declared("(2, 3)") + bytes(20), "24 bytes of numbers; 20 are there"),
        (declared("(2, 3)") + bytes(28), "24 bytes of numbers; 28 are there"),
        (declared(f"({'9' * 18}, {'9' * 18}, {'9' * 18})"), r"more than 2\^63 bytes"),
        (declared(f"({'9' * 4000}, 74)"), "its header declares the shape"),
        (declared("(-1, 74)"), "its header declares the shape"),
        (declared("(True, 74)") + bytes(296), "its header declares the shape"),
        (declared("(2, 0)", "|O"), "its header declares object"),
        (declared("(1, 1)", "<i4") + bytes(4), "float numbers in two dimensions"),
        (declared("(2,)") + bytes(8), "float numbers in two dimensions"),
        (header("((("), "its header is malformed: TokenError"),
        (header("(" * 9000), "its header is malformed: "),
        (header("-" * 9000 + "1"), "its header is malformed: "),
        (b"\x93NUMPY\x07\x00", "its header is malformed: KeyError"),
        (b"", "its header is malformed: ValueError"),
    ],
    ids=range(15),
)
def test_a_feature_member_of_another_writer(data, message, refused):
    refused(lambda: codec.decode_array(data, "here"), f"here: .*{message}")


def test_arrays_of_every_form_are_read():
    numbers = np.arange(6, dtype=">f8").reshape(2, 3)
    for array in (numbers, np.asfortranarray(numbers), numbers.astype("<f2"), numbers[:0]):
        data = io.BytesIO()
        np.lib.format.write_array(data, array, version=(2, 0))
        found = codec.decode_array(memoryview(data.getvalue()), "here")
        assert found.dtype == np.float32
        assert found.flags.writeable
        assert np.array_equal(found, array)


def tar(path: Path, keys: dict[str, str], everywhere: dict[str, str] | None = None) -> None:
    """One small member whose PAX header (or a global one) says ``keys``."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=everywhere) as file:
        info = tarfile.TarInfo("a.json")
        info.size, info.pax_headers = 3, keys
        file.addfile(info, io.BytesIO(b"{}\n"))


@pytest.mark.parametrize(
    ("keys", "everywhere", "kind", "message"),
    [
        ({"GNU.sparse.map": "0,3", "GNU.sparse.size": str(6 << 30)}, None, "special member", "is a sparse file"),
        ({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, None, "special member", "not a complete|sparse file"),
        ({}, {"GNU.sparse.map": "0,3", "GNU.sparse.size": str(6 << 30)}, "header", "is a sparse file"),
        ({"size": str(1 << 50)}, None, "oversized member", "not a complete, uncompressed tar"),
        ({"size": "30000"}, None, "truncated", r"not a complete, .*'a\.json' claims 30000 bytes"),
        ({"size": "9" * 5000}, None, "header", "malformed"),
    ],
)
def test_sizes_that_a_tar_only_claims(tmp_path, keys, everywhere, kind, message, refused):
    tar(tmp_path / "x.tar", keys, everywhere)
    reported: list[str] = []
    walk_tar((tmp_path / "x.tar").read_bytes(), lambda kind, member, what: reported.append(kind))
    assert kind in reported
    refused(lambda: build_index(tmp_path, ["x.tar"]), message)


def test_a_comment_for_all_members_is_no_fault(tmp_path):
    tar(tmp_path / "x.tar", {}, {"comment": "made by hand"})
    reported: list[str] = []
    assert len(walk_tar((tmp_path / "x.tar").read_bytes(), lambda kind, member, what: reported.append(kind))) == 1
    assert reported == []
