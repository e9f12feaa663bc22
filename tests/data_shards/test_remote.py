"""Shards behind a URL: the local files' bytes, whatever the transport, over processes, threads and a whole run."""

from __future__ import annotations

import importlib.util
import multiprocessing
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from egmf_shards import ShardError, ShardSet
from egmf_shards.errors import UnreachableError
from egmf_shards.storage import remote
from egmf_shards.storage.remote import RemoteStorage

_spec = importlib.util.spec_from_file_location("remote_stores", Path(__file__).with_name("remote_stores.py"))
remote_stores = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(remote_stores)
CHUNK = remote_stores.CHUNK
assert_same_run = remote_stores.assert_same_run
expect = remote_stores.expect
first_shard = remote_stores.first_shard
needs_http = remote_stores.needs_http
needs_s3 = remote_stores.needs_s3
slices = remote_stores.slices
whole_run = remote_stores.whole_run
http = remote_stores.http
options = remote_stores.options
s3 = remote_stores.s3
shards = remote_stores.shards


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
