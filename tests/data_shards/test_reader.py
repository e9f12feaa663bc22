"""Reading: equal to plain webdataset; every kind of damage and every bad combination of folders is one clear line."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from egmf_shards import Sample, ShardError, ShardSet, Task
from egmf_shards.format.index import load_index
from egmf_shards.format.index_build import build_index


def train_shards(out: Path) -> list[str]:
    return [str(p) for p in sorted(out.glob("train-*.tar"))]


def test_plain_webdataset_reads_the_same(folder, equal):
    out = folder()
    plain = list(webdataset.WebDataset(train_shards(out), shardshuffle=False).decode())
    ours = ShardSet.open([out], "train")
    assert len(plain) == len(ours) == 18
    for theirs, mine in zip(plain, ours, strict=True):
        arrays = {m: theirs[f"{m}.npy"] for m in ("audio", "vision") if f"{m}.npy" in theirs}
        assert theirs["__key__"] == mine.id
        assert equal(Sample.from_json(theirs["json"], arrays, mine.id), mine)


def test_offsets_are_the_payloads(folder):
    out = folder()
    index = load_index(out)
    for m in range(len(index.member_kind)):
        shard = (out / str(index.shard_names[index.member_shard[m]])).read_bytes()
        start, size = int(index.member_offset[m]), int(index.member_size[m])
        assert zlib.crc32(shard[start : start + size]) == index.member_crc[m]
    assert index.frames["audio"].tolist() == [len(s.features.get("audio", ())) for s in _all(out, index)]
    assert index.text_chars.tolist() == [len(s.text) for s in _all(out, index)]


def _all(out: Path, index) -> list[Sample]:
    samples = {s.id: s for split in ("train", "valid", "test") for s in ShardSet.open([out], split)}
    return [samples[key] for key in index.key.tolist()]


def test_members_behind_pax_headers_are_found(folder, sample, equal):
    """A name too long for a plain tar header is carried by a PAX header in front of it."""
    long = [sample(i, id=f"toy-{i}-" + "x" * 150, split="train") for i in range(3)]
    out = folder(samples=long)
    with tarfile.open(out / "train-000000.tar") as tar:
        assert any(info.pax_headers for info in tar)
    assert all(equal(a, b) for a, b in zip(ShardSet.open([out], "train"), long, strict=True))


def test_a_shard_of_somebody_else_can_be_indexed(folder):
    """The index is built from the tar alone; here every member has a PAX header, for a fraction of a second."""
    out = folder()
    with tarfile.open(out / "valid-000000.tar") as tar:
        members = {info.name: tar.extractfile(info).read() for info in tar}
    with tarfile.open(out / "foreign.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 123.5
            tar.addfile(info, io.BytesIO(data))
    index, raw = build_index(out, ["foreign.tar"]), (out / "foreign.tar").read_bytes()
    payloads = [raw[o : o + n] for o, n in zip(index.member_offset.tolist(), index.member_size.tolist(), strict=True)]
    assert payloads == list(members.values())
    assert index.key.tolist() == [s.id for s in ShardSet.open([out], "valid")]


@pytest.mark.parametrize("member", ["json", "audio.npy", "vision.npy"])
def test_a_flipped_bit_names_shard_sample_and_member(folder, member):
    out = folder()
    shard = out / "train-000001.tar"
    with tarfile.open(shard) as tar:
        info = next(i for i in tar if i.name.endswith(member))
    data = bytearray(shard.read_bytes())
    data[info.offset_data + info.size - 2] ^= 1
    shard.write_bytes(data)
    shards = ShardSet.open([out], "train")
    key = info.name.partition(".")[0]
    damaged = next(i for i in range(len(shards)) if shards.key(i) == key)
    with pytest.raises(ShardError, match=f"train-000001.tar: sample '{key}', member {member}: .*CRC32 mismatch"):
        shards[damaged]
    shards[damaged - 1]


def test_a_truncated_or_missing_shard_is_refused_at_once(folder):
    out = folder()
    shard = out / "train-000000.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:-512])
    with pytest.raises(ShardError, match="truncated or replaced"):
        ShardSet.open([out], "train")
    shard.unlink()
    with pytest.raises(ShardError, match="the shard is missing"):
        ShardSet.open([out], "train")


def test_bad_folders_and_splits(tmp_path, folder, sample):
    out = folder()
    only_train = folder("only-train", [sample(0)])
    (tmp_path / "empty").mkdir()
    shutil.copytree(out, tmp_path / "copy")
    for folders, split, message in [
        ([], "train", "no folder of shards is given"),
        (out, "train", "a list of folders is needed"),
        ([tmp_path / "nowhere"], "train", "there is no such folder"),
        ([tmp_path / "empty"], "train", "holds no manifest.json"),
        ([out], "dev", "one of train, valid, test"),
        ([out, only_train], "test", "only-train: its split 'test' is empty; it holds train"),
        ([out, out], "train", "the same shards"),
        ([out, tmp_path / "copy"], "train", "the same shards"),
    ]:
        with pytest.raises(ShardError, match=message) as caught:
            ShardSet.open(folders, split)
        assert "\n" not in str(caught.value)


def test_damaged_index_and_manifest(folder, sample):
    out, other = folder(), folder("other", [sample(0), sample(1)])
    manifest, index = (out / "manifest.json").read_text(encoding="utf-8"), (out / "index.npz").read_bytes()

    def not_opened(message: str) -> None:
        with pytest.raises(ShardError, match=message):
            ShardSet.open([out], "train")

    (out / "index.npz").write_bytes(index[: len(index) // 2])
    not_opened("not a readable index")
    (out / "index.npz").unlink()
    not_opened("holds no index.npz")
    with np.load(io.BytesIO(index)) as columns:
        np.savez(out / "index.npz", **(dict(columns) | {"version": np.int64(99)}))
        not_opened("index version is 99; this version reads 1 and 2")
        np.savez(out / "index.npz", **(dict(columns) | {"member_offset": columns["member_offset"] + 512}))
        not_opened("do not belong together")
        names = columns["shard_names"].astype("<U40")
        names[0] = "../toy/test-000000.tar"
        np.savez(out / "index.npz", **(dict(columns) | {"shard_names": names}))
        not_opened("is not the name of a shard")
    (out / "index.npz").write_bytes(index)
    (out / "manifest.json").write_text(manifest[:-10], encoding="utf-8")
    not_opened("not a readable JSON file")
    (out / "manifest.json").write_text(manifest.replace('"schema": 2', '"schema": 3'), encoding="utf-8")
    not_opened("schema is 3; this version reads 1 and 2")
    without = {k: v for k, v in json.loads(manifest).items() if k != "tasks"}
    (out / "manifest.json").write_text(json.dumps(without), encoding="utf-8")
    not_opened("lacks tasks")
    shutil.copy(other / "manifest.json", out / "manifest.json")
    not_opened("do not belong together")
    (out / "manifest.json").write_text(manifest, encoding="utf-8")
    assert len(ShardSet.open([out], "train")) == 18


def _tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_what_the_index_refuses(tmp_path, sample):
    def text(one: Sample) -> bytes:
        return json.dumps(one.to_json()).encode()

    a = sample(0, modalities=("text",), audio=None, vision=None)
    b = replace(a, id="toy-b")
    pickled = io.BytesIO()
    np.save(pickled, np.array([[{"a": 1}]]), allow_pickle=True)
    audio = replace(a, modalities=("text", "audio"))
    for members, message in [
        ([("toy-0.json", text(a)), ("toy-b.json", text(b)), ("toy-0.audio.npy", b"")], "interleaved"),
        ([("toy-0.json", text(a)), ("toy-0.json", text(a))], "occurs twice"),
        ([("toy-0.json", text(b))], "its JSON says id 'toy-b'"),
        ([("toy-0.audio.npy", b"")], "has no .json member"),
        ([("toy-0.json", text(audio))], "audio is declared present but there is no array"),
        ([("toy-0.json", text(audio)), ("toy-0.audio.npy", pickled.getvalue())], "not a readable .npy member"),
        ([("toy-0.json", b"[1]")], "it must hold an object"),
        ([("toy-0.json", b"{")], "the JSON member is malformed"),
        ([("toy-0.pkl", b"")], "is none of <id>.json"),
    ]:
        _tar(tmp_path / "x.tar", members)
        with pytest.raises(ShardError, match=message):
            build_index(tmp_path, ["x.tar"])
    (tmp_path / "x.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ShardError, match="not a complete, uncompressed tar"):
        build_index(tmp_path, ["x.tar"])


def test_several_folders_are_one_after_another(folder, sample, equal):
    first = folder("first")
    wider = [sample(i, id=f"more-{i}", dataset="more", audio=None, modalities=("text", "vision")) for i in range(5)]
    second = folder("second", wider, dataset="more")
    both = ShardSet.open([first, second], "train")
    one, two = ShardSet.open([first], "train"), ShardSet.open([second], "train")
    assert len(both) == len(one) + len(two)
    assert all(equal(a, b) for a, b in zip(both, [*one, *two], strict=True))
    assert both.streams == {"audio": (4,), "vision": (3,)}
    assert set(both.tasks) == {"mood", "score"}
    assert np.asarray(both.column("audio_frames")).tolist() == [len(s.features.get("audio", ())) for s in both]
    hashes = {both.index_hash, ShardSet.open([second, first], "train").index_hash, one.index_hash}
    assert len(hashes | {ShardSet.open([first], "valid").index_hash}) == 4
    for outside in (-1, len(both)):
        with pytest.raises(IndexError):
            both[outside]


def test_folders_that_disagree(folder, sample):
    first = folder("first")
    words = {"labels": ("good", "bad"), "answers": {"en": ("g", "b")}}
    other = Task(name="mood", kind="classification", questions={"en": "?"}, **words)
    with pytest.raises(ShardError, match=r"task 'mood' is defined differently in .*first and .*redefined"):
        ShardSet.open([first, folder("redefined", [sample(0, dataset="x")], dataset="x", tasks=[other])], "train")


def test_a_set_can_be_pickled_after_use_and_arrays_may_be_written_to(folder, equal):
    shards = ShardSet.open([folder()], "train")
    first = shards[0]
    again = pickle.loads(pickle.dumps(shards))
    assert equal(again[0], first)
    first.features["vision"][:] = 7
    assert not equal(shards[0], first)


def test_more_shards_than_file_descriptors(folder, sample):
    """A map holds a file descriptor; many clusters allow 1,024 a process."""
    out = folder(samples=[sample(i, split="train") for i in range(120)], samples_per_shard=1)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))\n"
        "from egmf_shards import ShardSet\n"
        "shards = ShardSet.open([sys.argv[1]], 'train')\n"
        "print(len(shards.read(range(120)).samples), shards[0].id, shards[119].id)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True)
    assert done.stdout.split() == ["120", "toy-0", "toy-119"], done.stderr


def test_reading_needs_neither_torch_nor_webdataset():
    code = "import sys, egmf_shards; print([m for m in ('torch', 'webdataset', 'egmf_dist') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_sample_of_somebody_elses_writer_is_checked_field_by_field(sample):
    """A CRC32 proves that bytes are as written, not that they are right."""
    good = sample(0).to_json()
    arrays = {"audio": sample(0).features["audio"], "vision": sample(0).features["vision"]}
    assert Sample.from_json(good, arrays, "x").to_json() == good
    for change, message in [
        ({"text": None}, "wrong type"),
        ({"turn": "1"}, "wrong type"),
        ({"turn": True}, "wrong type"),
        ({"label": 3}, "wrong type"),
        ({"label": None, "value": "0.5"}, "wrong type"),
        ({"label": None, "value": True}, "wrong type"),
        ({"value": 0.5}, "two targets"),
        ({"context": [["Ann"]]}, "context is a list of"),
        ({"context": [["Ann", 5]]}, "context is a list of"),
        ({"context": ["ab", "cd"]}, "context is a list of"),
        ({"context": 5}, "context has the wrong type, int"),
        ({"modalities": "text"}, "modalities has the wrong type, str"),
        ({"modalities": ["text", "audio", "vision", "smell"]}, "smell is declared present but there is no array"),
        ({"modalities": ["text", "audio", "vision", "Smell"]}, "a feature stream is called 'Smell'"),
        ({"modalities": ["text", "text"]}, "at most once"),
        ({"modalities": [["text"]]}, "modalities is a list of names"),
        ({"modalities": ["text", "audio"]}, "vision is declared absent but there is an array"),
        ({"mood": 1}, "has unknown 'mood'"),
        ({"audio": [1]}, "has unknown 'audio'"),
    ]:
        with pytest.raises(ShardError, match=message) as caught:
            Sample.from_json(good | change, arrays, "x.tar")
        assert str(caught.value).startswith("x.tar: ")
        assert "\n" not in str(caught.value)
    for name in good:
        rest = {k: v for k, v in good.items() if k != name}
        if name in ("speaker", "dialogue", "turn", "label"):
            Sample.from_json(rest, arrays, "x")
        else:
            with pytest.raises(ShardError, match="lacks"):
                Sample.from_json(rest, arrays, "x")
