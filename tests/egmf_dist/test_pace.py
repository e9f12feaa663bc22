"""Slow ranks and starving loaders: what is judged, of what was really looked at."""

from __future__ import annotations

import linecache
import threading
import time
from types import FrameType, SimpleNamespace

import pytest

from egmf_dist.data import loader
from egmf_dist.training import pace
from egmf_dist.training.pace import Pace, Spent, judged, looking
from egmf_dist.training.stacks import stack_of, waits_for_ranks

HOSTS = ["a", "a", "b", "b"]


def test_a_rank_that_the_others_wait_for_is_slow() -> None:
    even = [Spent(10, 1, 0.2), Spent(10, 1.5, 0.1), Spent(10, 0.5, 0), Spent(10, 1, 0)]
    assert judged(even, HOSTS) == {}
    slow = [Spent(10, 5, 0), Spent(10, 4.5, 0), Spent(10, 0.5, 1), Spent(10, 5, 0)]
    assert judged(slow, HOSTS) == {
        (2, "slow"): "rank 2 on b is slower than the others: it works 95% of a step where half of them need 50% at "
        "most, and they wait for it; look at what else runs there, and at its clocks"
    }
    # All wait for the same thing outside (a collective over a slow link): nobody is to blame.
    assert judged([Spent(10, 8, 0)] * 4, HOSTS) == {}


def test_a_rank_that_waits_for_its_loader_starves_and_is_not_slow() -> None:
    spent = [Spent(10, 4, 0.5), Spent(10, 0.5, 4), Spent(10, 4, 0), Spent(10, 4, 0)]
    said = judged(spent, HOSTS)
    assert list(said) == [(1, "loader")]
    assert said[1, "loader"].startswith("rank 1 on a waits for its loader 40% of the time, and the others for it 35%; ")
    assert list(judged([Spent(10, 0, 3)], ["a"])) == [(0, "loader")]
    assert "the others" not in judged([Spent(10, 0, 3)], ["a"])[0, "loader"]


def test_what_lasts_is_said_once_and_a_burst_is_not() -> None:
    slow, even = [Spent(6, 3, 0), Spent(6, 0, 0)], [Spent(6, 1, 0), Spent(6, 1, 0)]
    of = Pace(["a", "b"])
    assert [of.add(one) for one in (slow, slow, even, slow, slow)] == [[]] * 5
    (said,) = of.add(slow)
    assert said.startswith("rank 1 on b is slower")
    assert [of.add(slow) for _ in range(5)] == [[]] * 5


def test_short_windows_are_put_together() -> None:
    of = Pace(["a", "b"])
    added = [of.add([Spent(1, 0.5, 0), Spent(1, 0, 0)]) for _ in range(15)]
    assert [len(said) for said in added] == [0] * 14 + [1]


@pytest.mark.parametrize(
    ("line", "waits"), [("handle.wait()", True), ("instrument_w_nvtx(handle.wait)()", True), ("hold()", False)]
)
def test_a_collective_that_was_begun_before_is_waited_for(
    line: str, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in ZeRO-3's gathers: no frame of torch's collectives is on the stack then, only the handle's wait."""
    from deepspeed.utils.nvtx import instrument_w_nvtx

    file = "/somewhere/deepspeed/runtime/zero/parameters.py"
    monkeypatch.setitem(linecache.cache, file, (len(line), None, [line], file))
    lock = threading.Lock()
    handle = SimpleNamespace(wait=lock.acquire)
    names = {"handle": handle, "hold": handle.wait, "instrument_w_nvtx": instrument_w_nvtx}
    with lock:
        thread = threading.Thread(target=lambda: exec(compile(line, file, "exec"), names), daemon=True)
        thread.start()
        until = time.monotonic() + 60
        while not (frames := stack_of(thread.ident)) or not stands(frames, file):
            assert time.monotonic() < until
            time.sleep(0.01)
        assert waits_for_ranks(frames) == waits
    thread.join()


def stands(frames: list[FrameType], file: str) -> bool:
    """In the file's one line, or in what DeepSpeed puts between it and the handle."""
    inner = frames[0].f_code.co_filename
    return inner == file or (inner.endswith("utils/nvtx.py") and frames[1].f_code.co_filename == file)


def test_a_thread_is_seen_at_its_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.6 s in the loader's file, then 0.6 s outside of it; a new window forgets."""
    monkeypatch.setattr(pace, "_LOOK_S", 0.005)
    waiting = compile("time.sleep(0.6)", loader.__file__, "exec")
    with looking() as looks:
        exec(waiting, {"time": time})
        time.sleep(0.6)
        spent = looks.read()
        assert spent.ranks == 0
        assert 0.2 < spent.loader / spent.all < 0.8
        time.sleep(0.2)
        assert looks.read().loader == 0
