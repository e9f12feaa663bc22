"""``egmf bench data``: its protocol, its check of what readers deliver, its environments, and one small run.

No environment is built here: WebDataset and the padded pickle run in the tests' own.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import mmap
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from egmf_dist.bench import data, environments, samples
from egmf_dist.bench.peers import protocol
from egmf_dist.bench.run_peer import run_peer
from egmf_dist.errors import EgmfError
from egmf_launcher.bench_data import bench_data

COUNT = 96


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``shards/`` and ``truth.json``."""
    folder = tmp_path_factory.mktemp("bench")
    samples.write(samples.SMALL, COUNT, folder, 40)
    return folder


def read(name: str, written: Path, folder: Path, **options: Any) -> dict[str, Any]:
    arguments = {"data": str(folder), "files": sorted(map(str, folder.glob("*.*"))), "seconds": 0.01, "batch": 32}
    arguments |= {"truth": str(written / "truth.json"), "workers": 0, "first_only": False} | options
    return run_peer(sys.executable, data.PEERS / f"read_{name}.py", arguments, os.environ)


def test_sizes_are_what_they_are_called() -> None:
    for size, wanted in ((samples.SMALL, 27_000), (samples.LARGE, 300_000)):
        lengths = [s.features["audio"].nbytes + s.features["vision"].nbytes for s in samples.generate(size, 300)]
        assert abs(np.mean(lengths) / wanted - 1) < 0.06
        assert min(lengths) < 0.7 * wanted < 1.3 * wanted < max(lengths)


def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # Every process imports torch; without workers WebDataset is measured in half as many.
    peer = dataclasses.replace(data.READERS["webdataset"], ways=data.READERS["webdataset"].ways[:1])
    monkeypatch.setitem(data.READERS, "webdataset", peer)
    (tmp_path / "mine.txt").write_text("mine")
    assert bench_data(tmp_path, samples=512, quick=True, peers=["webdataset"], environments="") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "summary.json", "results.csv", "readers.png"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["samples"] == {"27kb": 512, "300kb": 64}
    assert summary["correct"] is True
    assert set(summary["versions"]) == {"ours", "webdataset"}
    figures, ratios = summary["figures"], summary["ratios"]
    assert set(figures) == {
        f"{z}.{r}.{s}" for z in ("27kb", "300kb") for r in summary["versions"] for s in data.STATES
    } | {f"first_batch_64_shards.{reader}" for reader in summary["versions"]}
    assert all(value > 0 for value in figures.values())
    assert ratios["vs_webdataset"] == pytest.approx(figures["27kb.ours.warm"] / figures["27kb.webdataset.warm"], 1e-3)
    assert {name for name, ratio in ratios.items() if ratio is None} == {"vs_energon", "vs_mds", "vs_ray", "vs_pickle"}
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (2 + 1) * 2 * 2  # ways, sizes, states
    assert sum(row["best"] == "True" for row in rows) == 8
    printed = capsys.readouterr().out
    assert f"vs_webdataset: {ratios['vs_webdataset']:.2f}" in printed
    assert all(note in printed for note in data.NOTES)


def test_the_padded_pickle_delivers_what_was_written(written: Path, tmp_path: Path) -> None:
    prepared = {"prepare": True, "source": str(written / "shards"), "data": str(tmp_path)}
    run_peer(sys.executable, data.PEERS / "read_pickle.py", prepared, os.environ)
    result = read("pickle", written, tmp_path)
    assert result["complaint"] == ""
    assert result["cold"][0] == result["warm"][0][0] == COUNT


def test_a_reader_that_delivers_something_else_has_no_warm_figure(written: Path, tmp_path: Path) -> None:
    truth = json.loads((written / "truth.json").read_text())
    truth["bench-000007"]["crc"] ^= 1
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    result = read("ours", written, written / "shards", truth=str(tmp_path / "truth.json"))
    assert result["complaint"] == f"1 of {COUNT} wrong (bench-000007 has other features than were written)"
    assert result["warm"] == []


def batch(padded: bool = False) -> tuple[protocol.Batch, dict[str, Any]]:
    """Three samples, and the truth about them."""
    rng = np.random.default_rng(0)
    arrays = [[rng.normal(size=(n, 4)).astype(np.float32) for n in lengths] for lengths in ((2, 3, 4), (5, 1, 2))]
    facts = [{"id": name, "text": f"text of {name}", "context": [["A", "no"]]} for name in "abc"]
    truth = {
        f["id"]: {"crc": zlib.crc32(v.tobytes(), zlib.crc32(a.tobytes())), "facts": f}
        for f, a, v in zip(facts, *arrays, strict=True)
    }
    made = protocol.pack([dict(f) for f in facts], *arrays)
    if padded:
        dense = [torch.nn.utils.rnn.pad_sequence([torch.from_numpy(x) for x in xs], batch_first=True) for xs in arrays]
        made = made._replace(audio=dense[0], vision=dense[1])
    return made, truth


@pytest.mark.parametrize("padded", [False, True])
def test_the_check_passes_what_is_right(padded: bool) -> None:
    made, truth = batch(padded)
    assert protocol.check(iter([made]), truth) == ""
    tuples = made._replace(facts=[f | {"context": (("A", np.str_("no")),)} for f in made.facts])
    assert protocol.check(iter([tuples]), truth) == ""


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda b: [], "3 of 3 missing (a)"),
        (lambda b: [b, b], "3 of 3 more than once (a)"),
        (lambda b: [b._replace(audio=b.audio.flip(0))], "has other features"),
        (lambda b: [b._replace(vision=b.vision + 1e-6)], "has other features"),
        (lambda b: [b._replace(audio_frames=np.array([3, 2, 4]))], "2 of 3 wrong (a has other features"),
        (lambda b: [b._replace(facts=b.facts[::-1])], "has other features"),
        (lambda b: [b._replace(facts=[f | {"text": "x"} for f in b.facts])], "has other text or target"),
        (lambda b: [b._replace(facts=[f | {"id": "d"} for f in b.facts])], "d was never written"),
    ],
)
def test_the_check_finds_what_is_wrong(spoil: Any, says: str) -> None:
    made, truth = batch()
    assert says in protocol.check(iter(spoil(made)), truth)


def test_dropped_files_leave_the_page_cache(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(1 << 20))
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True).stdout.strip()
    if kind in ("tmpfs", "ramfs"):
        pytest.skip(f"the temporary folder is on {kind}, which is the page cache")
    file.read_bytes()
    assert protocol.resident_pages(file).any()
    assert protocol.drop([file]) < 0.5


def test_looking_at_the_page_cache_brings_nothing_in(tmp_path: Path) -> None:
    """One look of before read a page ahead, and the next one counted what it had brought."""
    file, empty = tmp_path / "file", tmp_path / "empty"
    file.write_bytes(os.urandom(1 << 20))
    empty.write_bytes(b"")
    protocol.drop([file])
    first = protocol.resident_pages(file).sum()
    time.sleep(0.05)  # a read-ahead would be done
    assert protocol.resident_pages(file).sum() <= first
    assert len(protocol.resident_pages(file)) == (1 << 20) // mmap.PAGESIZE
    assert protocol.drop([empty]) == 0.0


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("print('no JSON')", "exit code 0 without a message"),
        ("import os; os.write(2, b'bad\\n'); os.kill(os.getpid(), 9)", "bad"),
    ],
)
def test_a_reader_that_fails_says_why_in_one_line(script: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "peer.py").write_text(script)
    with pytest.raises(EgmfError) as told:
        run_peer(sys.executable, tmp_path / "peer.py", {}, os.environ)
    assert str(told.value) == says


def test_a_reader_that_hangs_is_ended_with_its_workers(tmp_path: Path) -> None:
    (tmp_path / "peer.py").write_text(
        "import os, pathlib, time\n"
        "if os.fork() == 0:\n"
        f"    pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    for seconds in (3, 60):  # a busy machine may need more than three seconds to start it
        with pytest.raises(EgmfError, match=f"not finished after {seconds} s"):
            run_peer(sys.executable, tmp_path / "peer.py", {}, os.environ, seconds=seconds)
        if (tmp_path / "child").exists():
            break
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        try:
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"process {child} still runs")


def fake(script: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    name = script.stem.removeprefix("read_")
    if name == "energon":
        raise EgmfError("it broke")
    if arguments.get("prepare"):
        (Path(arguments["data"]) / "all.mds").write_text("")
        return {"versions": {}}
    wrong = "1 of 512 missing (x)" if name == "webdataset" and arguments["workers"] == 0 else ""
    speed = {"ours": 1000, "mds": 400 if arguments.get("by_number") else 100}.get(name, 50)
    return {
        "imports": 1.0, "first_batch": 0.5, "still_cached": 0.25, "complaint": wrong, "versions": {"torch": "1"},
        "cold": [0, 0.0], "warm": [[speed, 0.5], [speed, 1.5]],
    }  # fmt: skip


def test_a_failure_is_an_error_in_its_row_and_never_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "run_peer", lambda python, script, arguments, environment: fake(script, arguments))
    peers = ["webdataset", "energon", "mds"]
    assert bench_data(tmp_path, samples=512, peers=peers, environments="") == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["correct"] is False
    assert summary["ratios"] == {
        "vs_webdataset": 20.0, "vs_energon": None, "vs_mds": 2.5, "vs_ray": None, "vs_pickle": None
    }  # fmt: skip
    assert summary["figures"]["27kb.ours.warm"] == 1000
    assert not any(name.endswith("cold") or "energon" in name for name in summary["figures"])
    bad = [row for row in summary["rows"] if row["reader"] == "webdataset" and row["way"] == "0 workers"]
    assert len(bad) == 4
    assert all(row["samples_per_s"] is None and row["error"].startswith("wrong data: 1 of 512") for row in bad)
    assert "Megatron Energon is not measured: it broke" in summary["notes"]
    assert any(note.startswith("cold passes were not all cold: 25%") for note in summary["notes"])
    printed = capsys.readouterr().out
    assert printed.count("Megatron Energon is not measured: it broke") == 2  # when it happened, and among the notes
    assert "WebDataset, 27kb, 0 workers: wrong data: 1 of 512 missing (x)" in printed


def test_our_own_reader_may_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> dict[str, Any]:
        raise EgmfError("ShardError: bits")

    monkeypatch.setattr(data, "run_peer", broken)
    with pytest.raises(EgmfError, match="our own reader failed on 27kb, 0 workers: ShardError: bits"):
        bench_data(tmp_path, samples=512, peers=[], environments="")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"peers": ["tfrecord"]}, "--peers names 'tfrecord'; it may name webdataset, energon, mds, ray, pickle"),
        ({"samples": 100}, "--samples is 100; at least 512 are needed"),
        ({"samples": 10**12}, "GB are free; 1000000000000 samples in all formats need 500000000.0 GB"),
        ({"out": "file"}, "--out file: File exists"),
        ({"out": "foreign"}, "foreign/summary.json: not a report of egmf bench data"),
    ],
)
def test_a_mistake_is_one_line(
    options: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("foreign").mkdir()
    Path("foreign", "summary.json").write_text('{"kind": "measured"}')
    with pytest.raises(EgmfError) as told:
        bench_data(Path(options.pop("out", "out")), environments="", **options)
    assert says in str(told.value)
    assert "\n" not in str(told.value)


def test_every_peer_has_a_script_and_complete_pins() -> None:
    for name in data.PEER_NAMES:
        assert (data.PEERS / f"read_{name}.py").is_file()
        pins = (data.PEERS / f"{name}.txt").read_text().split()
        assert len(pins) == len({pin.partition("==")[0].lower() for pin in pins}) > 5
        assert all(pin.count("==") == 1 and "+" not in pin for pin in pins)
        assert "torch==2.13.0" in pins


def test_an_environment_is_built_once_and_again_for_other_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def call(command: list[str], name: str) -> None:
        calls.append(command[2])
        if command[2] == "venv":
            Path(command[-1], "bin").mkdir(parents=True)
        elif "bad" in Path(command[-1]).read_text():
            raise EgmfError("pip said: no")

    monkeypatch.setattr(environments, "_call", call)
    monkeypatch.setattr(environments, "PINS", tmp_path)
    pins, cache = tmp_path / "mds.txt", tmp_path / "cache"
    pins.write_text("numpy==2.0")
    assert not environments.is_built("mds", cache)
    first = environments.python_of("mds", cache)
    assert environments.is_built("mds", cache)
    assert environments.python_of("mds", cache) == first
    assert calls == ["venv", "pip"]
    pins.write_text("numpy==2.1")
    second = environments.python_of("mds", cache)
    assert calls == ["venv", "pip"] * 2
    assert second.parent.is_dir()
    assert not first.parents[1].exists()
    pins.write_text("bad")
    with pytest.raises(EgmfError, match="pip said: no"):
        environments.python_of("mds", cache)
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_what_pip_said_is_in_the_message() -> None:
    script = "print('Collecting'); print('ERROR: No matching distribution'); print('more'); raise SystemExit(1)"
    with pytest.raises(
        EgmfError, match=r"environment of mds cannot be built; pip said: ERROR: No matching distribution$"
    ):
        environments._call([sys.executable, "-c", script], "mds")
