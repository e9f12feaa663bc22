"""The restricted unpickler: plain data comes back as written; attacks and damage are refused in one line."""

from __future__ import annotations

import collections
import functools
import gzip
import os
import pickle
import random
import struct
import subprocess
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egmf_shards import ShardError
from egmf_shards.importers import unpickle
from egmf_shards.importers.provenance import describe_source
from egmf_shards.importers.unpickle import load_pickle

RNG = np.random.default_rng(0)
PLAIN = {
    "c": RNG.normal(size=(3, 4)).astype(np.float32),
    "fortran": np.asfortranarray(RNG.normal(size=(3, 4))),
    "axes": RNG.normal(size=(2, 3, 4)).transpose(1, 2, 0),
    "empty": np.zeros((2, 0)),
    "single": np.array(1.5),
    "big_endian": np.arange(4, dtype=">i4"),
    "half": np.ones(3, np.float16),
    "read_only": np.frombuffer(b"abcdefgh", np.float64),
    "words": np.array(["ab", "语言"]),
    "bytes": np.array([b"ab"]),
    "truth": np.array([True, False]),
    "objects": np.array(["x", 1, 2.5, None, ["a", 2]], dtype=object),
    "scalars": [np.float32(2), np.str_("语"), np.bool_(True), np.int64(-3)],
    "plain": [1, -1, 2**40, -(2**62), 1.5, "é\n", None, True, b"", b"\xff\0", (1, 2, 3, 4), ("x",), {3: []}],
    "ordered": collections.OrderedDict(a=1, b=[2]),
    "large": RNG.normal(size=20_000),
}


def load(data: bytes, folder: Path) -> Any:
    path = folder / "x.pkl"
    path.write_bytes(data)
    return load_pickle(path)


def is_short_line(message: str) -> bool:
    return "\n" not in message and len(message) < 600


def refusal(data: bytes, folder: Path) -> str:
    with pytest.raises(ShardError) as caught:
        load(data, folder)
    message = str(caught.value)
    assert is_short_line(message), message
    return message.removeprefix(str(folder / "x.pkl"))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_comes_back(protocol, tmp_path):
    shared = PLAIN | {"again": PLAIN["c"]}
    data = pickle.dumps(shared, protocol)
    loaded, expected = load(data, tmp_path), pickle.loads(data)
    np.testing.assert_equal(loaded, expected)
    for key, value in expected.items():
        assert getattr(loaded[key], "dtype", None) == getattr(value, "dtype", None)
    assert [type(x) for x in loaded["scalars"]] == [type(x) for x in expected["scalars"]]
    assert loaded["again"] is loaded["c"]


def test_numpy_1_wrote_other_module_names(tmp_path):
    for protocol in (2, 4, 5):
        data = pickle.dumps([np.arange(3.0), np.float32(1)], protocol)
        if protocol > 3:  # the names' lengths are written too
            data = data.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
            data = data.replace(b"\x8c\x13numpy._core.numeric", b"\x8c\x12numpy.core.numeric")
            data = data[:2] + data[11:]  # and the frame's
        data = data.replace(b"numpy._core", b"numpy.core")
        assert b"_core" not in data
        assert load(data, tmp_path)[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("protocol", "limit"), [(2, 1.5), (3, 1.1), (4, 1.1), (5, 1.1)])
def test_peak_memory_is_bounded_by_the_file(protocol, limit, tmp_path):
    path = tmp_path / "x.pkl"
    random = RNG.normal(size=(60, 100, 35))
    for data in (random, np.zeros_like(random), {"a": random[:, :50], "b": np.pad(random, ((0, 0), (0, 99), (0, 0)))}):
        path.write_bytes(pickle.dumps(data, protocol))
        assert peak_of(path) < limit * path.stat().st_size


def peak_of(path: Path) -> int:
    tracemalloc.start()
    try:
        load_pickle(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Evil:
    """Pickles as the call of ``function(*args)``."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def live_attacks(canary: Path) -> dict[str, tuple[Any, str]]:
    """Objects whose pickle makes ``canary`` when Python loads it, with the name that must be refused."""
    touch, code = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    system = Evil(os.system, touch)
    nested = np.empty(1, dtype=object)
    nested[0] = system
    return {
        "os.system": (system, "posix.system"),
        "eval": (Evil(eval, f"__import__('os').system({touch!r})"), "builtins.eval"),
        "exec": (Evil(exec, code), "builtins.exec"),
        "subprocess": (Evil(subprocess.call, ["touch", str(canary)]), "subprocess.call"),
        "partial": (Evil(functools.partial(os.system, touch)), "functools.partial"),
        "open": (Evil(open, str(canary), "w"), "io.open"),
        "in an object array": (nested, "posix.system"),
        "in a list of an object array": (np.array([[1, [system]], None], dtype=object), "posix.system"),
        "as a dict key": ({"x": {"y": (system,)}}, "posix.system"),
    }


@pytest.mark.parametrize("name", list(live_attacks(Path("x"))))
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_live_attacks_are_refused_and_not_run(name, protocol, tmp_path):
    canary = tmp_path / "canary"
    attack, asked_for = live_attacks(canary)[name]
    data = pickle.dumps(attack, protocol)
    pickle.loads(data)
    assert canary.exists()  # the attack works
    canary.unlink()
    message = refusal(data, tmp_path)
    # Protocol 2 writes Python 2's names.
    python_2 = {"builtins.eval": "__builtin__.eval", "builtins.exec": "__builtin__.exec", "io.open": "__builtin__.open"}
    names = (asked_for, python_2.get(asked_for, "commands.call"))
    assert any(f"asks for '{n}'" in message for n in names), message
    assert not canary.exists()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


START = b"\x80\x04"
SHELL = name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\0\x85C\x01b\x87R"
F4 = name("numpy", "dtype") + text("f4") + b"\x89\x88\x87R"
OBJECT = name("numpy", "dtype") + text("O8") + b"\x89\x88\x87R"
NAMES = {
    "os.system": name("os", "system"),
    "posix.system": text("posix") + text("system") + b"\x93",
    "subprocess.Popen": name("subprocess", "Popen"),
    "builtins.getattr": name("builtins", "getattr"),
    "builtins.eval": text("builtins") + text("eval") + b"\x93",
    "codecs.encode": name("codecs", "encode"),
    "_codecs.decode": name("_codecs", "decode"),
    "numpy.load": name("numpy", "load"),
    "numpy.fromfile": name("numpy", "fromfile"),
    "numpy.memmap": name("numpy", "memmap"),
    "numpy.matrix": name("numpy", "matrix"),
    "numpy.core.multiarray.fromfile": name("numpy.core.multiarray", "fromfile"),
    "numpy.ctypeslib.load_library": name("numpy.ctypeslib", "load_library"),
    "numpy.ndarray.tofile": name("numpy", "ndarray.tofile"),
    "copyreg._reconstructor": name("copyreg", "_reconstructor"),
    "functools.partial": name("functools", "partial"),
    "collections.defaultdict": name("collections", "defaultdict"),
    "pickle.loads": name("pickle", "loads"),
    "torch._utils._rebuild_tensor_v2": name("torch._utils", "_rebuild_tensor_v2"),
}


@pytest.mark.parametrize("asked_for", list(NAMES))
def test_other_names_are_refused_by_name(asked_for, tmp_path):
    assert f"asks for '{asked_for}'" in refusal(START + NAMES[asked_for] + b")R.", tmp_path)


BUFFER = b"B" + struct.pack("<I", 4096) + bytes(4096)
CASES = {
    "persistent id": (b"Pname\n.", "PERSID"),
    "binary persistent id": (b"NQ.", "BINPERSID"),
    "extension 1": (b"\x82\x01.", "EXT1"),
    "extension 2": (b"\x83\x01\0.", "EXT2"),
    "extension 4": (b"\x84\x01\0\0\0.", "EXT4"),
    "instance": (b"(ios\nsystem\n.", "INST"),
    "object": (b"(" + name("numpy", "ndarray") + b"o.", "OBJ"),
    "new object": (name("numpy", "ndarray") + b")\x81.", "NEWOBJ"),
    "buffer from outside": (b"\x97.", "NEXT_BUFFER"),
    "name with a line break": (text("o\ns") + text("system\n") + b"\x93.", r"asks for 'o\ns.system\n'"),
    "state of a dict": (b"}}" + text("__setstate__") + b"Nsb.", "a state for an object of type dict"),
    "state of an ordered dict": (name("collections", "OrderedDict") + b")R}b.", "a state for an object of type dict"),
    "state of a list": (b"]}b.", "a state for an object of type list"),
    "state of a name": (name("numpy", "ndarray") + b"}b.", "a state for an object of type numpy.ndarray"),
    "ordered dict of items": (name("collections", "OrderedDict") + b"]\x85R.", "a call of 'collections.OrderedDict'"),
    "a call of ndarray": (name("numpy", "ndarray") + b"K\x02\x85\x85R.", "a call of 'numpy.ndarray'"),
    "a call of bytes": (name("builtins", "bytes") + b"J\xff\xff\xff\x7f\x85R.", "a call of 'builtins.bytes'"),
    "a call of text": (text("print") + b")R.", "a call of str"),
    "a name as data": (b"]" + name("numpy", "ndarray") + b"a.", "is where data should be"),
    "a dtype as data": (F4 + b".", "is where data should be"),
    "structured dtype": (name("numpy", "dtype") + b"]\x89\x88\x87R.", "a call of 'numpy.dtype'"),
    "void dtype": (name("numpy", "dtype") + text("V8") + b"\x89\x88\x87R.", "an array of numpy's type 'V8'"),
    "complex numbers": (name("numpy", "dtype") + text("c8") + b"\x89\x88\x87R.", "an array of numpy's type 'c8'"),
    "dtype with hostile state": (
        F4 + b"(K\x03" + text("<") + b"NN}J\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb.",
        "a dtype",
    ),
    "reconstruct another shape": (
        SHELL.replace(b"K\0", b"K\x09") + b".",
        "a call of 'numpy.core.multiarray._reconstruct'",
    ),
    "dtype with two states": (
        F4 + 2 * (b"(K\x03" + text(">") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\0tb") + b".",
        "a dtype with a state",
    ),
    "long text for bytes, as data": (name("_codecs", "encode") + text("a" * 70_000) + b"a.", "damaged"),
    "long text for bytes, kept": (
        b"]" + name("_codecs", "encode") + text("a" * 70_000) + b"q\x01" + text("latin1") + b"\x86R0h\x01a.",
        "latin1text is where data should be",
    ),
    "long text for bytes, not Latin-1": (
        name("_codecs", "encode") + text("语" * 70_000) + text("latin1") + b"\x86R.",
        "damaged",
    ),
    "reconstruct a dtype": (SHELL.replace(b"ndarray", b"dtype") + b".", "_reconstruct"),
    "encode to another codec": (name("_codecs", "encode") + text("x") + text("rot13") + b"\x86R.", "'_codecs.encode'"),
    "object scalar": (
        name("numpy.core.multiarray", "scalar") + OBJECT + b"C\x08" + bytes(8) + b"\x86R.",
        "a numpy scalar",
    ),
    "object array of bytes": (SHELL + b"(K\x01K\x01\x85" + OBJECT + b"\x89C\x08" + bytes(8) + b"tb.", "object array"),
    "object array of dicts": (SHELL + b"(K\x01K\x01\x85" + OBJECT + b"\x89]}atb.", "an object array that holds dict"),
    "object buffer": (
        name("numpy.core.numeric", "_frombuffer") + b"(C\x08" + bytes(8) + OBJECT + b"K\x01\x85" + text("C") + b"tR.",
        "a buffer that is not numpy's",
    ),
    "shape beyond the data": (SHELL + b"(K\x01J\xff\xff\xff\x7f\x85" + F4 + b"\x89C\x04aaaatb.", "2147483647"),
    "negative shape": (SHELL + b"(K\x01J\xff\xff\xff\xff\x85" + F4 + b"\x89C\x04aaaatb.", "shape"),
    "overflowing shape": (
        SHELL + b"(K\x01\x8a\x08" + bytes(7) + b"\x40" + b"K\x08\x86" + F4 + b"\x89C\0tb.",
        "4611686018427387904",
    ),
    "array never filled": (SHELL + b".", "without its numbers"),
    "array filled twice": (SHELL + 2 * (b"(K\x01K\x01\x85" + F4 + b"\x89C\x04aaaatb") + b".", "type ndarray"),
    "long text": (b"X\xff\xff\xff\xffabc.", "4294967295 bytes are declared"),
    "long bytes": (b"\x8e" + b"\xff" * 8 + b"abc.", "bytes are declared"),
    "long byte array": (b"\x96" + b"\xff" * 7 + b"\x7fabc.", "bytes are declared"),
    "long whole number": (b"\x8b\0\0\x10\0.", "64 bits"),
    "name without an end": (b"c" + b"a" * 10_000, "a name has no end"),
    "far memo": (b"]r\xff\xff\xff\xffj\xfe\xff\xff\xff.", "not there"),
    "deep lists": (b"]" * 100_000 + b"a" * 99_999 + b".", "deeper than"),
    "deep tuples": (b")" + b"\x85" * 100_000 + b".", "deeper than"),
    "a list in itself": (b"]q\0h\0a.", "deeper than"),
    "key that takes 2**60 steps to hash": (b"})" + b"q\0h\0\x86" * 60 + b"Ns.", "a dict key of type tuple"),
    "one buffer for many arrays": (
        F4 + b"q\x01" + BUFFER + b"q\x02](" + 5_000 * (SHELL + b"(K\x01M\0\x04\x85h\x01\x89h\x02tb") + b"e.",
        "far more than the file",
    ),
    "no characters": (
        SHELL + b"(K\x01K\x01\x85" + name("numpy", "dtype") + text("U1") + b"\x89\x88\x87R\x89C\x04\xff\xff\xff\xfftb.",
        "holds neither",
    ),
    "text that is not UTF-8": (b"\x8c\x01\xff.", "damaged"),
    "nothing on the stack": (b"\x86.", "damaged"),
    "two objects": (b"]].", "damaged"),
    "no mark": (b"e.", "damaged"),
    "more after the end": (b"].].", "2 bytes follow the end"),
}


@pytest.mark.parametrize("case", list(CASES))
def test_hostile_and_damaged_pickles_are_refused(case, tmp_path):
    data, reason = CASES[case]
    started = time.process_time()  # not the clock: others use the machine, too
    assert reason in refusal(START + data, tmp_path)
    assert time.process_time() - started < 5


def test_files_that_are_no_pickles(tmp_path):
    good = pickle.dumps(PLAIN, 4)
    assert "empty" in refusal(b"", tmp_path)
    assert "protocol 2 to 5" in refusal(b"id,text\n1,a\n", tmp_path)
    assert "protocol 2 to 5" in refusal(pickle.dumps([1], 0), tmp_path)
    assert "gzip archive; unpack" in refusal(gzip.compress(good), tmp_path)
    assert "zip archive" in refusal(b"PK\x03\x04" + bytes(50), tmp_path)
    for cut in (1, 2, 3, 11, len(good) // 2, len(good) - 1):
        refusal(good[:cut], tmp_path)
    with pytest.raises(ShardError, match="no such file"):
        load_pickle(tmp_path / "absent.pkl")
    with pytest.raises(ShardError, match="not a file"):
        load_pickle(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ShardError, match="not a file"):  # and does not wait for a writer
        load_pickle(tmp_path / "pipe")


def test_steps_are_limited(tmp_path, monkeypatch):
    data = pickle.dumps(list(range(1000)), 4)
    assert load(data, tmp_path)[-1] == 999
    monkeypatch.setattr(unpickle, "MAX_OPCODES", 1000)
    assert "more than 1000 steps" in refusal(data, tmp_path)


def test_describe_source(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert describe_source(tmp_path / "x") == {"file": "x", "bytes": 3, "sha256": digest}
    with pytest.raises(ShardError, match="no such file"):
        describe_source(tmp_path / "y")


def mutate(data: bytes, rng: random.Random, fragments: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(len(changed)), rng.randint(1, 30)
        match rng.randrange(7):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.randrange(256)
            case 2:
                changed[at : at + 4] = rng.choice([b"\xff" * 4, b"\xff\xff\xff\x7f", bytes(4), b"\0\0\0\x80"])
            case 3 if len(changed) > 100:
                del changed[at : at + length]
            case 4:
                source = rng.randrange(len(changed))
                changed[at:at] = changed[source : source + length]
            case 5:
                changed[at:at] = rng.choice(fragments)
            case _:
                changed[at:at] = bytes(
                    [rng.choice(b"(0129abcdehijloqrstuRPQ}])\x81\x82\x85\x86\x87\x8a\x8b\x93\x94\x96")]
                )
    return bytes(changed)


def is_plain(item: Any) -> bool:
    if isinstance(item, np.ndarray):
        return item.dtype.kind in "biufUS" or (item.dtype.kind == "O" and all(is_plain(x) for x in item.ravel()))
    if isinstance(item, dict):
        return all(is_plain(x) for pair in item.items() for x in pair)
    if type(item) in (list, tuple):
        return all(is_plain(x) for x in item)
    return item is None or isinstance(item, str | bytes | bytearray | int | float | np.generic)


def test_mutated_pickles_load_to_plain_data_or_are_refused_in_one_line(tmp_path):
    canary = tmp_path / "canary"
    rng = random.Random(5)
    seeds = [pickle.dumps({k: v for k, v in PLAIN.items() if k != "large"}, protocol) for protocol in (2, 3, 4, 5)]
    fragments = [
        *NAMES.values(),
        name("posix", "system") + text(f"touch {canary}") + b"\x85R",
        pickle.dumps(Evil(os.system, f"touch {canary}"), 4)[11:-1],
        SHELL,
        F4,
    ]
    loaded, long, slowest, largest = 0, 0, 0.0, 0
    for _ in range(600):
        data = mutate(rng.choice(seeds), rng, fragments)
        tracemalloc.start()
        started = time.process_time()
        try:
            assert is_plain(load(data, tmp_path))
            loaded += 1
        except ShardError as error:
            long += not is_short_line(str(error))
        finally:
            slowest = max(slowest, time.process_time() - started)
            largest = max(largest, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert not canary.exists()
    assert 20 < loaded < 580  # both ways out were taken
    assert long == 0
    assert slowest < 2
    assert largest < 4 << 20
