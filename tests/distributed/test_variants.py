"""Short runs of the settings that change how a step is computed: precision, ZeRO stage, early stopping, LoRA off."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.jobs import EvaluateJob, TrainJob
from egmf_dist.model.adapter import TRAINED_FILE
from egmf_dist.run.folder import Run, open_run
from egmf_dist.run.records import read_records
from egmf_shards import ShardSet, synthesize

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def config(random_backbone, tmp_path_factory):
    """Six steps of eight samples on little data."""
    data = tmp_path_factory.mktemp("data") / "demo"
    synthesize(data, seed=0, samples=60, missing=0.1)
    return Config(
        data=DataConfig(shards=[str(data)], context_turns=1),
        backbone=BackboneConfig(path=str(random_backbone), lora_rank=4, lora_dropout=0.0),
        model=ModelConfig(width=32, heads=2),
        training=TrainingConfig(
            steps=6, global_batch=8, micro_batch=4, learning_rate=5e-3, warmup_steps=1, validate_every=6, log_every=1
        ),
    )


@pytest.fixture
def run_training(run_ranks, tmp_path):
    """``run_training(config, ranks)`` trains and gives back its result and records."""

    def run(config, ranks):
        open_run(config, Run(tmp_path / "run"), "never")
        job = TrainJob(tmp_path / "run", config)
        return run_ranks("training_run.py", ranks, job), read_records(tmp_path / "run" / "metrics.jsonl")

    return run


def losses(records):
    return [r["loss"] for r in records if r["kind"] == "train"]


@pytest.fixture(scope="module")
def reference(config, run_ranks, tmp_path_factory):
    """Losses of the fp32, stage 3, one-rank run that the others are held against."""
    run = tmp_path_factory.mktemp("reference") / "run"
    single = replace(config, training=replace(config.training, precision="fp32"))
    open_run(single, Run(run), "never")
    run_ranks("training_run.py", 1, TrainJob(run, single))
    return losses(read_records(run / "metrics.jsonl"))


@pytest.mark.parametrize(("stage", "precision", "tolerance"), [(1, "fp32", 1e-4), (2, "fp32", 1e-4), (3, "bf16", 5e-2)])
def test_stages_and_precisions_follow_the_same_losses(config, reference, run_training, stage, precision, tolerance):
    """Two ranks of another ZeRO stage or in bf16, against one fp32 rank of stage 3."""
    other = replace(config, training=replace(config.training, zero_stage=stage, precision=precision))
    _, records = run_training(other, 2)
    assert losses(records) == pytest.approx(reference, rel=tolerance)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_is_evaluated_is_what_was_selected(config, run_training, run_ranks, tmp_path, stage):
    """In bf16 on two ranks the best adapter has, on the split that selected it, the numbers that validation saw."""
    bf16 = replace(config, training=replace(config.training, zero_stage=stage, precision="bf16"))
    _, records = run_training(bf16, 2)
    (valid,) = (r for r in records if r["kind"] == "valid")
    found = run_ranks("training_run.py", 2, EvaluateJob(tmp_path / "run", split="valid"))["tasks"]
    for name, task in valid["tasks"].items():
        assert found[name]["metrics"] == pytest.approx(task["metrics"], abs=1e-6), name
    assert losses(records)[-1] != losses(records)[0]


def test_early_stopping_uses_the_validation_split(config, run_training):
    """A learning rate too small to change an answer: no validation beats the first, so the run ends two later."""
    training = replace(config.training, precision="fp32", learning_rate=1e-12, validate_every=1, patience=2)
    result, records = run_training(replace(config, training=training), 1)
    assert (result["step"], result["best_step"]) == (3, 1)
    assert [r["best"] for r in records if r["kind"] == "valid"] == [True, False, False]
    assert "2 validations" in records[-1]["reason"]


def test_a_backbone_trained_whole_is_saved_resumed_and_scored(config, run_training, run_ranks, tmp_path):
    """Six steps, then two more from the checkpoint, on two ranks under ZeRO-3; the adapter holds every weight."""
    training = replace(config.training, precision="fp32", learning_rate=1e-3, checkpoint_every=3, validate_every=3)
    full = replace(config, backbone=replace(config.backbone, tuning="full"), training=training)
    _, records = run_training(full, 2)
    start = next(r for r in records if r["kind"] == "start")
    assert start["trained_parameters"] == start["parameters"]
    run = Run(tmp_path / "run")
    weights = load_file(run.adapters / json.loads(run.best.read_text())["adapter"] / TRAINED_FILE)
    assert sum(w.numel() for w in weights.values()) == start["parameters"]
    longer = replace(full, training=replace(training, steps=8))
    job = TrainJob(run.folder, longer, "auto")
    assert run_ranks("training_run.py", 2, job)["step"] == 8
    again = [r for r in read_records(run.metrics) if r["kind"] == "start"]
    assert [r["step"] for r in again] == [0, 6]
    result = run_ranks("training_run.py", 2, EvaluateJob(run.folder))
    assert result["samples"] == len(ShardSet.open(full.data.shards, "test"))


def test_a_frozen_backbone_trains_the_fusion_alone(config, run_training):
    """LoRA rank 0: the pseudo tokens are all that can change the answers."""
    frozen = replace(
        config,
        backbone=replace(config.backbone, lora_rank=0),
        training=replace(config.training, precision="fp32"),
    )
    _, records = run_training(frozen, 1)
    values = losses(records)
    assert all(math.isfinite(v) for v in values)
    start = next(r for r in records if r["kind"] == "start")
    assert 0 < start["trained_parameters"] < start["parameters"]
