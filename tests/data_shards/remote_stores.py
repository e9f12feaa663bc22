"""What the tests of remote shards have in common: the servers as fixtures, random slices, a whole run."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest

from egmf_shards import Sample, ShardSet, Stream, StreamOptions
from egmf_shards.storage.base import StorageOptions
from egmf_shards.storage.remote import RemoteStorage

_spec = importlib.util.spec_from_file_location("servers", Path(__file__).with_name("servers.py"))
servers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(servers)

CHUNK = 1000
FAST = {"chunk_bytes": CHUNK, "retries": 3, "first_wait": 0.01}


def missing(*modules: str) -> pytest.MarkDecorator:
    lacking = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(lacking), reason=f"needs {', '.join(lacking)}: pip install 'egmf-dist[remote,dev]'")


needs_http = missing("aiohttp")
needs_s3 = missing("s3fs", "moto", "flask", "flask_cors")


@pytest.fixture
def shards(folder) -> Path:
    return folder(samples_per_shard=8)


@pytest.fixture
def http(shards: Path) -> Iterator[servers.HTTPServer]:
    server = servers.HTTPServer(shards)
    yield server
    server.stop()


@pytest.fixture
def s3(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.S3Server]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = servers.S3Server(shards)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.wire.port}")
    yield server
    server.stop()


OptionsMaker = Callable[..., StorageOptions]


@pytest.fixture
def options(tmp_path: Path) -> OptionsMaker:
    return lambda **changes: StorageOptions(**({"cache_dir": str(tmp_path / "cache")} | FAST | changes))


def slices(folder: Path, count: int, seed: int = 0) -> list[tuple[str, int, int]]:
    """Random slices of the shards, from empty ones to ones of several chunks."""
    rng = random.Random(seed)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.tar"))}
    found = []
    for _ in range(count):
        name = rng.choice(list(sizes))
        size = rng.choice((0, 1, 100, CHUNK, 3 * CHUNK + 7, sizes[name]))
        found.append((name, rng.randrange(sizes[name] - size + 1), size))
    return found


def expect(storage: RemoteStorage, folder: Path, wanted: list[tuple[str, int, int]]) -> None:
    for name, offset, size in wanted:
        got = storage.view(name, offset, size)
        assert len(got) == size
        assert got == (folder / name).read_bytes()[offset : offset + size], (name, offset, size)


def first_shard(folder: Path) -> str:
    return min(path.name for path in folder.glob("*.tar"))


def contents(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.parent != folder]


def whole_run(shards: ShardSet, tolerate: bool = False) -> Iterator[list[tuple[int, str, float, Sample]]]:
    """Two epochs of one rank, a list for each global batch."""
    stream = Stream(
        shards, seed=3, global_batch=6, micro_batch=4, rank=0, world=1, options=StreamOptions(tolerate=tolerate)
    )
    for position in range(0, 2 * len(shards), 6):
        yield [
            (slot.position, sample.id, weight, sample)
            for batch in stream.read(position)
            for slot, sample, weight in zip(batch.slots, batch.samples, batch.weights, strict=True)
        ]


def assert_same_run(got: list, local: list, equal: Callable) -> None:
    assert [[entry[:3] for entry in batch] for batch in got] == [[entry[:3] for entry in batch] for batch in local]
    for a, b in zip(chain(*got), chain(*local), strict=True):
        assert equal(a[3], b[3])
