"""Bars for long work: drawn on a terminal only; they follow the work and are never in its way."""

from __future__ import annotations

import io
import pickle
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from egmf_shards import ShardError
from egmf_shards import progress as bars
from egmf_shards.importers import unpickle
from egmf_shards.importers.unpickle import load_pickle


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal would have been shown."""
    shown = io.StringIO()
    monkeypatch.setattr(
        bars, "Console", lambda stderr: Console(file=shown, force_terminal=True, width=100, color_system=None)
    )
    return shown


def test_a_bar_of_bytes_follows_the_position(terminal):
    at = 0
    with bars.byte_progress("reading x.pkl", 2_000_000, lambda: at):
        at = 500_000
        time.sleep(0.25)  # two frames of rich
    assert "reading x.pkl" in terminal.getvalue()
    assert "0.5/2.0 MB" in terminal.getvalue()


def test_where_there_is_no_terminal_nothing_is_drawn(capsys):
    with bars.byte_progress("reading", 10, lambda: pytest.fail("nobody asks where the work is")):
        time.sleep(0.15)
    assert list(bars.progress([1, 2], "counting")) == [1, 2]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_long_reads_are_shown_in_pieces_and_give_the_same_data(protocol, tmp_path, terminal, monkeypatch):
    data = {"a": np.arange(60_000, dtype=np.float64).reshape(20, 50, 60), "b": "x" * 5000, "c": [1, None, b"12"]}
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(data, protocol))
    monkeypatch.setattr(unpickle, "_PIECE", 1000)
    seen: list[int] = []
    monkeypatch.setattr(bars._Polled, "get_renderables", lambda bar: seen.append(bar._position()) or [])
    loaded = load_pickle(path)
    np.testing.assert_array_equal(loaded.pop("a"), data.pop("a"))
    assert loaded == data
    assert seen[-1] == path.stat().st_size, "the last frame shows the whole file"


def test_a_file_that_becomes_shorter_in_a_long_read(tmp_path, monkeypatch):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(b"x" * 50_000, 4))
    monkeypatch.setattr(unpickle, "_PIECE", 1000)
    check = unpickle._Machine._check_start

    def shorten(machine: unpickle._Machine) -> None:
        check(machine)
        with path.open("r+b") as file:
            file.truncate(20_000)

    monkeypatch.setattr(unpickle._Machine, "_check_start", shorten)
    with pytest.raises(ShardError, match="the file became shorter while it was read"):
        load_pickle(path)


def test_a_refused_pickle_leaves_the_terminal_as_it_was(tmp_path, terminal):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(print))
    threads = set(sys._current_frames())
    with pytest.raises(ShardError, match="print"):
        load_pickle(path)
    for _ in range(50):
        if set(sys._current_frames()) <= threads:
            break
        time.sleep(0.1)
    assert set(sys._current_frames()) <= threads, "the bar's thread has ended"
    assert terminal.getvalue().endswith(("\x1b[?25h", "\x1b[2K")), "the cursor is back, the bar is gone"


def test_pieces_cost_no_second_copy(tmp_path: Path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(np.ones(8_000_000, np.float32), 4))
    size = path.stat().st_size
    assert size > unpickle._PIECE
    tracemalloc.start()
    try:
        loaded = load_pickle(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert loaded.sum() == 8_000_000
    assert peak < 1.3 * size + unpickle._PIECE
