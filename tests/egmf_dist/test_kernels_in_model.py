"""The Triton kernels inside the model: every one is called at both widths, and training with them is training without.

Kernels are interpreted here, so shapes are tiny; see tests/kernels for the kernels by themselves.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.config.check import check_config
from egmf_dist.data.run_data import RunData
from egmf_dist.errors import EgmfError
from egmf_kernels.ops.common.launch import watching

STREAMS = {"audio": [6], "vision": [5]}
ALWAYS = {
    "ms_dwconv_forward",
    "ms_dwconv_backward",
    "mix_norm_forward",
    "mix_norm_backward",
    "ragged_pool_gate_forward",
    "ragged_pool_gate_backward",
    "modality_mix_forward",
    "modality_mix_backward",
    "segment_sum_kernel",
}
PROJECTION = {
    "expert_gate_forward",
    "expert_gate_backward",
    "gated_tri_proj_forward",
    "gated_tri_proj_backward_a",
    "gated_tri_proj_backward_w",
}


@pytest.fixture
def build(random_backbone, tasks):
    def make(**settings):
        config = Config(
            data=DataConfig(shards=["unused"]),
            backbone=BackboneConfig(path=str(random_backbone), lora_rank=4, lora_alpha=8, lora_dropout=0.0),
            model=replace(ModelConfig(width=32, heads=2, pseudo_tokens=2), **settings),
            training=TrainingConfig(precision="fp32"),
        )
        data = RunData(tasks, ["en", "zh"], STREAMS, {})
        capabilities, collator = read_backbone(config, data)
        return build_egmf(config, capabilities, data), collator

    return make


def launches(model, batch) -> Counter[str]:
    """How often each kernel is launched by one loss and its gradients."""
    seen: Counter[str] = Counter()

    def count(kernel, *rest) -> bool:
        seen[kernel.__name__] += 1
        return True

    with watching(count):
        model(batch).total.backward()
    return seen


@pytest.mark.parametrize("width", [32, 1024])
def test_every_kernel_is_called_and_the_loss_is_the_references(build, make_samples, width):
    samples = make_samples(2, [(1, 1, 1), (1, 0, 1)])
    losses, counts = [], []
    for kernels in ("reference", "triton"):
        model, collator = build(width=width, kernels=kernels, modality_weight_in="mix")
        batch = collator(samples, [1.0, 1.0])
        counts.append(launches(model, batch))
        losses.append(float(model(batch).total))
    assert not counts[0]
    names = ALWAYS | (PROJECTION if width == 32 else set())
    assert set(counts[1]) == names
    # Once each; up to 512 the norm after gated_tri_proj is a second mix_norm of no streams, nothing else is doubled.
    assert set(counts[1].values()) == {1}
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_fifty_steps_of_training_are_the_same(build, make_samples):
    """EGMF with the kernels interpreted against the reference: the same losses to 1e-5 in fp32."""
    samples = make_samples(3, [(1, 1, 1), (1, 0, 1), (0, 1, 0)])
    runs = []
    for kernels in ("reference", "triton"):
        model, collator = build(width=16, kernel_sizes=[3], kernels=kernels)
        batch = collator(samples, [1.0] * 3)
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        losses = []
        for _ in range(50):
            optimiser.zero_grad()
            loss = model(batch).total
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        runs.append(torch.tensor(losses))
    assert runs[0][-1] < 0.7 * runs[0][0]  # it did learn, so agreement says something
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-5, atol=0)


def test_the_log_line_and_what_cannot_run(build):
    device = torch.device("cpu")
    model, _ = build(kernels="auto")
    assert model.describe_kernels(device).startswith("kernels auto: reference (ms_dwconv")
    model, _ = build(kernels="triton")
    assert (
        "triton (ms_dwconv, gated_expert_mix, ragged_pool_gate) [width 32, float32, cpu, mix by gated_tri_proj and norm"
        in model.describe_kernels(device)
    )
    model, _ = build(pseudo_tokens=0)
    assert "no fusion" in model.describe_kernels(device)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 4096}, "model.width is 4096; it must be at most 2048 for model.kernels triton"),
        ({"pseudo_tokens": 9}, "model.pseudo_tokens is 9; it must be at most 8 for model.kernels triton"),
        ({"width": 2048, "pseudo_tokens": 8}, "model.pseudo_tokens is 8; it must be at most 4 "),
        ({"kernel_sizes": [3, 9]}, r"model.kernel_sizes is \[3, 9\]; it must be none above 7"),
    ],
)
def test_asked_for_by_name_the_limits_are_rules(settings, message):
    config = Config(
        data=DataConfig(shards=["x"]),
        backbone=BackboneConfig(path="x"),
        model=replace(ModelConfig(heads=1), kernels="triton", **settings),
    )
    with pytest.raises(EgmfError, match=message):
        check_config(config)
    check_config(replace(config, model=replace(config.model, kernels="auto")))


def test_without_a_gpu_or_interpreter_triton_is_refused(build, monkeypatch):
    import egmf_kernels.select

    model, _ = build(kernels="triton")
    monkeypatch.setattr(egmf_kernels.select, "interpreted", lambda: False)
    with pytest.raises(EgmfError, match=r"model.kernels is 'triton': .*Triton needs CUDA.*'auto' picks what can run"):
        model.describe_kernels(torch.device("cpu"))
