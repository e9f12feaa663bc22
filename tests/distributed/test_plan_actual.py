"""A plan against a training that runs: bytes by what they are, messages by kind, the most that is alive.

By itself one case: stages 1 and 3 on two ranks. ``EGMF_PLAN=all`` (``make plan-matrix``): every stage on two and on
four ranks, in fp32 and bf16, at DeepSpeed's own settings and with everything gathered again.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.errors import EgmfError
from egmf_dist.scale.rehearsal import Part, deeper, depths, rehearse
from egmf_shards import synthesize

pytestmark = pytest.mark.distributed
AGAIN = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
}
"""Nothing stays gathered."""
BUCKET = {"reduce_bucket_size": 100_000}
"""DeepSpeed's own is 5e8 numbers: beside it nothing of a small model would count."""
ALL = os.environ.get("EGMF_PLAN") == "all"
WORLDS = (2, 4) if ALL else (2,)


@pytest.fixture(scope="module")
def config(tmp_path_factory, random_backbone):
    data = tmp_path_factory.mktemp("data") / "demo"
    synthesize(data, seed=0, samples=60)
    return Config(
        data=DataConfig(shards=[str(data)], context_turns=1),
        backbone=BackboneConfig(path=str(random_backbone), lora_rank=4),
        model=ModelConfig(width=32, heads=2, pseudo_tokens=2),
        training=TrainingConfig(global_batch=16, micro_batch=2, precision="fp32"),
    )


def cases(config: Config) -> dict[str, Config]:
    """By name, the configurations that are held against each other."""
    found = {}
    for precision in ("fp32", "bf16") if ALL else ("fp32",):
        for stage, options in ((1, {}), (2, {}), (3, {}), (3, AGAIN)):
            if not ALL and (stage == 2 or (stage == 3 and not options)):
                continue
            training = replace(
                config.training, precision=precision, zero_stage=stage, zero_options={**BUCKET, **options}
            )
            found[f"{precision} {stage} {'again' if options else 'default'}"] = replace(config, training=training)
    return found


@pytest.mark.parametrize("ranks", WORLDS)
def test_what_was_rehearsed_is_what_happens(config, run_ranks, ranks):
    wanted = cases(config)
    actual = run_ranks("plan_actual.py", ranks, wanted, timeout=1200)
    rehearsed = rehearse([Part(one, ranks) for one in wanted.values()])
    for (name, got), planned in zip(actual.items(), rehearsed, strict=True):
        for what in ("frozen_bytes", "trained_bytes", "optimizer_bytes", "frozen_numbers", "trained_numbers"):
            assert getattr(planned, what) == got[what] > 0, f"{name}: {what}"
        sent, handed = planned.step.bytes_by_kind, got["bytes_by_kind"]
        assert sent.keys() == handed.keys(), name
        for kind, size in handed.items():
            assert sent[kind] == pytest.approx(size, rel=0.02), f"{name}: {kind}"
        assert sum(handed.values()) >= 8 * got["trained_numbers"], f"{name}: gradients there and weights back"
        assert planned.peak_bytes == pytest.approx(got["tracked_peak"], rel=0.1), name
        longest = max(got["tracked_peak"], got["tracked_longest"])
        assert planned.longest_peak_bytes == pytest.approx(longest, rel=0.1), f"{name}: with the longest sample"
        assert planned.gathered_bytes == got["gathered_bytes"], name
        assert (planned.tokens, planned.samples) == (got["tokens"], got["samples"]), name


@pytest.mark.skipif(not ALL, reason="make plan-matrix")
def test_what_follows_from_a_few_layers_is_what_all_of_them_come_to(config, random_backbone, run_ranks, tmp_path):
    """Eight layers are trained; four and six are rehearsed."""
    deep = tmp_path / "deep"
    shutil.copytree(random_backbone, deep)
    settings = AutoConfig.from_pretrained(deep, num_hidden_layers=8, layer_types=["full_attention"] * 8)
    AutoModelForCausalLM.from_config(settings).save_pretrained(deep)
    config = replace(config, backbone=replace(config.backbone, path=str(deep)))
    wanted = {
        f"stage {stage}": replace(
            config, training=replace(config.training, zero_stage=stage, zero_options={**BUCKET, **options})
        )
        for stage, options in ((1, {}), (2, {}), (3, AGAIN))
    }
    actual = run_ranks("plan_actual.py", 2, wanted, timeout=1200)
    for name, one in wanted.items():
        few = depths(8, 10_000, one)
        assert few == (4, 6)
        planned, got = deeper(*rehearse([Part(one, 2, layers) for layers in few]), 8), actual[name]
        for what in ("frozen_numbers", "trained_numbers", "frozen_bytes", "trained_bytes"):
            assert getattr(planned, what) == got[what] > 0, f"{name}: {what}"
        assert planned.optimizer_bytes == pytest.approx(got["optimizer_bytes"], rel=0.001), name
        for kind, size in got["bytes_by_kind"].items():
            assert planned.step.bytes_by_kind[kind] == pytest.approx(size, rel=0.02), f"{name}: {kind}"
        assert planned.peak_bytes == pytest.approx(got["tracked_peak"], rel=0.1), name
        longest = max(got["tracked_peak"], got["tracked_longest"])
        assert planned.longest_peak_bytes == pytest.approx(longest, rel=0.1), name


def test_a_rehearsal_says_what_it_cannot_read_in_one_line(config):
    broken = replace(config, backbone=replace(config.backbone, path="backbones/nowhere/at/all"))
    with pytest.raises(EgmfError, match=r"holds no config.json") as caught:
        rehearse([Part(broken, 2)])
    assert "\n" not in str(caught.value)
