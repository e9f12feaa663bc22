"""A checkpoint goes on under any number of ranks and any ZeRO stage; under the same ones bitwise."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest
from run_records import losses

from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.jobs import TrainJob
from egmf_dist.run.checkpoints import read_record
from egmf_dist.run.folder import Run, open_run
from egmf_dist.run.records import read_records
from egmf_shards import synthesize

pytestmark = pytest.mark.distributed

EVERY = [(stage, precision) for stage in (1, 2, 3) for precision in ("fp32", "bf16")]
ALL = os.environ.get("EGMF_FAULTS") == "all"
SAME = EVERY if ALL else [(1, "bf16"), (2, "fp32"), (3, "bf16")]
"""Stage 3 in fp32 is in test_training.py; `make faults` has them all."""
LEG = 30 if ALL else 10
"""Steps under each number of ranks, and in each stage."""


@pytest.fixture(scope="module")
def config(random_backbone, tmp_path_factory):
    """Two parameter groups with and two without weight decay, some parameters of odd size, no dropout."""
    data = tmp_path_factory.mktemp("data") / "demo"
    synthesize(data, seed=0, samples=80, missing=0.1)
    return Config(
        data=DataConfig(shards=[str(data)]),
        backbone=BackboneConfig(path=str(random_backbone), lora_rank=3, lora_dropout=0.0),
        model=ModelConfig(width=32, heads=2, dropout=0.0),
        training=TrainingConfig(
            steps=4 * LEG, global_batch=8, micro_batch=2, learning_rate=1e-3, fusion_learning_rate=5e-4,
            weight_decay=0.01, warmup_steps=2, precision="fp32", validate_every=4 * LEG, checkpoint_every=LEG,
            keep_checkpoints=4, log_every=1,
        ),
    )  # fmt: skip


def changed(config: Config, **training) -> Config:
    return replace(config, training=replace(config.training, **training))


def test_the_same_ranks_and_stage_go_on_bitwise(config, run_ranks, tmp_path) -> None:
    """With dropout, in every stage and precision: losses, gradients, and all that the last checkpoint holds."""
    drops = replace(
        changed(config, steps=12, checkpoint_every=5, validate_every=12),
        backbone=replace(config.backbone, lora_dropout=0.2),
        model=replace(config.model, dropout=0.2),
    )
    jobs = {}
    for stage, precision in SAME:
        own = changed(drops, zero_stage=stage, precision=precision, deterministic=stage == 2)
        for copy in ("whole", "again"):
            run = tmp_path / f"{copy}-{stage}-{precision}"
            open_run(own, Run(run), "never")
            jobs[run.name] = TrainJob(run, own)
        jobs[f"resumed {run.name}"] = TrainJob(run, own, "5")
    run_ranks("training_run.py", 2, jobs)
    for stage, precision in SAME:
        name = f"{stage}-{precision}"
        whole, again = tmp_path / f"whole-{name}", tmp_path / f"again-{name}"
        assert [step for step, *_ in losses(whole)] == list(range(1, 13))
        assert losses(again) == losses(whole), name
        starts = [r["step"] for r in read_records(again / "metrics.jsonl") if r["kind"] == "start"]
        assert starts == [0, 5]
        ends = [read_record(Run(run).checkpoint(12)) for run in (whole, again)]
        assert ends[0].sha256 == ends[1].sha256, name
        assert [*ends[0].sha256] == ["state-00000.safetensors", "state-00001.safetensors"]
        assert ends[0].state.adamw_steps == 12


def test_another_number_of_ranks_or_stage_sees_the_same_batches(config, run_ranks, tmp_path) -> None:
    """2 ranks, then 1, 4 and 2; and stage 3, then 1, then 2 with the optimizer in the hosts' memory: the losses of the
    run that nothing interrupted."""
    whole, ranks, stages = (tmp_path / name for name in ("whole", "ranks", "stages"))
    open_run(config, Run(whole), "never")
    run_ranks("training_run.py", 2, TrainJob(whole, config))
    for copy in (ranks, stages):
        shutil.copytree(whole, copy)
    first, second, third = f"{LEG}", f"{2 * LEG}", f"{3 * LEG}"
    run_ranks("training_run.py", 1, TrainJob(ranks, config, first))
    alone = losses(ranks)
    run_ranks("training_run.py", 4, TrainJob(ranks, config, second))
    of_stages = {
        "1": TrainJob(stages, changed(config, zero_stage=1), first),
        "2": TrainJob(stages, changed(config, zero_stage=2, offload="optimizer"), second),
        "3": TrainJob(stages, config, third),
    }
    run_ranks("training_run.py", 2, {"ranks": TrainJob(ranks, config, third), **of_stages})
    warnings = [r["message"] for r in read_records(ranks / "metrics.jsonl") if r["kind"] == "warning"]
    assert [message.split(":")[0] for message in warnings] == [
        f"checkpoint step-{LEG:07d} was made with 2 ranks, and 1 go on",
        f"checkpoint step-{2 * LEG:07d} was made with 1 ranks, and 4 go on",
        f"checkpoint step-{3 * LEG:07d} was made with 4 ranks, and 2 go on",
    ]
    wanted = losses(whole)
    for found in (alone, losses(ranks), losses(stages)):
        assert [step for step, *_ in found] == list(range(1, 4 * LEG + 1))
        assert found[:LEG] == wanted[:LEG]
        for (step, loss, norm), (_, own_loss, own_norm) in zip(wanted[LEG:], found[LEG:], strict=True):
            assert own_loss == pytest.approx(loss, rel=1e-6), step
            assert own_norm == pytest.approx(norm, rel=1e-5)


def test_it_holds_twelve_bytes_a_weight(config, run_ranks, tmp_path) -> None:
    run = tmp_path / "run"
    small = changed(config, steps=2, checkpoint_every=2)
    open_run(small, Run(run), "never")
    run_ranks("training_run.py", 2, TrainJob(run, small))
    records = read_records(run / "metrics.jsonl")
    (trained,) = [r["trained_parameters"] for r in records if r["kind"] == "start"]
    folder = Run(run).checkpoint(2)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert 12 * trained <= size <= 12.5 * trained + 2**20
    (saved,) = [r for r in records if r["kind"] == "checkpoint"]
    assert saved["mib"] == pytest.approx(size / 2**20, rel=0.2)
