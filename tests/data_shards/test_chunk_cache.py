"""The cache of remote shards: bounded, shared, and never trusted with a chunk of another length or version."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from egmf_shards.chunk_cache import ChunkCache, default_folder
from egmf_shards.remote import RemoteStorage
from egmf_shards.storage import StorageOptions

CHUNK = 1000

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
    return [path for path in folder.rglob("*") if path.is_file() and path.parent != folder]


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
        cache.put("object", number, bytes(CHUNK))
        os.utime(tmp_path / "object" / f"{number:08d}", (number, number))
    assert cache.get("object", 0, CHUNK) is not None  # used: now the youngest
    cache.put("object", 4, bytes(CHUNK))
    assert [cache.get("object", number, CHUNK) is not None for number in (0, 1, 4)] == [True, False, True]
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
