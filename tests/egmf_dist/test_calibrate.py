"""This machine's rates: what is measured, what follows from it, and that a plan takes them."""

from __future__ import annotations

from collections import Counter

import pytest

from egmf_dist.config import Config, TrainingConfig
from egmf_dist.errors import EgmfError
from egmf_dist.ledger import Count
from egmf_dist.scale import calibrate
from egmf_dist.scale.calibrate import Step, fitted, rates_of
from egmf_dist.scale.hardware import HARDWARE, Rates, with_rates
from egmf_dist.scale.measured import MOST_OFF, row_of
from egmf_dist.scale.timing import step_time
from egmf_launcher.cli import main

RATES = Rates(((1e6, 1e10), (1e9, 4e10)), ((1e4, 2e10), (1e8, 5e9)), 0.0, {"all-reduce": (1e9, 1e-4)}, "measured")
COUNTS = [
    Count(Counter({("all-reduce", 10**6, 2): 3}), Counter({(10**6, 10**4): 5000})),
    Count(Counter({("all-reduce", 10**6, 2): 3}), Counter({(10**9, 10**6): 800})),
]


def steps(slower: float, call: float) -> list[Step]:
    """What a machine of such rates would take."""
    hardware = with_rates(
        HARDWARE["cpu"],
        RATES._replace(
            products=tuple((size, rate / slower) for size, rate in RATES.products),
            moves=tuple((size, rate / slower) for size, rate in RATES.moves),
            call=call,
        ),
    )
    return [Step(count, step_time(count, hardware, 1, 2).step) for count in COUNTS]


def test_what_the_trainings_take_gives_the_rates_back():
    assert fitted(steps(1.4, 3e-5), RATES, 2) == pytest.approx((1.4, 3e-5))
    found = [
        {
            "products": [[size, rate * factor] for size, rate in RATES.products],
            "moves": [[size, rate * factor] for size, rate in RATES.moves],
            "messages": {kind: list(pair) for kind, pair in RATES.messages.items()},
            "steps": [{"count": one.count.to_json(), "seconds": one.seconds} for one in steps(1.4, 3e-5)],
        }
        for factor in (0.9, 1.1)  # of two processes the mean
    ]
    rates = rates_of(found, 2)
    hardware = with_rates(HARDWARE["cpu"], rates)
    for step in steps(1.4, 3e-5):
        assert step_time(step.count, hardware, 1, 2).step == pytest.approx(step.seconds)


@pytest.mark.parametrize("taken", [(1.0, 100.0), (100.0, 1.0)])
def test_a_machine_that_something_else_kept_busy_is_said(taken):
    odd = [Step(step.count, seconds) for step, seconds in zip(steps(1, 1e-5), taken, strict=True)]
    with pytest.raises(EgmfError, match=r"something else kept this machine busy") as caught:
        fitted(odd, RATES, 2)
    assert "\n" not in str(caught.value)


def test_a_kind_of_message_takes_its_own_rate():
    kinds = {"all-reduce": (1e9, 1e-4), "all-gather": (2e9, 3e-4)}
    hardware = with_rates(HARDWARE["cpu"], RATES._replace(messages=kinds))
    count = Count(Counter({("all-gather", 2_000_000, 2): 1}))
    assert step_time(count, hardware, 1, 2).inside == pytest.approx(3e-4 + 1e6 / 2e9)


@pytest.mark.distributed
def test_processes_measure_products_operators_messages_and_two_trainings():
    config = Config(training=TrainingConfig(precision="fp32", zero_stage=3))
    first, second = calibrate.measured(config, 2, {calibrate.NARROW: 1})
    assert set(first["messages"]) == {"all-reduce", "all-gather", "reduce-scatter"}
    for one in (first, second):
        for rates in (one["products"], one["moves"]):
            sizes = [size for size, _ in rates]
            assert sizes == sorted(sizes)
            assert all(rate > 0 for _, rate in rates)
        assert all(bandwidth > 0 and latency > 0 for bandwidth, latency in one["messages"].values())
        (step,) = one["steps"]
        assert step["seconds"] > 0
        count = Count.from_json(step["count"])
        assert count.flops > 0
        assert set(count.bytes_by_kind) >= {"all-gather", "reduce-scatter"}


def test_one_rank_sends_nothing():
    alone = RATES._replace(messages={})
    assert with_rates(HARDWARE["cpu"], alone).inside == HARDWARE["cpu"].inside


def test_a_bench_row_says_how_far_off_a_plan_was_and_whether_that_is_kept():
    predicted = {"step": 1.2, "compute": 1.0, "host": 0.1, "inside": 0.1, "reading": 0.0}
    once, disturbed = [1.0, 1.0], [1.0, 9.0]
    ranks = [
        {"plain": [1.0, 0.9, *once, *once], "profiled": [1.02, 1.0, *once, *disturbed], "phases": [1.0, 0.98] * 3},
        {"plain": [0.8, 1.0, *once, *once], "profiled": [1.0, 1.02, 1.02, 1.02, *once], "phases": [1.0, 1.0] * 3},
    ]
    row = row_of("small-3", predicted, ranks)
    assert row["ratio"] == pytest.approx(1.2)
    assert row["profiled"] == pytest.approx(1.02)  # of each step the slowest rank's
    assert (row["phases"], row["met"]) == (0.98, True)
    for change in ({"step": 1 + MOST_OFF + 0.01}, {"step": 1 - MOST_OFF - 0.01}):
        assert not row_of("small-3", predicted | change, ranks)["met"]
    slow = [ranks[0] | {"profiled": [1.1] * 6}, ranks[1]]
    assert not row_of("small-3", predicted, slow)["met"]
    short = [ranks[0] | {"phases": [0.9, 1.0] * 3}, ranks[1]]
    assert not row_of("small-3", predicted, short)["met"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--cases tiny", "--cases names 'tiny'; it may name small-1, small-3, wide-1, wide-3"),
        ("--steps 6", "--steps is 6; it must be a multiple of 4"),
    ],
)
def test_a_bench_that_cannot_be_is_one_line(tmp_path, capsys, words, says):
    assert main(["bench", "plan", "--out", str(tmp_path / "out"), *words.split()]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
