"""Shards behind a URL: the local files' bytes, through real servers that are cut off, stopped and started again."""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import pickle
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import pytest

from egmf_shards import Sample, ShardError, ShardSet, Stream, StreamOptions
from egmf_shards.errors import UnreachableError
from egmf_shards.storage import remote
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


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_random_slices_have_the_local_bytes(protocol, shards, options):
    import fsspec

    url = f"{protocol}://{shards}"
    if protocol == "memory":
        fsspec.filesystem("memory").put(f"{shards}/", f"{url}/", recursive=True)
    storage = RemoteStorage(url, options())
    expect(storage, shards, slices(shards, 60))
    assert storage.is_folder()
    assert storage.read_file("manifest.json") == (shards / "manifest.json").read_bytes()
    name = first_shard(shards)
    assert storage.sizes([name, "none.tar"]) == {name: (shards / name).stat().st_size}
    assert storage.size(name) == (shards / name).stat().st_size
    with pytest.raises(FileNotFoundError):
        storage.size("none.tar")
    with pytest.raises(ShardError, match=r"none\.tar: the shard is missing"):
        storage.view("none.tar", 0, 1)
    with pytest.raises(ShardError, match=rf"{name}: truncated: ends at byte"):
        storage.view(name, 0, storage.size(name) + 1)
    assert not RemoteStorage(f"{url}-none", options()).is_folder()


def test_bad_options_and_urls_are_refused_in_one_line(options, tmp_path):
    with pytest.raises(ShardError, match="chunk_bytes is 0; it must be at least 1"):
        RemoteStorage("memory://x", options(chunk_bytes=0))
    with pytest.raises(ShardError, match=r"^nothing://x: cannot be read .*Protocol not known"):
        RemoteStorage("nothing://x", options())
    (tmp_path / "plain").write_text("")
    with pytest.raises(ShardError, match="plain/cache: cannot be used as cache"):
        RemoteStorage("memory://x", options(cache_dir=str(tmp_path / "plain" / "cache")))
    with pytest.raises(ShardError, match="a URL with a query"):
        RemoteStorage("http://host/folder?key=1", options())


NO_FOLDER = "a folder's URL is needed, such as https://host/folder or s3://bucket/folder$"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://", f"^http://: names no folder; {NO_FOLDER}"),
        ("https:///x", f"^https:///x: names no server; {NO_FOLDER}"),
        ("s3://", f"^s3://: names no folder; {NO_FOLDER}"),
        ("://x", f"^://x: names no folder; {NO_FOLDER}"),
        ("http://u:secret@[::1/x", rf"^http://\[::1/x: not a URL \(.*\); {NO_FOLDER}"),
        ("http://u:secret@host:port/x", rf"^http://host:port/x: not a URL \(.*\); {NO_FOLDER}"),
        ("memory://a\nb", rf"^'memory://a\\nb': holds a character that cannot be printed; {NO_FOLDER}"),
        ("simplecache::http://u:secret@host/x", rf"^simplecache::http://host/x: chained URLs .* not read; {NO_FOLDER}"),
        ("zip://*.tar::file:///none.zip", r"^zip://\*\.tar::file:///none\.zip: chained URLs"),
        ("zip://nothing.zip", r"^zip://nothing\.zip: cannot be reached \(IsADirectoryError: "),
        ("tar://x", r"^tar://x: cannot be reached \(IsADirectoryError: "),
        ("ftp://u:secret@127.0.0.1:1/x", r"^ftp://127\.0\.0\.1:1/x: cannot be reached \(ConnectionRefusedError: "),
        ("hdfs://x/y", r"^hdfs://x/y: cannot be re"),  # what is wrong differs with what is installed
        ("reference://x", rf"^reference://x: cannot be read \(TypeError: .*\); {NO_FOLDER}"),
        ("dir://x", rf"^dir://x: cannot be read \(AttributeError: .*\); {NO_FOLDER}"),
        ("generic://x", rf"^generic://x: cannot be read \(TypeError: .*\); {NO_FOLDER}"),
    ],
)
def test_a_url_of_no_folder_is_refused_in_one_line(url, message, options):
    with pytest.raises(ShardError, match=message) as caught:
        RemoteStorage(url, options())
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@needs_http
def test_the_colons_of_an_address_are_no_chain(options):
    with pytest.raises(UnreachableError, match=r"^http://\[::1\]:1/x/manifest\.json, its size: .* host ::1:1 "):
        RemoteStorage("http://[::1]:1/x", options(retries=0)).is_folder()


class OwnError(Exception):
    """As aiohttp's: no OSError."""


OwnError.__module__ = "aiohttp.client_exceptions"


@pytest.mark.parametrize(
    ("causes", "lost"),
    [
        ([], False),
        ([KeyError("none")], False),
        ([FileNotFoundError("none")], False),
        ([ConnectionResetError(104, "reset")], True),
        ([TimeoutError()], True),
        ([OwnError("cut")], True),
        ([FileNotFoundError("none"), ConnectionResetError(104, "reset")], True),
    ],
)
def test_a_lost_store_that_is_called_a_missing_file_is_no_missing_shard(causes, lost, options, monkeypatch):
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Store(MemoryFileSystem):
        protocol = "store"

        def info(self, path: str, **_: object) -> dict:
            error = raised = FileNotFoundError(path)
            for cause in causes:
                error.__cause__ = cause
                error = cause
            raise raised

    fsspec.register_implementation("store", Store, clobber=True)
    with pytest.raises(ShardError, match="cannot be read, tried 4 times" if lost else "the shard is missing") as caught:
        RemoteStorage("store://folder", options()).view("a.tar", 0, 1)
    assert isinstance(caught.value, UnreachableError) is lost


def test_a_missing_package_is_named(options, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    with pytest.raises(ShardError, match=r"pip install 'egmf-dist\[remote\]'") as caught:
        RemoteStorage("https://user:secret@host/folder", options())
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@needs_http
def test_http_reads_each_chunk_once(http, shards, options):
    storage = RemoteStorage(http.url, options())
    expect(storage, shards, slices(shards, 60))
    expect(RemoteStorage(http.url, options()), shards, slices(shards, 60))  # a second process finds the chunks
    ranges = [tuple(entry[1:]) for entry in http.ranges()]
    assert len(ranges) == len(set(ranges))
    assert storage.sizes(["a.tar"]) == {"a.tar": None}
    with pytest.raises(FileNotFoundError):
        storage.read_file("none")


@needs_http
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("cut", "ClientPayloadError"),
        ("short", f"the server sends {CHUNK - 1} bytes instead of {CHUNK}"),
        ("shift", f"the server sends 'bytes {CHUNK + 1}-{2 * CHUNK}/"),
        ("whole", "the server ignores ranges"),
        ("bare", "the server sends None instead of"),
        ("gzip", r"the server sends its bytes encoded (gzip)"),
        ("endless", "does not say how many bytes it sends"),
        ("chunked", "does not say how many bytes it sends"),
        ("failing", "Internal Server Error"),
        ("503", "Service Unavailable"),
        ("hang", "Timeout"),
    ],
)
def test_http_faults_are_tried_again_and_logged(kind, reason, http, shards, options, caplog):
    storage = RemoteStorage(http.url, options())
    if kind == "hang":  # elsewhere a busy machine must not be taken for one
        storage.read_timeout = 0.5
        storage._processes.clear()  # connects anew, with the timeout
    name = first_shard(shards)
    size = storage.size(name)
    http.fault(kind, times=2, name=name)
    with caplog.at_level(logging.WARNING, "egmf_shards"):
        expect(storage, shards, [(name, CHUNK, 500)])
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 2 or (kind == "hang" and len(logged) > 2), logged
    assert all(f"{name}, bytes {CHUNK} to {2 * CHUNK - 1}: " in line and reason in line for line in logged), logged

    http.fault(kind, times=4, name=name)
    with pytest.raises(UnreachableError, match=rf"{name}, bytes 0 to {CHUNK - 1}: cannot be read, tried 4 times"):
        storage.view(name, 0, 1)
    expect(storage, shards, [(name, 0, size)])  # nothing of the faults was kept
    assert http.flooded() < 6 * servers.FLOOD // 4  # sockets hold some


@needs_http
def test_what_is_sent_behind_the_end_is_not_read(http, shards, options, caplog):
    """Whether the answer counts depends on what aiohttp has seen of the rest by then."""
    name = first_shard(shards)
    storage = RemoteStorage(http.url, options(retries=0, cache_bytes=0))
    storage.size(name)
    http.fault("long", times=8, name=name)
    messages = [""]
    for number in range(8):
        try:
            expect(storage, shards, [(name, number * CHUNK, CHUNK)])
        except UnreachableError as error:
            messages.append(str(error))
    assert max(map(len, messages)) < 600  # aiohttp's own quotes what came
    assert http.flooded() < 8 * servers.FLOOD // 4
    expect(RemoteStorage(http.url, options()), shards, [(name, 0, 8 * CHUNK)])


@needs_http
@pytest.mark.parametrize("name", ["manifest.json", "index.npz"])
def test_small_files_have_a_largest_size(name, http, options):
    http.fault("huge", times=10**6, name=name)
    with pytest.raises(ShardError, match=rf"/{name}: {10**12} bytes; at most {remote._LARGEST[name]} are read$"):
        ShardSet.open([http.url], "train", storage=options())
    assert not [entry for entry in http.ranges() if entry[1] == name]


@needs_http
@pytest.mark.parametrize(("kind", "tried"), [("hang", "1 times in"), ("503", r"\d\d? times in")])
@pytest.mark.parametrize("what", ["size", "bytes"])
def test_one_read_ends_in_time_with_all_its_tries(kind, tried, what, http, shards, options, monkeypatch):
    storage, name = RemoteStorage(http.url, options(retries=10**6, first_wait=0.05)), first_shard(shards)
    if what == "bytes":
        storage.size(name)
    http.fault(kind, times=10**6, name=name)
    monkeypatch.setattr(remote, "LONGEST_READ", 0.4)
    begun = time.monotonic()
    with pytest.raises(UnreachableError, match=rf"(its size|bytes 0 to .*): cannot be read, tried {tried}"):
        storage.view(name, 0, 1)
    assert time.monotonic() - begun < 100  # 0.4 s and what a busy machine adds; the default is 300


@needs_http
def test_a_server_without_ranges_serves_shards_of_one_chunk(http, shards, options, caplog):
    http.fault("whole", times=10**6)
    expect(RemoteStorage(http.url, options(chunk_bytes=2**20)), shards, slices(shards, 10))
    assert not caplog.records


@needs_http
def test_a_refusal_is_not_tried_again(http, shards, options, caplog):
    storage = RemoteStorage(http.url, options(first_wait=30))
    name = first_shard(shards)
    storage.size(name)
    http.fault(403, times=1, name=name)
    with pytest.raises(UnreachableError, match=rf"{name}: access is denied"):
        storage.view(name, 0, 1)
    http.fault(404, times=1, name=name)
    with pytest.raises(ShardError, match=rf"{name}: the shard is missing"):
        storage.view(name, 0, 1)
    http.fault(403, times=9, name="manifest.json")
    with pytest.raises(PermissionError):
        storage.read_file("manifest.json")
    with pytest.raises(UnreachableError, match=r"manifest\.json: access is denied"):
        storage.is_folder()
    assert not caplog.records


@needs_http
def test_a_head_that_fails_is_no_missing_file(http, shards, options, caplog):
    """fsspec turns every failed HEAD into FileNotFoundError, a stopped server's, too."""
    storage = RemoteStorage(http.url, options())
    http.fault(503, times=2)  # HEAD, then the GET that fsspec tries in its place
    assert storage.size(first_shard(shards)) > 0
    http.stop()
    with pytest.raises(UnreachableError, match="tried 4 times"):
        RemoteStorage(http.url, options()).is_folder()


@needs_http
def test_http_stopped_and_started_again(http, shards, options, caplog):
    storage = RemoteStorage(http.url, options(retries=8, first_wait=0.05))
    expect(storage, shards, slices(shards, 4))
    back = http.away(lambda: bool(caplog.records))
    expect(storage, shards, slices(shards, 20, seed=1))
    back.join()
    assert caplog.records  # it was really away


@needs_http
def test_http_stopped_for_good_names_the_object(http, shards, options):
    storage = RemoteStorage(http.url, options())
    name = first_shard(shards)
    storage.size(name)
    http.stop()
    with pytest.raises(
        UnreachableError, match=rf"^{http.url}/{name}, bytes 0 to {CHUNK - 1}: cannot be read"
    ) as caught:
        storage.view(name, 0, 1)
    assert "\n" not in str(caught.value)


@needs_http
def test_wrong_bytes_are_healed_once(http, shards, options, caplog):
    name = first_shard(shards)
    storage = RemoteStorage(http.url, options())
    storage.size(name)
    right = (shards / name).read_bytes()
    http.fault("wrong", times=1, name=name)
    assert storage.view(name, 0, 100) != right[:100]
    assert storage.forget(name, 0, 100)
    assert storage.view(name, 0, 100) == right[:100]
    # The second read was good: a fault of a later read is a new one.
    cached = [path for path in contents(Path(options().cache_dir)) if path.name == f"{0:08d}"]
    assert len(cached) == 1
    storage.view(name, 0, 100)
    assert storage.forget(name, 0, 100)
    assert not cached[0].exists()
    http.fault("wrong", times=1, name=name)
    assert storage.view(name, 0, 100) != right[:100]
    assert not storage.forget(name, 0, 100)
    assert storage.view(name, 0, 100) == right[:100]  # and the wrong bytes are gone all the same


@needs_http
def test_wrong_bytes_are_healed_in_the_stream(http, shards, options, equal, monkeypatch):
    healed = []
    forget = RemoteStorage.forget
    monkeypatch.setattr(RemoteStorage, "forget", lambda self, *slice_: healed.append(slice_) or forget(self, *slice_))
    local = list(whole_run(ShardSet.open([shards], "train")))
    # A chunk's first byte is flipped: with chunks of a tar's block it is a member's first byte or a header's.
    run = whole_run(ShardSet.open([http.url], "train", storage=options(chunk_bytes=512)))
    got = []
    for _ in local:
        http.fault("wrong")
        got.append(next(run))
    assert_same_run(got, local, equal)
    assert healed


@needs_http
def test_bytes_that_stay_wrong_name_the_sample(http, shards, options):
    remote = ShardSet.open([http.url], "train", storage=options(chunk_bytes=512))
    http.fault("wrong", times=10**6)
    with pytest.raises(ShardError, match=rf"{http.url}/.*\.tar: sample '.*', member .*CRC32 mismatch"):
        list(remote)


def read_all(state: bytes, folder: Path, seed: int) -> int:
    """The most bytes that the cache held after any read."""
    storage, most = pickle.loads(state), 0
    for one in slices(folder, 40, seed):
        expect(storage, folder, [one])
        with storage._cache._locked():
            most = max(most, storage._cache.used())
    return most


@needs_http
def test_processes_share_a_cache_folder(http, shards, options):
    bound = 8 * CHUNK
    state = pickle.dumps(RemoteStorage(http.url, options(cache_bytes=bound)))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        used = pool.starmap(read_all, [(state, shards, seed) for seed in range(6)])
    assert bound // 2 < max(used) <= bound


@needs_http
def test_a_forked_child_reads_beside_its_parent(http, shards, options):
    storage = RemoteStorage(http.url, options(cache_bytes=0))
    expect(storage, shards, slices(shards, 10))  # the parent's thread and sockets are at work before the fork
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def child(seed: int) -> None:
        expect(storage, shards, slices(shards, 30, seed))
        results.put(seed)

    children = [context.Process(target=child, args=(seed,)) for seed in (1, 2)]
    for one in children:
        one.start()
    expect(storage, shards, slices(shards, 30, 3))
    for one in children:
        one.join(20)
    assert [one.exitcode for one in children] == [0, 0]
    expect(storage, shards, slices(shards, 30, 4))


@needs_http
def test_threads_read_one_storage(http, shards, options):
    storage = RemoteStorage(http.url, options(cache_bytes=5 * CHUNK))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: expect(storage, shards, slices(shards, 25, seed)), range(4)))


@needs_http
def test_the_stream_over_http_outlives_disconnects(http, shards, options, equal, caplog, monkeypatch):
    monkeypatch.setattr(remote, "CHUNKS_AT_HAND", 2)  # else all of so small a folder stays at hand
    local = list(whole_run(ShardSet.open([shards], "train")))
    run = whole_run(ShardSet.open([http.url], "train", storage=options(retries=8, first_wait=0.05, cache_bytes=0)))
    got = []
    for number in range(len(local)):
        if number < 3:
            http.fault("cut")
        back = http.away(lambda: "ClientConnectorError" in caplog.text) if number == 4 else None
        got.append(next(run))
        if back:
            back.join()
    assert_same_run(got, local, equal)
    logged = [record.getMessage() for record in caplog.records]
    assert any("ClientPayloadError" in line for line in logged), logged
    assert any("ClientConnectorError" in line for line in logged), logged


@needs_s3
def test_the_stream_over_s3_outlives_disconnects(s3, shards, options, equal, caplog, monkeypatch):
    monkeypatch.setattr(remote, "CHUNKS_AT_HAND", 2)  # else all of so small a folder stays at hand
    local = list(whole_run(ShardSet.open([shards], "train")))
    run = whole_run(ShardSet.open([s3.url], "train", storage=options(retries=8, first_wait=0.05, cache_bytes=0)))
    got = []
    for number in range(len(local)):
        if number < 3:
            s3.wire.break_after = 700  # an answer has some 500 bytes of headers and CHUNK of body
        back = s3.away(lambda: caplog.text.count("ClientPayloadError") < len(caplog.records)) if number == 4 else None
        got.append(next(run))
        if back:
            back.join()
    assert_same_run(got, local, equal)
    assert s3.wire.breaks == 3
    logged = [record.getMessage() for record in caplog.records]
    assert sum("ClientPayloadError" in line for line in logged) == 3, logged
    assert len(logged) > 3, logged


@needs_s3
def test_s3_stopped_for_good_names_the_object(s3, shards, options):
    storage = RemoteStorage(s3.url, options())
    names = [path.name for path in shards.glob("*.tar")]
    assert storage.sizes([*names, "none.tar"]) == {name: (shards / name).stat().st_size for name in names}
    expect(storage, shards, slices(shards, 20))
    with pytest.raises(FileNotFoundError):
        storage.size("none.tar")
    with pytest.raises(ShardError, match="there is no such folder"):
        ShardSet.open([f"{s3.url}-none"], "train", storage=options())
    s3.stop()
    storage = pickle.loads(pickle.dumps(storage))
    shutil.rmtree(options().cache_dir)
    with pytest.raises(UnreachableError, match=rf"^{s3.url}/{names[0]}, bytes 0 to {CHUNK - 1}: cannot be read"):
        storage.view(names[0], 0, 1)


@needs_http
def test_no_policy_takes_a_lost_server_for_bad_samples(http, shards, options):
    remote = ShardSet.open([http.url], "train", storage=options(), tolerate=True)
    http.stop()
    with pytest.raises(UnreachableError):
        list(whole_run(remote, tolerate=True))
