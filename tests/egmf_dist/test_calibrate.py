"""This machine's rates: what is measured, and that a plan takes them."""

from __future__ import annotations

import pytest
import torch

from egmf_dist.config import Config, TrainingConfig
from egmf_dist.ledger import Ledger
from egmf_dist.scale.calibrate import calibrate
from egmf_dist.scale.hardware import HARDWARE, with_rates
from egmf_dist.scale.timing import step_time


def test_what_is_measured_is_what_a_plan_takes():
    threads = torch.get_num_threads()
    rates = calibrate(Config(training=TrainingConfig(precision="fp32")), ranks=2)
    assert all(rates[name] > 0 for name in ("flops", "bandwidth", "call", "link_bandwidth", "link_latency"))
    hardware = with_rates(HARDWARE["cpu"], rates)
    assert "measured" in hardware.source
    assert hardware.inside.bandwidth == rates["link_bandwidth"]
    with Ledger(alive=False) as ledger:
        torch.randn(512, 768) @ torch.randn(768, 768)
    flops, calls = 2 * 512 * 768 * 768, sum(ledger.count.work.values())
    # A product of such a size is bound by its operations; how long it takes is for a benchmark to say.
    assert step_time(ledger.count, hardware, 1, 1).step >= flops / rates["flops"] + calls * rates["call"]
    assert torch.get_num_threads() == threads


def test_one_rank_sends_nothing_so_nothing_is_sent(monkeypatch):
    monkeypatch.setattr("egmf_dist.scale.calibrate._messages", lambda: pytest.fail("sent"))
    assert calibrate(Config(), 1)["link_bandwidth"] > 0
