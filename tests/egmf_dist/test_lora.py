"""Variants of LoRA, what it is put on, and what computes attention."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from families import STREAMS, spoken

from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.data.run_data import RunData
from egmf_dist.errors import EgmfError
from egmf_dist.model.backbone import check_tuning


def test_variants_of_lora(families, make_samples, tasks):
    """Scale, what is learnt and which layers, as PEFT has them; the loss reaches all that is trained."""
    base = BackboneConfig(path=str(families["qwen3"]), lora_rank=16, lora_alpha=8, lora_dropout=0.0)

    def trained(**settings):
        config = Config(
            data=DataConfig(shards=["unused"]),
            backbone=replace(base, **settings),
            model=ModelConfig(width=32, heads=2),
            training=TrainingConfig(precision="fp32"),
        )
        data = RunData(tasks, ["en", "zh"], STREAMS, {})
        capabilities, collator = read_backbone(config, data)
        model = build_egmf(config, capabilities, data)
        model(collator(make_samples(4), [1.0] * 4)).total.backward()
        found = {name: p for name, p in model.backbone.named_parameters() if p.requires_grad}
        assert all(p.grad is not None for p in found.values())
        scales = {
            m.scaling["default"] for m in model.backbone.modules() if isinstance(getattr(m, "scaling", None), dict)
        }
        return found, scales

    plain, scale = trained()
    assert scale == {0.5}
    assert trained(lora_rslora=True)[1] == {2.0}
    second = {name for name in plain if ".layers.1." in name}
    assert trained(lora_layers=[1])[0].keys() == second != plain.keys()
    lengths = trained(lora_dora=True)[0].keys() - plain.keys()
    assert len(lengths) == len(plain) / 2
    assert all("magnitude" in name for name in lengths)
    with pytest.raises(EgmfError, match=r"backbone.lora_layers names 2; this backbone has layers 0 to 1"):
        trained(lora_layers=[2])
    for targets, said in (
        (
            "q_proj,query",
            r"names 'query', which this backbone does not have; its linear layers are down_proj, [^\n]*v_proj",
        ),
        ("lm_head", "names the output layer"),
        ("q_proj,lm_head", "names the output layer"),
    ):
        with pytest.raises(EgmfError, match=said):
            check_tuning(replace(base, lora_targets=targets))  # no weight is read
    with pytest.raises(EgmfError, match=r"attn_implementation 'flash_attention_2' cannot be used here: [^\n]+$"):
        trained(attn_implementation="flash_attention_2")


def uncompiled(query, key, value, training=False, **options):
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(query, key, value, **options)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("way", ["sdpa", "eager", "flex_attention"])
def test_attention_is_computed_as_asked(families, make_samples, tasks, way, monkeypatch):
    """Gemma 3's windows under each way, packed: the same losses."""
    # transformers compiles FlexAttention, which takes minutes on a CPU; what is compiled is this.
    monkeypatch.setattr("transformers.integrations.flex_attention.compile_friendly_flex_attention", uncompiled)
    losses = []
    for asked in ("auto", way):
        config = Config(
            data=DataConfig(shards=["unused"]),
            backbone=BackboneConfig(path=str(families["gemma3"]), lora_rank=4, attn_implementation=asked),
            model=ModelConfig(width=32, heads=2),
            training=TrainingConfig(precision="fp32"),
        )
        data = RunData(tasks, ["en", "zh"], STREAMS, {})
        capabilities, collator = read_backbone(config, data)
        collator.packed = True
        model = build_egmf(config, capabilities, data).eval()
        if asked != "auto":
            assert model.backbone.config._attn_implementation == way
        with torch.no_grad():
            losses.append(model(collator(spoken(make_samples, 6), [1.0] * 6)).total)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
