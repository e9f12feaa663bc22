"""A fusion, an objective and a way of tuning from outside the package: a name in the settings, and nothing else."""

from __future__ import annotations

import textwrap
from dataclasses import replace

import pytest
import torch

from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.data.run_data import RunData
from egmf_dist.errors import EgmfError
from egmf_dist.inference.predictions import predictions
from egmf_dist.inference.scorer import TreeScorer
from egmf_dist.model.fusion.base import FUSIONS
from egmf_dist.model.trained import trained_parameters

MINE = """
    import torch
    from egmf_dist.model.fusion.base import Fused
    from egmf_dist.objectives.base import LossSums

    BETA = 0.5

    class MeanFusion(torch.nn.Module):
        diagnostics = {"size": ["tokens", "norm"]}

        def __init__(self, config, modalities, tasks, languages):
            super().__init__()
            self.spread = torch.nn.Linear(config.width, config.pseudo_tokens * config.width)
            self.shape = config.pseudo_tokens, config.width

        def describe(self, device):
            return "kernels: none, a mean"

        def forward(self, x_TD, batch):
            bounds = batch.cu_segments.long()[::3]
            mean_BD = torch.segment_reduce(x_TD, "mean", offsets=bounds, axis=0, initial=0)
            size_B2 = torch.stack([bounds.diff().float(), mean_BD.norm(dim=1).float()], 1).detach()
            return Fused(self.spread(mean_BD).view(-1, *self.shape), {"size": size_B2})

    class Small:
        \"\"\"Asks for a small fused representation; the language model is left out.\"\"\"

        def __init__(self, config, tasks):
            self.width = config.model.width

        def head(self):
            return torch.nn.Linear(self.width, 1)

        def __call__(self, model, batch):
            loss_B = model.auxiliary(model.fuse(batch).pooled_BKD).pow(2).flatten(1).sum(1) * batch.weight_B
            total = loss_B.sum()
            return LossSums(total, total.detach(), torch.zeros_like(total), batch.weight_B.sum())

    def norms(backbone, config):
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_("norm" in name)
        return backbone
"""


@pytest.fixture
def build(random_backbone, tasks, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(textwrap.dedent(MINE))
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(model=None, training=None, backbone=None):
        config = Config(
            data=DataConfig(shards=["unused"]),
            backbone=replace(BackboneConfig(path=str(random_backbone), lora_rank=4), **(backbone or {})),
            model=replace(ModelConfig(width=32, heads=2, pseudo_tokens=2), **(model or {})),
            training=replace(TrainingConfig(precision="fp32"), **(training or {})),
        )
        data = RunData(tasks, ["en", "zh"], {"audio": [6], "vision": [5]}, {})
        capabilities, collator = read_backbone(config, data)
        return build_egmf(config, capabilities, data).eval(), collator

    return make


def test_ones_own_fusion_is_trained_and_what_it_says_is_shown(build, make_samples):
    model, collator = build(model={"fusion": "mine:MeanFusion"})
    samples = make_samples(3)
    model(collator(samples, [1.0] * 3)).total.backward()
    assert model.fusion.spread.weight.grad.abs().sum() > 0
    assert model.describe_kernels(torch.device("cpu")) == "kernels: none, a mean"
    scorer = TreeScorer(collator, model.capabilities, 8)
    with torch.no_grad():
        scores = model(scorer.prepare(samples, [1.0] * 3), scorer)
    rows = predictions(samples, collator.tasks, scores, model.diagnostics, [0] * 3)
    tokens = collator(samples, [1.0] * 3).cu_segments[::3].diff().tolist()
    assert [row["gates"]["size"]["tokens"] for row in rows] == tokens
    for columns in ({}, {"size": ["tokens"]}):
        with pytest.raises(EgmfError, match=r"'size' of shape \[3, 2\]; its `diagnostics` name [01] columns of it"):
            predictions(samples, collator.tasks, scores, columns, [0] * 3)


def test_an_objective_may_leave_the_language_model_out(build, make_samples):
    model, collator = build(training={"objective": "mine:Small"})
    sums = model(collator(make_samples(3), [1.0, 1.0, 0.0]))
    assert float(sums.valid) == 2.0
    sums.total.backward()
    with_gradient = {name.split(".")[0] for name, p in trained_parameters(model).items() if p.grad is not None}
    assert with_gradient == {"auxiliary", "encoders", "fusion"}


def test_what_is_tuned_is_what_is_trained(build):
    for tuning, trained in (("mine:norms", "norm"), ("lora", "lora_"), ("frozen", None), ("full", "")):
        model, _ = build(backbone={"tuning": tuning})
        own = [name for name in trained_parameters(model) if name.startswith("backbone.")]
        assert bool(own) == (trained is not None)
        assert all(trained in name for name in own)
    assert len(own) == len(list(model.backbone.named_parameters()))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("exprts", "model.fusion is 'exprts'; it must be one of experts, or MODULE:NAME of your own"),
        ("mine:None_", "model.fusion is 'mine:None_', which cannot be imported: module 'mine' has no attribute"),
        ("nowhere:A", "model.fusion is 'nowhere:A', which cannot be imported: No module named 'nowhere'"),
        ("./mine.py:A", "MODULE is a module's name as `import` takes it, not a file's"),
        ("broken:A", "which cannot be imported: SyntaxError: "),
        ("mine:BETA", "which is a float; it must be a class or a function"),
    ],
)
def test_a_name_of_nothing_is_said(build, tmp_path, name, says):
    (tmp_path / "broken.py").write_text("class A(:\n")
    with pytest.raises(EgmfError, match=says):
        FUSIONS.find(name)
