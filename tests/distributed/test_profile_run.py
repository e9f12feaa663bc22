"""A training that profiles some of its steps: phases add up, messages and work are counted, a trace lies there."""

from __future__ import annotations

import json

import pytest

from egmf_dist.config import BackboneConfig, Config, DataConfig, LoggingConfig, ModelConfig, TrainingConfig
from egmf_dist.run.folder import Run
from egmf_dist.run.records import read_records
from egmf_shards import synthesize

pytestmark = pytest.mark.distributed


def test_phases_add_up_to_the_step(tmp_path, random_backbone, run_ranks):
    synthesize(tmp_path / "demo", seed=0, samples=60)
    config = Config(
        data=DataConfig(shards=[str(tmp_path / "demo")], context_turns=1),
        backbone=BackboneConfig(path=str(random_backbone), lora_rank=4),
        model=ModelConfig(width=32, heads=2, pseudo_tokens=2),
        training=TrainingConfig(
            steps=7, profile_steps=3, global_batch=8, micro_batch=4, precision="fp32", zero_stage=3, validate_every=7,
            validation_samples=4, checkpoint_every=7, log_every=1, zero_options={"reduce_bucket_size": 100_000},
        ),
        logging=LoggingConfig(to=[]),
    )  # fmt: skip
    run = Run(tmp_path / "run")
    places = run_ranks("profile_run.py", 2, {"config": config, "run": run.folder}, timeout=900)
    # Two steps before the timed three, a counted and a recorded one after them: outside of a step nothing is installed.
    assert places["before"] == places["after"] == [False] * 7
    assert places["in"] == [False, False, True, True, True, True, False]
    found = json.loads((run.profile / "summary.json").read_text())
    assert found["steps"] == 3
    assert sum(found["phases"].values()) == pytest.approx(found["step_s"], rel=0.05)
    for phase in ("data", "encoders", "experts", "gate", "pooling", "pseudo tokens", "LLM forward", "backward"):
        assert found["phases"][phase] > 0, phase
    assert found["phases"]["gathers"] > 0
    assert found["flops"]["backward"] > found["flops"]["LLM forward"] > 0
    assert found["messages"]["all-gather"]["bytes"] > 0
    assert found["peak_bytes"] >= max(size for _, size in found["timeline"]) > 0
    assert "traceEvents" in json.loads((run.profile / "trace.json").read_text())
    assert [r["step"] for r in read_records(run.metrics) if r["kind"] == "train"] == list(range(1, 8))
