"""What a machine keeps of shards: the cache of remote ones (bounded, shared, never trusted with a chunk of another
length or version, and no danger to other files), and the maps of local ones."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import pickle
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from egmf_shards import ShardError
from egmf_shards.errors import UnreachableError
from egmf_shards.storage import local
from egmf_shards.storage.base import StorageOptions
from egmf_shards.storage.chunk_cache import CHUNKS, ChunkCache, default_folder
from egmf_shards.storage.local import LocalStorage
from egmf_shards.storage.remote import RemoteStorage

CHUNK = 1000
OWNER = "0123456789abcdef" * 2

OptionsMaker = Callable[..., StorageOptions]


@pytest.fixture
def shards(folder) -> Path:
    return folder(samples_per_shard=8)


@pytest.fixture
def options(tmp_path: Path) -> OptionsMaker:
    return lambda **changes: StorageOptions(**({"cache_dir": str(tmp_path / "cache"), "chunk_bytes": CHUNK} | changes))


def expect(storage: RemoteStorage, folder: Path, name: str, offset: int, size: int) -> None:
    assert storage.view(name, offset, size) == (folder / name).read_bytes()[offset : offset + size]


def slices(folder: Path, count: int) -> list[tuple[str, int, int]]:
    rng = random.Random(0)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.tar"))}
    found = []
    for _ in range(count):
        name = rng.choice(list(sizes))
        size = rng.choice((1, CHUNK, 3 * CHUNK + 7, sizes[name]))
        found.append((name, rng.randrange(sizes[name] - size + 1), size))
    return found


def first_shard(folder: Path) -> str:
    return min(path.name for path in folder.glob("*.tar"))


def contents(folder: Path) -> list[Path]:
    return [path for path in (folder / CHUNKS).glob("*/*") if path.is_file()]


@pytest.mark.parametrize("limit", [3 * CHUNK, 10 * CHUNK, CHUNK - 1, 0])
def test_the_cache_is_bounded_after_every_read(limit, shards, options):
    storage = RemoteStorage(f"file://{shards}", options(cache_bytes=limit))
    cache = Path(options().cache_dir)
    most = 0
    for one in slices(shards, 80):
        expect(storage, shards, *one)
        used = sum(path.stat().st_size for path in contents(cache))
        most = max(most, used)
        assert used <= limit
    assert most > limit // 2 or limit < CHUNK  # only a shard's last chunk may be smaller


def test_what_was_used_longest_ago_goes_first(tmp_path):
    cache = ChunkCache(tmp_path, 4 * CHUNK)
    for number in range(4):
        cache.put(OWNER, number, bytes(CHUNK))
        os.utime(tmp_path / CHUNKS / OWNER / f"{number:08d}", (number, number))
    assert cache.get(OWNER, 0, CHUNK) is not None  # used: now the youngest
    cache.put(OWNER, 4, bytes(CHUNK))
    assert [cache.get(OWNER, number, CHUNK) is not None for number in (0, 1, 4)] == [True, False, True]
    assert cache.used() <= 4 * CHUNK


def test_a_chunk_that_is_damaged_or_gone_is_fetched_again(shards, options):
    name = first_shard(shards)
    expect(RemoteStorage(f"file://{shards}", options()), shards, name, 0, 3 * CHUNK)
    first, second, *_ = sorted(contents(Path(options().cache_dir)))
    first.unlink()
    second.write_bytes(b"short")
    expect(RemoteStorage(f"file://{shards}", options()), shards, name, 0, 3 * CHUNK)
    shutil.rmtree(options().cache_dir)
    expect(RemoteStorage(f"file://{shards}", options()), shards, name, 0, 3 * CHUNK)


def test_a_changed_object_never_mixes_with_old_chunks(shards, options):
    name = first_shard(shards)
    expect(RemoteStorage(f"file://{shards}", options()), shards, name, 0, 3 * CHUNK)
    changed = bytes(byte ^ 255 for byte in (shards / name).read_bytes())
    (shards / name).write_bytes(changed)
    os.utime(shards / name, (1, 1))
    expect(RemoteStorage(f"file://{shards}", options()), shards, name, 0, 3 * CHUNK)


def test_a_full_disk_slows_reading_and_does_not_stop_it(shards, options, monkeypatch, caplog):
    storage = RemoteStorage(f"file://{shards}", options())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for one in slices(shards, 20):
        expect(storage, shards, *one)
    assert [record.getMessage() for record in caplog.records] == [
        f"{options().cache_dir}: chunks are not kept (No space left on device); reading goes on without"
    ]
    assert not contents(Path(options().cache_dir))


def test_the_folder_is_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "egmf" / "shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "egmf" / "shards"


def test_files_of_others_are_neither_counted_nor_removed(tmp_path):
    """Whoever names their home as the folder of the cache keeps it."""
    others = [
        tmp_path / name
        for name in ("bytes", "incoming", "Documents/thesis", f"{OWNER}/00000000", f"{CHUNKS}/notes/00000000",
                     f"{CHUNKS}/{OWNER}/00000000.bak", f"{CHUNKS}/{OWNER}x/00000000")
    ]  # fmt: skip
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * CHUNK)
        os.utime(path, (1, 1))
    cache = ChunkCache(tmp_path, 3 * CHUNK)
    cache.prepare()
    for number in range(8):
        cache.put(OWNER, number, bytes(CHUNK))
    assert [path for path in others if not path.exists() or path.read_bytes() != b"x" * CHUNK] == []
    assert cache.used() == len([number for number in range(8) if cache.get(OWNER, number, CHUNK)]) * CHUNK > 0


def test_a_chunk_that_cannot_be_removed_stops_keeping_and_not_reading(tmp_path, monkeypatch, caplog):
    cache = ChunkCache(tmp_path, 2 * CHUNK)
    for number in range(2):
        cache.put(OWNER, number, bytes(CHUNK))

    unlink, kept = os.unlink, {f"{0:08d}"}

    def refuse(path: str) -> None:
        if Path(path).name in kept:
            raise PermissionError(errno.EPERM, "Operation not permitted", path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", refuse)
    os.utime(tmp_path / CHUNKS / OWNER / f"{0:08d}", (1, 1))
    cache.put(OWNER, 2, bytes(CHUNK))  # the next oldest makes room
    assert [cache.get(OWNER, number, CHUNK) is not None for number in range(3)] == [True, False, True]
    assert not caplog.records
    kept.add(f"{2:08d}")
    assert cache.put(OWNER, 3, b"y" * CHUNK) == b"y" * CHUNK
    assert cache.used() == 2 * CHUNK
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: chunks are not kept (Operation not permitted); reading goes on without"
    ]


@pytest.fixture
def few_descriptors(monkeypatch) -> int:
    """The bound on maps; what other tests have mapped is let go first."""
    gc.collect()
    for other in list(local._folders):
        other._views.clear()
    monkeypatch.setattr(local.resource, "getrlimit", lambda _: (80, 80))
    return 20


def many(tmp_path: Path, folders: int, shards: int) -> list[LocalStorage]:
    for number in range(folders):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "index.npz").touch()
        for shard in range(shards):
            (tmp_path / str(number) / f"{shard}.tar").write_bytes(bytes([number, shard]))
    return [LocalStorage(tmp_path / str(number)) for number in range(folders)]


def mapped(tmp_path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(f"{tmp_path}/")


def test_all_folders_of_a_process_share_one_bound_on_maps(few_descriptors, tmp_path):
    folders, most = many(tmp_path, 5, 16), 0
    for _ in range(2):
        for shard in range(16):
            for number, folder in enumerate(folders):
                assert folder.view(f"{shard}.tar", 0, 2) == bytes([number, shard])
                most = max(most, mapped(tmp_path))
    assert most == few_descriptors
    copy = pickle.loads(pickle.dumps(folders[0]))
    assert copy.view("3.tar", 0, 2) == bytes([0, 3])
    assert mapped(tmp_path) == few_descriptors
    del folder, folders, copy
    gc.collect()
    assert mapped(tmp_path) == 0


def test_a_child_maps_although_the_parent_was_mapping(tmp_path):
    (folder,) = many(tmp_path, 1, 2)
    folder.view("0.tar", 0, 1)
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with local._mapping:
            held.set()
            go_on.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    child = multiprocessing.get_context("fork").Process(target=folder.view, args=("1.tar", 0, 1))
    child.start()
    child.join(10)
    go_on.set()
    thread.join()
    child.kill()
    assert child.exitcode == 0


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_maps_are_let_go_where_others_hold_the_descriptors(code, tmp_path, monkeypatch):
    first, second = many(tmp_path, 2, 4)
    for name in ("0.tar", "1.tar"):
        first.view(name, 0, 1)
    map_file, held = local._map_file, []

    def full(path: Path) -> memoryview:
        held.append(mapped(tmp_path))
        if held[-1]:
            raise OSError(code, os.strerror(code))
        return map_file(path)

    monkeypatch.setattr(local, "_map_file", full)
    assert second.view("2.tar", 0, 2) == bytes([1, 2])
    assert held == [2, 0]
    assert first.view("0.tar", 0, 2) == bytes([0, 0])


@pytest.mark.parametrize("name", ["ESTALE", "EIO", "EACCES", "ENOMEM", "EMFILE", "ENODEV", "ETIMEDOUT"])
def test_a_fault_of_the_machine_is_none_of_the_shard(name, tmp_path, monkeypatch):
    code = getattr(errno, name)

    def fail(path: Path) -> memoryview:
        raise OSError(code, os.strerror(code))

    (folder,) = many(tmp_path, 1, 1)
    monkeypatch.setattr(local, "_map_file", fail)
    with pytest.raises(UnreachableError, match=rf"0\.tar: cannot be mapped \({os.strerror(code)}\)$"):
        folder.view("0.tar", 0, 1)
    monkeypatch.setattr(Path, "stat", fail)
    with pytest.raises(UnreachableError, match=rf"0\.tar: cannot be examined \({os.strerror(code)}\)$"):
        folder.sizes(["0.tar"])


def test_a_missing_shard_is_none_of_the_machine_and_a_missing_folder_is(tmp_path):
    (folder,) = many(tmp_path, 1, 1)
    (folder.path / "empty.tar").touch()
    for name, fault in (("none.tar", "the shard is missing"), ("empty.tar", "the shard is empty")):
        with pytest.raises(ShardError, match=fault) as caught:
            folder.view(name, 0, 1)
        assert not isinstance(caught.value, UnreachableError)
    assert folder.sizes(["0.tar", "none.tar"]) == {"0.tar": 2}
    shutil.rmtree(folder.path)
    with pytest.raises(UnreachableError, match=r"0\.tar: the whole folder is gone"):
        folder.view("0.tar", 0, 1)
    folder.path.mkdir()  # a mount point without its file system
    with pytest.raises(UnreachableError, match=r"0\.tar: the whole folder is gone"):
        folder.view("0.tar", 0, 1)
