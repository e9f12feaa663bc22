"""Short runs of the settings that change how a step is computed: precision, ZeRO stage, early stopping, LoRA off."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig, load_run_config
from egmf_dist.formats import TRAINED_FILE
from egmf_dist.jobs import EvaluateJob, TrainJob
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


@pytest.fixture(scope="module")
def runs(config, run_ranks, tmp_path_factory):
    """``{name: (run, result)}`` of all trainings of this file.

    Those of two ranks share one start of processes, those of one rank another: a start costs as much as a training.
    """
    fp32 = replace(config.training, precision="fp32")
    two = {f"fp32 {stage}": {"training": replace(fp32, zero_stage=stage)} for stage in (1, 2)}
    two |= {f"bf16 {s}": {"training": replace(config.training, precision="bf16", zero_stage=s)} for s in (1, 2, 3)}
    two["whole"] = {
        "backbone": replace(config.backbone, tuning="full"),
        "training": replace(fp32, learning_rate=1e-3, checkpoint_every=3, validate_every=3),
    }
    two |= {
        f"offload {what}": {"training": replace(fp32, zero_stage=stage, offload=what)}
        for stage, what in ((2, "optimizer"), (3, "weights"))
    }
    one = {
        "reference": {"training": fp32},
        "4bit": {"training": replace(fp32, zero_stage=1), "backbone": replace(config.backbone, quantise="4bit")},
        "stopped": {"training": replace(fp32, learning_rate=1e-12, validate_every=1, patience=2)},
        "frozen": {"training": fp32, "backbone": replace(config.backbone, lora_rank=0)},
    }
    folder, trained = tmp_path_factory.mktemp("runs"), {}
    for ranks, variants in ((1, one), (2, two)):
        jobs = {name: TrainJob(folder / name, replace(config, **changes)) for name, changes in variants.items()}
        for job in jobs.values():
            open_run(job.config, Run(job.run), "never")
        results = run_ranks("training_run.py", ranks, jobs, timeout=600)
        trained |= {name: (Run(job.run), results[name]) for name, job in jobs.items()}
    return trained


@pytest.fixture(scope="module")
def afterwards(runs, run_ranks):
    """``{name: result}`` of what new processes make of those runs: evaluations, and the whole backbone's resume."""
    jobs = {f"bf16 {stage}": EvaluateJob(runs[f"bf16 {stage}"][0].folder, split="valid") for stage in (1, 2, 3)}
    jobs["4bit"] = EvaluateJob(runs["4bit"][0].folder, split="valid")
    whole = runs["whole"][0]
    config = load_run_config(whole.config)
    longer = replace(config, training=replace(config.training, steps=8))
    jobs |= {"whole resumed": TrainJob(whole.folder, longer, "auto"), "whole": EvaluateJob(whole.folder)}
    return run_ranks("training_run.py", 2, jobs, timeout=600)


def losses(run):
    return [r["loss"] for r in read_records(run.metrics) if r["kind"] == "train"]


def started(run):
    """The records of its starts."""
    return [r for r in read_records(run.metrics) if r["kind"] == "start"]


@pytest.mark.parametrize(("stage", "precision", "tolerance"), [(1, "fp32", 1e-4), (2, "fp32", 1e-4), (3, "bf16", 5e-2)])
def test_stages_and_precisions_follow_the_same_losses(runs, stage, precision, tolerance):
    """Two ranks of another ZeRO stage or in bf16, against one fp32 rank of stage 3."""
    reference, other = losses(runs["reference"][0]), losses(runs[f"{precision} {stage}"][0])
    assert other == pytest.approx(reference, rel=tolerance)


@pytest.mark.parametrize("what", ["optimizer", "weights"])
def test_what_waits_in_the_hosts_memory_changes_no_loss(runs, what):
    assert losses(runs[f"offload {what}"][0]) == pytest.approx(losses(runs["reference"][0]), rel=1e-4)


def test_a_backbone_of_four_bits_trains_and_is_scored(runs, afterwards):
    """Near the losses of whole weights, and not the same; an evaluation on two ranks sees what validation saw."""
    run, _ = runs["4bit"]
    whole, four = losses(runs["reference"][0]), losses(run)
    assert four == pytest.approx(whole, rel=0.1)
    assert four != pytest.approx(whole, rel=1e-5)
    (valid,) = (r for r in read_records(run.metrics) if r["kind"] == "valid")
    for name, task in valid["tasks"].items():
        assert afterwards["4bit"]["tasks"][name]["metrics"] == pytest.approx(task["metrics"], abs=1e-6), name


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_is_evaluated_is_what_was_selected(runs, afterwards, stage):
    """In bf16 on two ranks the best adapter has, on the split that selected it, the numbers that validation saw."""
    run, _ = runs[f"bf16 {stage}"]
    (valid,) = (r for r in read_records(run.metrics) if r["kind"] == "valid")
    found = afterwards[f"bf16 {stage}"]["tasks"]
    for name, task in valid["tasks"].items():
        assert found[name]["metrics"] == pytest.approx(task["metrics"], abs=1e-6), name
    assert losses(run)[-1] != losses(run)[0]


def test_early_stopping_uses_the_validation_split(runs):
    """A learning rate too small to change an answer: no validation beats the first, so the run ends two later."""
    run, result = runs["stopped"]
    records = read_records(run.metrics)
    assert (result["step"], result["best_step"]) == (3, 1)
    assert [r["best"] for r in records if r["kind"] == "valid"] == [True, False, False]
    assert "2 validations" in records[-1]["reason"]


def test_a_backbone_trained_whole_is_saved_resumed_and_scored(config, runs, afterwards):
    """Six steps, then two more from the checkpoint, on two ranks under ZeRO-3; the adapter holds every weight."""
    run, _ = runs["whole"]
    first, again = started(run)
    assert first["trained_parameters"] == first["parameters"]
    weights = load_file(run.adapters / json.loads(run.best.read_text())["adapter"] / TRAINED_FILE)
    assert sum(w.numel() for w in weights.values()) == first["parameters"]
    assert afterwards["whole resumed"]["step"] == 8
    assert (first["step"], again["step"]) == (0, 6)
    assert afterwards["whole"]["samples"] == len(ShardSet.open(config.data.shards, "test"))


def test_a_frozen_backbone_trains_the_fusion_alone(runs):
    """LoRA rank 0: the pseudo tokens are all that can change the answers."""
    run, _ = runs["frozen"]
    assert all(math.isfinite(v) for v in losses(run))
    (start,) = started(run)
    assert 0 < start["trained_parameters"] < start["parameters"]
