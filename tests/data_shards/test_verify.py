"""Verification names every kind of damage by shard, key and member, and no single flipped bit of a tar escapes it."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from indexes import held_index

from egmf_shards import ShardError
from egmf_shards.check.verify import CAP, Report, print_report, verify
from egmf_shards.format import codec
from egmf_shards.format.index import load_index, save_index
from egmf_shards.format.index_build import build_index
from egmf_shards.format.tar_walk import walk_tar

TRAIN = "train-000000.tar"
Entry = tuple[tarfile.TarInfo, bytes]


@pytest.fixture
def good(folder, sample) -> Path:
    """Ten samples: train 6, valid 2, test 2."""
    return folder(samples=[sample(i) for i in range(10)])


def entries(path: Path) -> list[Entry]:
    with tarfile.open(path) as tar:
        return [(info, handle.read() if (handle := tar.extractfile(info)) else b"") for info in tar]


def rewrite(path: Path, items: list[Entry]) -> None:
    with tarfile.open(path, "w") as tar:
        for info, data in items:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def plain(name: str, data: bytes = b"") -> Entry:
    return tarfile.TarInfo(name), data


def replace(member: str, change: Callable[[bytes], bytes]) -> Callable[[list[Entry]], list[Entry]]:
    return lambda items: [(i, change(d) if i.name == member else d) for i, d in items]


def edit(member: str, **changes: object) -> Callable[[list[Entry]], list[Entry]]:
    """Change fields of a sample's JSON; None removes one."""

    def change(data: bytes) -> bytes:
        fields = json.loads(data) | changes
        return json.dumps({k: v for k, v in fields.items() if v is not None}).encode()

    return replace(member, change)


def kinds_at(report: Report, kind: str) -> list[tuple[str, str, str]]:
    return [(p.shard, p.key, p.member) for p in report.problems if p.kind == kind]


def test_a_good_folder_is_sound(good, capsys):
    report = verify(good)
    assert report.ok
    assert report.problems == []
    assert report.notes == []
    assert (report.shards, report.samples, report.members) == (3, 10, 27)
    assert report.bytes == sum(p.stat().st_size for p in good.glob("*.tar"))
    assert print_report(report) == 0
    assert "10 samples" in capsys.readouterr().out


# What is done to the file, the kind of problem, and the member it must name.
FILE: dict[str, tuple[Callable[[bytes], bytes], str, str]] = {
    "truncated in a payload": (lambda b: b[:1700], "truncated", "toy-0.json"),
    "truncated in a header": (lambda b: b[:1100], "truncated", ""),
    "truncated in the end": (lambda b: b.rstrip(b"\0") + bytes(600 - len(b.rstrip(b"\0")) % 512), "truncated", ""),
    "zero-byte": (lambda b: b"", "empty file", ""),
    "garbage": (lambda b: random.Random(0).randbytes(len(b)), "header", ""),
    "text": (lambda b: b"not a tar\n" * 200, "header", ""),
    "tail": (lambda b: b + b"x" * 512, "padding", ""),
}


@pytest.mark.parametrize("name", FILE)
def test_a_damaged_file_is_named(good, name):
    change, kind, member = FILE[name]
    path = good / TRAIN
    path.write_bytes(change(path.read_bytes()))
    report = verify(good)
    assert (TRAIN, "", member) in kinds_at(report, kind), list(map(str, report.problems))
    assert {p.shard for p in report.problems} == {TRAIN}, "the other shards are sound, and are read all the same"
    assert report.shards == 3


def link(items: list[Entry]) -> list[Entry]:
    info = tarfile.TarInfo("toy-99.json")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return [*items, (info, b"")]


def directory(items: list[Entry]) -> list[Entry]:
    info = tarfile.TarInfo("folder")
    info.type = tarfile.DIRTYPE
    return [(info, b""), *items]


def interleaved(items: list[Entry]) -> list[Entry]:
    """A member of toy-1 between the first two of toy-0."""
    return [items[0], items[3], *items[1:3], *items[4:]]


NAN = codec.encode_array(np.full((2, 3), np.nan, np.float32))
WIDE = codec.encode_array(np.ones((2, 9), np.float32))
# numpy would be asked for 144 TB; the header keeps its length.
HUGE = WIDE.replace(b"(2, 9), }" + b" " * 12, b"(2000000000000, 9), }").replace(b"<f4", b"<f8")
PICKLE = io.BytesIO()
np.save(PICKLE, np.array([[None]]), allow_pickle=True)

# What is done to the members, and the problem that it must be: kind, key, member.
MEMBERS: dict[str, tuple[Callable[[list[Entry]], list[Entry]], str, str, str]] = {
    "interleaved": (interleaved, "interleaved", "toy-0", "json"),
    "duplicate key": (lambda items: [*items, *items[:3]], "duplicate key", "toy-0", "json"),
    "../ key": (lambda items: [*items, plain("../evil.json")], "unsafe name", "", "../evil.json"),
    "absolute": (lambda items: [*items, plain("/etc/evil.json")], "unsafe name", "", "/etc/evil.json"),
    "link": (link, "link member", "", "toy-99.json"),
    "folder": (directory, "special member", "", "folder/"),
    "unknown member": (lambda items: [*items, plain("toy-0.mp4")], "unknown member", "", "toy-0.mp4"),
    "no json": (lambda items: [items[0], *items[2:]], "no json", "toy-0", ""),
    "member that is not indexed": (lambda items: [*items, plain("toy-77.json", b"{}")], "index", "toy-77", "json"),
    "member lost": (lambda items: items[:-1], "index", "toy-7", "vision.npy"),
    "moved": (lambda items: items[3:] + items[:3], "index", "toy-0", "json"),
    "other bytes": (edit("toy-0.json", text="other"), "crc", "toy-0", "json"),
    "not finite": (replace("toy-0.vision.npy", lambda b: NAN), "not finite", "toy-0", "vision.npy"),
    "width": (replace("toy-0.vision.npy", lambda b: WIDE), "width", "toy-0", "vision.npy"),
    "pickle": (replace("toy-0.vision.npy", lambda b: PICKLE.getvalue()), "features", "toy-0", "vision.npy"),
    "enormous shape": (replace("toy-0.vision.npy", lambda b: HUGE), "features", "toy-0", "vision.npy"),
    "half an array": (replace("toy-0.vision.npy", lambda b: b[:-4]), "features", "toy-0", "vision.npy"),
    "no JSON": (replace("toy-0.json", lambda b: b"{"), "schema", "toy-0", "json"),
    "nested JSON": (replace("toy-0.json", lambda b: b"[" * 100_000), "schema", "toy-0", "json"),
    "label": (edit("toy-0.json", label="great"), "schema", "toy-0", ""),
    "value": (edit("toy-0.json", task="score", label=None, value=7), "schema", "toy-0", ""),
    "task": (edit("toy-0.json", task="joy"), "schema", "toy-0", ""),
    "language": (edit("toy-0.json", language="fr"), "schema", "toy-0", ""),
    "split": (edit("toy-0.json", split="dev"), "schema", "toy-0", ""),
    "other data set": (edit("toy-0.json", dataset="else"), "schema", "toy-0", ""),
    "other id": (edit("toy-0.json", id="toy-5"), "schema", "toy-0", "json"),
    "field lacking": (edit("toy-0.json", language=None), "schema", "toy-0", "json"),
    "field of another type": (edit("toy-0.json", turn="3"), "schema", "toy-0", "json"),
    "field unknown": (edit("toy-0.json", mood=1), "schema", "toy-0", "json"),
    "context": (edit("toy-0.json", context=[["Ann"]]), "schema", "toy-0", "json"),
    "modality not declared": (edit("toy-0.json", modalities=["text"]), "schema", "toy-0", "json"),
}
SEEN_BY_INDEX = {"member that is not indexed", "member lost", "moved", "other bytes"}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_bad_member_is_named(good, name):
    change, kind, key, member = MEMBERS[name]
    rewrite(good / TRAIN, change(entries(good / TRAIN)))
    if name not in SEEN_BY_INDEX:
        # Damage that an index does not contradict, as if it had been there from the start.
        (good / "index.npz").unlink()
    report = verify(good)
    assert (TRAIN, key, member) in kinds_at(report, kind), list(map(str, report.problems))
    assert not any("\n" in str(p) for p in report.problems)
    assert print_report(report) == 1


def test_an_oversized_member_is_refused_unread(good):
    info = tarfile.TarInfo("toy-99.json")
    info.size = 1 << 34
    data = (good / TRAIN).read_bytes().rstrip(b"\0")
    data += bytes(-len(data) % 512)
    (good / TRAIN).write_bytes(data + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert (TRAIN, "", "toy-99.json") in kinds_at(verify(good), "oversized member")


def test_the_walk_goes_on_behind_a_damaged_header(good):
    data = bytearray((good / TRAIN).read_bytes())
    data[0] ^= 1
    (good / TRAIN).write_bytes(data)
    report = verify(good)
    assert kinds_at(report, "header") == [(TRAIN, "", "")]
    assert kinds_at(report, "index") == [(TRAIN, "toy-0", "audio.npy")]
    assert report.members == 26


def test_shards_that_are_missing_or_too_many(good):
    (good / TRAIN).rename(good / "stray.tar")
    shutil.copy(good / "valid-000000.tar", good / "-v.tar")
    report = verify(good)
    assert kinds_at(report, "missing shard") == [(TRAIN, "", "")]
    assert ("stray.tar", "", "") in kinds_at(report, "index")
    assert kinds_at(report, "shard name") == [("-v.tar", "", "")]
    # The shards stand in the order of their names: the copy comes first, then what it is a copy of.
    assert kinds_at(report, "duplicate key") == [("valid-000000.tar", f"toy-{i}", "") for i in (3, 8)]


def test_an_index_of_other_shards(good, folder, sample):
    other = folder("other", samples=[sample(i) for i in range(10, 20)])
    shutil.copy(other / "index.npz", good / "index.npz")
    report = verify(good)
    assert kinds_at(report, "index")[0] == ("index.npz", "", "")
    assert (TRAIN, "toy-0", "json") in kinds_at(report, "index")
    assert (TRAIN, "toy-10", "json") in kinds_at(report, "index")


def test_an_index_that_lies_about_a_sample(good):
    index = held_index(good)
    index.frames["audio"][0] += 1
    save_index(good, index)
    manifest = json.loads((good / "manifest.json").read_text(encoding="utf-8"))
    (good / "manifest.json").write_text(json.dumps(manifest | {"index": index.content_hash}), encoding="utf-8")
    key = str(index.key[0])
    claimed = int(index.frames["audio"][0])
    what = f"audio_frames is {claimed - 1}; the index says {claimed}"
    assert [(p.key, p.what) for p in verify(good).problems] == [(key, what)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: {"version": np.int64(9)}, "index version is 9"),
        (lambda arrays: {"split": arrays["split"][1:]}, "the array split has 9 entries, and the others 10"),
        (lambda arrays: {"member_shard": arrays["member_shard"] + 3}, "member_shard points outside"),
    ],
)
def test_an_index_of_another_version_or_form(good, change, message):
    with np.load(good / "index.npz") as data:
        arrays = dict(data)
    np.savez(good / "index.npz", **(arrays | change(arrays)))
    report = verify(good)
    assert [p.kind for p in report.problems] == ["index"]
    assert message in str(report.problems[0])
    assert report.members == 27, "the tars are read without an index, too"


def test_an_index_that_is_no_zip_file(good):
    (good / "index.npz").write_bytes(b"PK")
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(good / "index.npz")
    assert str(verify(good).problems[0]).startswith("index.npz: index: not a readable index")


def test_a_manifest_that_miscounts(good):
    manifest = json.loads((good / "manifest.json").read_text(encoding="utf-8"))
    manifest["splits"]["train"]["labels"]["mood"]["good"] += 1
    manifest["statistics"]["audio"]["mean"][2] += 0.5
    manifest["shards"][0]["samples"] = 9
    manifest["languages"] = ["en", "zh"]
    (good / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    found = [str(p) for p in verify(good).problems]
    assert len(found) == 4
    places = ("languages", "splits.train.labels.mood.good", "statistics.audio.mean[2]", "shards[0].samples")
    for line, place in zip(found, places, strict=True):
        assert line.startswith(f"manifest.json: manifest: {place} is ")


@pytest.mark.parametrize("text", ["{", "{}", '{"schema": 1}'])
def test_a_broken_manifest_is_one_problem(good, text):
    (good / "manifest.json").write_text(text, encoding="utf-8")
    report = verify(good)
    assert [p.shard for p in report.problems] == ["manifest.json"]
    assert report.members == 27


def test_ids_in_two_splits_are_leakage_and_equal_texts_a_note(good):
    """The same id in two shards: refused by the writer and the index, so the copy is made behind their backs."""
    items = edit("toy-0.json", split="test")(entries(good / TRAIN)[:3])
    rewrite(good / "test-000009.tar", items)
    (good / "index.npz").unlink()
    report = verify(good)
    assert (TRAIN, "toy-0", "") in kinds_at(report, "leakage")
    rewrite(good / "test-000009.tar", [plain(i.name.replace("toy-0", "toy-new"), d) for i, d in items])
    renamed = edit("toy-new.json", id="toy-new")(entries(good / "test-000009.tar"))
    rewrite(good / "test-000009.tar", renamed)
    again = verify(good)
    assert not kinds_at(again, "leakage")
    assert "1 texts occur with the same answer in train and test" in again.notes


def test_problems_are_capped_and_all_counted(tmp_path):
    report = Report(tmp_path)
    for i in range(CAP + 5):
        report.add("crc", TRAIN, f"toy-{i}", "json", "x")
    assert (len(report.problems), report.counts["crc"], report.ok) == (CAP, CAP + 5, False)


def test_no_such_folder(tmp_path):
    with pytest.raises(ShardError, match="no such folder"):
        verify(tmp_path / "none")


def flips(folder: Path, count: int, seed: int) -> list[tuple[str, int, bool]]:
    """Flip one random bit at a time over all tars; (shard, byte, whether anything but the shard's hash saw it)."""
    rng, found = random.Random(seed), []
    paths = sorted(folder.glob("*.tar"))
    for _ in range(count):
        path = rng.choices(paths, [p.stat().st_size for p in paths])[0]
        data = path.read_bytes()
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
        report = verify(folder)
        assert not report.ok, f"{path.name}, byte {at}"
        assert {p.shard for p in report.problems} == {path.name}
        found.append((path.name, at, set(report.counts) != {"hash"}))
        path.write_bytes(data)
    assert verify(folder).ok
    return found


def test_200_flipped_bits_200_found_even_without_the_hash(good):
    manifest = json.loads((good / "manifest.json").read_text(encoding="utf-8"))
    assert all(len(shard.pop("sha256")) == 64 for shard in manifest["shards"])
    (good / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert len(flips(good, 200, seed=5)) == 200
    assert "no SHA-256" in verify(good).notes[0]


def test_every_bit_of_a_header_and_of_the_end_counts(good):
    """No sampling where the CRC does not reach: one member's header, its padding, and the end of the archive."""
    path = good / "valid-000000.tar"
    data = path.read_bytes()
    index = load_index(good)
    shard = index.shard_names.tolist().index(path.name)
    first = np.flatnonzero(index.member_shard == shard)[0]
    payload = range(int(index.member_offset[first]), int(index.member_offset[first] + index.member_size[first]))
    ends = [b for b in (*range(0, 1024), *range(len(data) - 40, len(data))) if b not in payload]
    for at in ends:
        for bit in range(8):
            reported: list[str] = []
            broken = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            walk_tar(broken, lambda kind, member, what, reported=reported: reported.append(kind))
            assert reported, f"byte {at}, bit {bit}"


def test_flips_in_pax_records_are_found_by_the_hash(folder, sample):
    """A PAX record's body has no checksum in the tar: here each member has one, for a fraction of a second."""
    out = folder(samples=[sample(0)])
    items = entries(out / TRAIN)
    for info, _ in items:
        info.mtime = 123.456789
    with tarfile.open(out / TRAIN, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in items:
            tar.addfile(info, io.BytesIO(data))
    index = build_index(out, [TRAIN])
    save_index(out, index)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    raw = (out / TRAIN).read_bytes()
    manifest["shards"][0] |= {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (out / "manifest.json").write_text(json.dumps(manifest | {"index": index.content_hash}), encoding="utf-8")
    at = raw.index(b"123.456789")
    (out / TRAIN).write_bytes(raw[:at] + b"9" + raw[at + 1 :])
    assert [p.kind for p in verify(out).problems] == ["hash"]
    (out / TRAIN).write_bytes(raw)
    assert verify(out).ok
    assert len(flips(out, 40, seed=1)) == 40
