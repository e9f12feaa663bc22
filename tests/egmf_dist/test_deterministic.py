"""The deterministic switch and what goes with it; what it does to a GPU's bits is in kernels/benchmarks/results."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from egmf_dist.errors import EgmfError
from egmf_dist.inference import scorer
from egmf_dist.training.deterministic import deterministic


def test_the_switch_is_on_within_and_as_before_after(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(True):
        # Warning alone would leave the backward pass of attention as it is.
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_that_cannot_is_named_and_other_errors_are_their_own():
    with pytest.raises(EgmfError, match=r"^training\.deterministic: put_ .*; leave"), deterministic(True):
        # The one operation that torch's CPU build refuses.
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
    with pytest.raises(RuntimeError, match="size of tensor"), deterministic(True):
        torch.zeros(3) + torch.zeros(2)
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_a_gpu_rounds_products_to_is_known():
    """With TF32 a trained score moved by 0.008 behind padding on an H100, and the run was refused."""
    on_gpu = SimpleNamespace(dtype=torch.float32, is_cuda=True)
    assert scorer._arithmetic(on_gpu) == scorer._arithmetic(torch.zeros(1)) == "float32"
    assert scorer._arithmetic(torch.zeros(1, dtype=torch.bfloat16)) == "bfloat16"
    try:
        torch.set_float32_matmul_precision("high")
        assert scorer._arithmetic(on_gpu) == "tf32"
        assert scorer._arithmetic(torch.zeros(1)) == "float32"
    finally:
        torch.set_float32_matmul_precision("highest")
