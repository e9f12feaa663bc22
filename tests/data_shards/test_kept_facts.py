"""What follows from an index is found out once and kept; what is not whole, or of another file, is not believed."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from indexes import epochs_of, new_stream

from egmf_shards import ShardError, ShardSet
from egmf_shards.format import arrays, derived, index, index_checks
from egmf_shards.format.arrays import write_arrays
from egmf_shards.format.index import load_index
from egmf_shards.storage.base import Storage


class Counted:
    """How often an index was gone through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        known = index_checks.structure_fault

        def counted(*arguments: object) -> str | None:
            self.count += 1
            return known(*arguments)

        monkeypatch.setattr(index, "structure_fault", counted)

    def opened(self, *folders: Path, split: str = "train") -> tuple[list[str], list[str]]:
        shards = ShardSet.open(folders, split)
        keys = [shards.key(i) for i in epochs_of(new_stream(shards, dialogues=True), len(shards), 2)]
        return keys, [sample.id for sample in shards]


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npz"))


def test_a_large_index_is_gone_through_once(folders, keeping, index_cache, monkeypatch):
    counted = Counted(monkeypatch)
    before = {path: path.stat().st_mtime_ns for folder in folders for path in folder.iterdir()}
    said = counted.opened(*folders)
    assert counted.count == 2
    made = kept(index_cache)
    assert len(made) == 3  # what follows from each index, and which samples belong to a dialogue
    for _ in range(2):
        assert counted.opened(*folders) == said
    counted.opened(*folders, split="valid")
    assert counted.count == 2
    assert set(made) < set(kept(index_cache))
    assert not list(index_cache.glob(".*")), "nothing half-written is left"
    assert {path: path.stat().st_mtime_ns for folder in folders for path in folder.iterdir()} == before


def damage_of(kind: str) -> Callable[[Path], None]:
    def truncated(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-30])

    def garbage(path: Path) -> None:
        path.write_bytes(b"not what it was" * 40)

    def empty(path: Path) -> None:
        path.write_bytes(b"")

    def flipped(path: Path) -> None:
        """In the middle of the last array's numbers, where no name and no size says it."""
        with zipfile.ZipFile(path) as file:
            last = max(file.infolist(), key=lambda info: info.file_size)
        data = bytearray(path.read_bytes())
        data[last.header_offset + last.file_size - 5] ^= 1
        path.write_bytes(data)

    def lacking(path: Path) -> None:
        write_arrays(path, {"something": np.arange(4)})

    return {f.__name__: f for f in (truncated, garbage, empty, flipped, lacking)}[kind]


@pytest.mark.parametrize("kind", ["truncated", "garbage", "empty", "flipped", "lacking"])
def test_what_was_kept_and_is_no_longer_whole_is_made_anew(folders, keeping, index_cache, monkeypatch, caplog, kind):
    counted = Counted(monkeypatch)
    said = counted.opened(*folders)
    sound = {path: path.read_bytes() for path in kept(index_cache)}
    for path in sound:
        damage_of(kind)(path)
    with caplog.at_level(logging.WARNING, "egmf_shards"):
        assert counted.opened(*folders) == said
    assert counted.count == 4
    assert {path: path.read_bytes() for path in kept(index_cache)} == sound
    assert sum("it is made anew" in line for line in caplog.messages) >= 3
    assert not any("\n" in line for line in caplog.messages)


def test_an_index_that_changed_is_gone_through_again(folders, keeping, index_cache, monkeypatch, folder, sample):
    """Whether it is another file or the same one with another byte of the same length in it."""
    counted = Counted(monkeypatch)
    whole = folders[0]
    counted.opened(whole)
    other = folder("other", [sample(i, split="train") for i in range(12)])
    for path in other.iterdir():
        shutil.copy(path, whole / path.name)
    assert counted.opened(whole) == counted.opened(other)
    assert counted.count == 3
    data = bytearray((whole / "index.npz").read_bytes())
    data[data.index("toy-3".encode("utf-32-le"))] ^= 1
    (whole / "index.npz").write_bytes(data)
    with pytest.raises(ShardError, match="Bad CRC-32"):
        ShardSet.open([whole], "train")
    with zipfile.ZipFile(whole / "index.npz", "w") as file, np.load(other / "index.npz") as stored:
        for name in stored.files:
            with file.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, stored[name] + 1 if name == "text_chars" else stored[name])
    with pytest.raises(ShardError, match="do not belong together"):
        ShardSet.open([whole], "train")


def test_an_index_that_may_still_be_changing_is_not_kept(folders, index_cache, monkeypatch):
    """A file can change twice within one tick of its clock; and a small one is not worth keeping."""
    counted = Counted(monkeypatch)
    monkeypatch.setattr(index, "KEPT_FROM", 0)
    monkeypatch.setattr(arrays, "SETTLED", 10**18)  # of a slow machine, too
    counted.opened(folders[0])
    assert kept(index_cache) == []
    monkeypatch.setattr(arrays, "SETTLED", 0)
    monkeypatch.setattr(index, "KEPT_FROM", 1 << 30)
    counted.opened(folders[0])
    assert (kept(index_cache), counted.count) == ([], 2)


@pytest.mark.parametrize("hindrance", ["no folder", "full disk"])
def test_without_a_cache_everything_is_as_with_one(
    folders, keeping, index_cache, monkeypatch, tmp_path, caplog, hindrance
):
    counted = Counted(monkeypatch)
    said = counted.opened(*folders)
    if hindrance == "no folder":
        (tmp_path / "file").write_text("in its place")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    else:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        shutil.rmtree(index_cache)
        monkeypatch.setattr(derived, "write_arrays", full)
        monkeypatch.setattr(os, "posix_fallocate", full)
    with caplog.at_level(logging.WARNING, "egmf_shards"):
        assert counted.opened(*folders) == said
    assert counted.count == 4
    assert any("cannot be kept (No space left" in line for line in caplog.messages) is (hindrance == "full disk")


def open_at_once(barrier, folders, sender) -> None:
    made = []
    known = index_checks.structure_fault
    index.structure_fault = lambda *arguments: made.append(1) or known(*arguments)
    barrier.wait(60)
    shards = ShardSet.open(folders, "train")
    order = epochs_of(new_stream(shards, dialogues=True), len(shards), 1)
    sender.put((sum(made), [shards.key(i) for i in order]))


def test_processes_that_open_at_once_make_it_once(folders, keeping, index_cache):
    context = multiprocessing.get_context("fork")
    barrier, sender = context.Barrier(6), context.Queue()
    processes = [context.Process(target=open_at_once, args=(barrier, folders, sender)) for _ in range(6)]
    for process in processes:
        process.start()
    said = [sender.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sum(made for made, _ in said) == 2, "of two folders"
    assert len({tuple(order) for _, order in said}) == 1
    assert len(kept(index_cache)) == 3


def test_what_nobody_opened_for_long_goes(folders, keeping, index_cache, monkeypatch):
    counted = Counted(monkeypatch)
    counted.opened(folders[0])
    old = kept(index_cache)
    for path in old:
        os.utime(path, (0, 0))
    (index_cache / "mine.txt").write_text("somebody's own")
    os.utime(index_cache / "mine.txt", (0, 0))
    counted.opened(folders[1])
    assert not set(old) & set(kept(index_cache))
    assert (index_cache / "mine.txt").exists()


def test_a_deflated_index_is_unpacked_once_and_mapped(folders, keeping, index_cache, monkeypatch):
    counted = Counted(monkeypatch)
    said = counted.opened(folders[0])
    with np.load(folders[0] / "index.npz") as stored:
        np.savez_compressed(folders[0] / "packed.npz", **dict(stored))
    os.replace(folders[0] / "packed.npz", folders[0] / "index.npz")
    shutil.rmtree(index_cache)
    assert counted.opened(folders[0]) == said
    made = kept(index_cache)
    assert len(made) == 3  # the columns, too
    assert not load_index(folders[0]).member_crc.flags.owndata
    assert counted.opened(folders[0]) == said
    assert (counted.count, kept(index_cache)) == (2, made)


class Store(Storage):
    """A folder of a store that counts what is fetched of it."""

    def __init__(self, folder: Path, tag: str) -> None:
        self.location, self.folder, self.tag, self.fetched = "store://folder", folder, tag, 0

    def is_folder(self) -> bool:
        return True

    def read_file(self, name: str) -> bytes:
        self.fetched += 1
        return (self.folder / name).read_bytes()

    def version(self, name: str) -> str:
        return self.tag

    def size(self, name: str) -> int:
        return (self.folder / name).stat().st_size

    sizes = view = None  # type: ignore[assignment]


def test_a_large_index_of_a_store_is_fetched_once(folders, keeping, index_cache):
    store, wanted = Store(folders[0], "v1"), load_index(folders[0])
    for _ in range(2):
        found = load_index(store, check_shards=False)
        assert (found.content_hash, found.key.tolist()) == (wanted.content_hash, wanted.key.tolist())
        assert not found.key.flags.owndata
    assert store.fetched == 1
    assert pickle.loads(pickle.dumps(found)).content_hash == wanted.content_hash
    other = Store(folders[1], "v2")
    assert load_index(other, check_shards=False).content_hash == load_index(folders[1]).content_hash
    unknown = Store(folders[0], "")
    for _ in range(2):
        assert load_index(unknown, check_shards=False).content_hash == wanted.content_hash
    assert unknown.fetched == 2, "without a version nobody knows whether it is still the same"


def test_a_damaged_copy_of_a_stores_index_is_refused_and_fetched_anew(folders, keeping, index_cache):
    store = Store(folders[0], "v1")
    hash_ = load_index(store, check_shards=False).content_hash
    copy = next(p for p in kept(index_cache) if p.stat().st_size == (folders[0] / "index.npz").stat().st_size)
    data = bytearray(copy.read_bytes())
    data[data.index(b"PK\x01\x02") + 16] ^= 1  # a checksum in the directory
    copy.write_bytes(data)
    with pytest.raises(ShardError, match=r"store://folder/index\.npz: not a readable index"):
        load_index(store, check_shards=False)
    assert load_index(store, check_shards=False).content_hash == hash_
    assert store.fetched == 3  # once more to say what is wrong with it
