"""Whole training runs on two ZeRO-3 ranks: resume is bitwise, evaluation counts every sample once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from run_records import losses

from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.jobs import EvaluateJob, TrainJob
from egmf_dist.run.folder import Run, open_run
from egmf_dist.run.records import read_records
from egmf_shards import ShardSet, synthesize

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def config(random_backbone, tmp_path_factory):
    """24 steps with dropout on, checkpoints at 9, 18 and 24, global batches of seven in micro-batches of two."""
    data = tmp_path_factory.mktemp("data") / "demo"
    synthesize(data, seed=0, samples=80, missing=0.1)
    return Config(
        data=DataConfig(shards=[str(data)], context_turns=1),
        backbone=BackboneConfig(path=str(random_backbone), lora_rank=4, lora_dropout=0.1),
        model=ModelConfig(width=32, heads=2, dropout=0.1),
        training=TrainingConfig(
            steps=24,
            global_batch=7,
            micro_batch=2,
            learning_rate=5e-3,
            warmup_steps=2,
            precision="fp32",
            validate_every=12,
            checkpoint_every=9,
            keep_checkpoints=3,
            log_every=1,
        ),
    )


@pytest.fixture(scope="module")
def whole(config, run_ranks, tmp_path_factory):
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    open_run(config, Run(run), "never")
    run_ranks("training_run.py", 2, TrainJob(run, config))
    return run


def test_resume_gives_the_uninterrupted_runs_losses_bitwise(config, whole, run_ranks, tmp_path):
    """The copy goes back to its first checkpoint, as if killed after it; the resumed run repeats steps 10 to 24.

    It also repeats the first validation, which gathers the adapter in the middle of a resumed run. Two loader processes
    read for it; the uninterrupted run had none.
    """
    assert [step for step, *_ in losses(whole)] == list(range(1, 25))
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    (copy / "checkpoints" / "latest.json").write_text(json.dumps({"checkpoint": "step-0000009"}))
    config = replace(config, data=replace(config.data, workers=2))
    open_run(config, Run(copy), "auto")
    run_ranks("training_run.py", 2, TrainJob(copy, config, "auto"))
    assert losses(copy) == losses(whole)
    kinds = [(r["kind"], r.get("step")) for r in read_records(copy / "metrics.jsonl")]
    assert kinds.count(("valid", 24)) == 1
    assert kinds.count(("start", 9)) == 1  # it did go on from the checkpoint, and not from the start
    assert kinds[-1] == ("end", 24)


def test_evaluation_counts_every_sample_once(config, whole, run_ranks):
    result = run_ranks("training_run.py", 2, EvaluateJob(whole, remove_each=True))
    rows = [json.loads(line) for line in (whole / "evaluation" / "predictions-test.jsonl").read_text().splitlines()]
    shards = ShardSet.open(config.data.shards, "test")
    assert [r["id"] for r in rows] == [shards[i].id for i in range(len(shards))]
    written = json.loads((whole / "evaluation" / "test.json").read_text())
    assert written["tasks"].keys() == {"emotion", "sentiment"}
    assert sum(t["n"] for t in written["tasks"].values()) == len(shards)
    assert written["tasks"]["emotion"]["selected_by"].startswith("valid ")
    assert result == written
    assert written["removed"].keys() == {"text", "audio", "vision"}
    assert written["ceilings"].keys() == {"emotion", "sentiment"}


def test_a_checkpoint_that_was_damaged_or_made_otherwise_is_refused(config, whole, run_ranks, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    damaged = copy / "checkpoints" / "step-0000024" / "state-00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    job = TrainJob(copy, config)
    newest, before = (str(Run(copy).checkpoint(step)) for step in (24, 18))
    with pytest.raises(AssertionError, match=r"state-00001.safetensors is damaged"):
        run_ranks("training_run.py", 1, replace(job, resume=newest))
    wider = replace(config, model=replace(config.model, width=64))
    with pytest.raises(AssertionError, match=r"does not fit this model: \d+ names differ|this model's is"):
        run_ranks("training_run.py", 1, replace(job, config=wider, resume=before))


def test_open_run_refuses_what_exists_or_differs(config, whole):
    with pytest.raises(ValueError, match="exists; choose another name"):
        open_run(config, Run(whole), "never")
    other = replace(config, training=replace(config.training, learning_rate=1e-3))
    with pytest.raises(ValueError, match=r"training.learning_rate was 0.005 and is now 0.001"):
        open_run(other, Run(whole), "auto")


def test_a_diverged_run_stops_and_says_so(config, run_ranks, tmp_path):
    """A learning rate that overflows the weights: the run ends after max_skipped_steps, not after its last step."""
    training = replace(config.training, learning_rate=1e30, warmup_steps=0, gradient_clipping=0.0, max_skipped_steps=3)
    wild = replace(config, training=training)
    open_run(wild, Run(tmp_path / "wild"), "never")
    with pytest.raises(AssertionError, match="3 steps in a row up to step"):
        run_ranks("training_run.py", 1, TrainJob(tmp_path / "wild", wild))
    warnings = [r for r in read_records(tmp_path / "wild" / "metrics.jsonl") if r["kind"] == "warning"]
    assert len(warnings) == 3
    assert not (tmp_path / "wild" / "checkpoints").exists()
