"""This machine's rates: what is measured, and that a plan takes them."""

from __future__ import annotations

import time

import pytest
import torch

from egmf_dist.config import Config, TrainingConfig
from egmf_dist.ledger import Ledger
from egmf_dist.scale.calibrate import calibrate
from egmf_dist.scale.hardware import HARDWARE, with_rates
from egmf_dist.scale.timing import step_time


def test_a_product_takes_about_what_the_measured_rates_say():
    rates = calibrate(Config(training=TrainingConfig(precision="fp32")), ranks=2)
    assert all(rates[name] > 0 for name in ("flops", "bandwidth", "call", "link_bandwidth", "link_latency"))
    hardware = with_rates(HARDWARE["cpu"], rates)
    assert "measured" in hardware.source
    assert hardware.inside.bandwidth == rates["link_bandwidth"]
    a, b = torch.randn(512, 768), torch.randn(768, 768)
    with Ledger(alive=False) as ledger:
        a @ b
    planned = step_time(ledger.count, hardware, 1, 1).step
    found = []
    for _ in range(9):
        begin = time.perf_counter()
        a @ b
        found.append(time.perf_counter() - begin)
    # Beside other work a machine is slower by turns; a formula that is wrong is wrong by more.
    assert 0.2 < planned / sorted(found)[4] < 5


def test_one_rank_sends_nothing_so_nothing_is_sent(monkeypatch):
    monkeypatch.setattr("egmf_dist.scale.calibrate._messages", lambda: pytest.fail("sent"))
    assert calibrate(Config(), 1)["link_bandwidth"] > 0
