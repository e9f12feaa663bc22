"""Servers that are cut off, stopped, slow, or send something else: tried again, healed, or refused in one line."""

from __future__ import annotations

import importlib.util
import logging
import pickle
import shutil
import time
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
contents = remote_stores.contents
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
servers = remote_stores.servers


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
