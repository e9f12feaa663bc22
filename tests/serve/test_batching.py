"""The model's thread: who comes together is answered together, and nobody pays for another."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest

from egmf_dist.serve.batching import Batcher


class Answers:
    """Stands in for a model: answers a sample by itself, refuses ``bad``, and can be held."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()

    def __call__(self, samples: Any) -> list[Any]:
        self.begun.set()
        assert self.go.wait(10)
        self.batches.append(list(samples))
        if "bad" in samples:
            raise ValueError("bad is among them")
        return list(samples)


@pytest.fixture
def held():
    """A batcher whose model has begun with something and waits."""
    answers = Answers()
    answers.go.clear()
    batcher = Batcher(answers, 4)
    first = batcher.submit(["first"])
    assert answers.begun.wait(10)
    yield answers, batcher
    answers.go.set()
    assert first.result(10) == (["first"], None)
    batcher.close()


def test_who_waits_is_answered_together_in_order_and_stays_whole(held):
    answers, batcher = held
    futures = [batcher.submit(samples) for samples in (["a"], ["b", "c"], ["d", "e"], ["f"] * 6, ["g"])]
    answers.go.set()
    assert [future.result(10)[0] for future in futures] == [["a"], ["b", "c"], ["d", "e"], ["f"] * 6, ["g"]]
    assert answers.batches == [["first"], ["a", "b", "c"], ["d", "e"], ["f"] * 6, ["g"]]


def test_an_error_is_its_own_requests_alone(held):
    answers, batcher = held
    futures = [batcher.submit(samples) for samples in (["a"], ["bad"], ["b"])]
    answers.go.set()
    assert [futures[place].result(10)[0] for place in (0, 2)] == [["a"], ["b"]]
    with pytest.raises(ValueError, match="bad is among them"):
        futures[1].result(10)


def test_what_was_given_up_costs_nothing_and_what_comes_behind_is_done(held):
    answers, batcher = held
    gone, kept = batcher.submit(["a"]), batcher.submit(["b"], lambda: threading.current_thread().name)
    assert gone.cancel()
    answers.go.set()
    assert kept.result(10) == (["b"], "egmf-model")
    with pytest.raises(CancelledError):
        gone.result(10)
    assert answers.batches[1:] == [["b"]]


def test_closing_answers_what_waits():
    answers = Answers()
    batcher = Batcher(answers, 4)
    futures = [batcher.submit([name]) for name in "abc"]
    batcher.close()
    assert [future.result(0)[0] for future in futures] == [["a"], ["b"], ["c"]]
    assert not batcher._thread.is_alive()
