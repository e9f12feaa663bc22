"""Training over a folder with a broken sample on two ZeRO-3 ranks; every policy's account is in test_bad_samples."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.jobs import TrainJob
from egmf_dist.run.folder import Run, open_run
from egmf_dist.run.records import read_records
from egmf_shards import ShardSet, synthesize
from egmf_shards.format.index import load_index

pytestmark = pytest.mark.distributed

BATCH = 8


@pytest.fixture(scope="module")
def config(random_backbone, tmp_path_factory):
    data = tmp_path_factory.mktemp("data") / "demo"
    synthesize(data, seed=0, samples=80, missing=0.1)
    count = len(ShardSet.open([data], "train"))
    return Config(
        data=DataConfig(shards=[str(data)], context_turns=1, max_bad_fraction=1.5 / count),
        backbone=BackboneConfig(path=str(random_backbone), lora_rank=4, lora_dropout=0.0),
        model=ModelConfig(width=32, heads=2),
        training=TrainingConfig(
            steps=-(-2 * count // BATCH),  # two epochs and a little
            global_batch=BATCH,
            micro_batch=2,
            learning_rate=1e-3,
            warmup_steps=2,
            precision="fp32",
            validate_every=100,
            checkpoint_every=100,
            validation_samples=8,
            log_every=1,
        ),
    )


@pytest.fixture(scope="module")
def broken(config):
    """Flip a bit in a training sample that the first epoch meets after its first step; give its key and position."""
    shards = ShardSet.open(config.data.shards, "train")
    folder = config.data.shards[0]
    from egmf_shards import Order

    order = Order(len(shards), config.training.seed, shards.index_hash)
    position = BATCH + 3
    key = shards.key(order.index(position))
    index = load_index(shards.table.shards[0][0])
    row = index.key.tolist().index(key)
    member = int(index.first_member[row])
    path = f"{folder}/{index.shard_names[index.member_shard[member]]}"
    with open(path, "r+b") as file:
        place = int(index.member_offset[member]) + 5
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 16]))
    return key, position


def train(run_ranks, config, run):
    open_run(config, Run(run), "never")
    return run_ranks("training_run.py", 2, TrainJob(run, config))


def test_quarantine_goes_on_without_it(config, broken, run_ranks, tmp_path):
    key, position = broken
    run = tmp_path / "run"
    config = replace(config, data=replace(config.data, bad_samples="quarantine", workers=1))
    result = train(run_ranks, config, run)
    assert result["step"] == config.training.steps
    records = read_records(run / "metrics.jsonl")
    warnings = [r for r in records if r["kind"] == "warning" and "could not be read" in r["message"]]
    assert len(warnings) == 1  # although two epochs meet it
    assert all(f"sample '{key}', member " in w["message"] for w in warnings)
    assert warnings[0]["step"] == position // BATCH + 1
    last = [r for r in records if r["kind"] == "train"][-1]
    assert last["bad_samples"] == 1
    assert last["position"] == config.training.steps * BATCH, "its position is not given to another sample"
    (line,) = (run / "quarantine.jsonl").read_text().splitlines()
    assert (json.loads(line)["key"], json.loads(line)["position"]) == (key, position)


def test_the_budget_stops_the_run(config, broken, run_ranks, tmp_path):
    key, _ = broken
    data = replace(config.data, bad_samples="skip", max_bad_fraction=0.0)
    with pytest.raises(AssertionError, match=rf"data: 1 samples of one epoch, more than 0 of .*'{key}'"):
        train(run_ranks, replace(config, data=data), tmp_path / "budget")


def test_a_global_batch_without_any_readable_sample_moves_nothing_but_momentum(config, broken, run_ranks, tmp_path):
    """A whole shard is gone: under a budget that allows it, the run ends, finite, with all its samples counted."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(config.data.shards[0], copy)
    train_shards = sorted(copy.glob("train-*.tar"))
    for shard in train_shards:
        shard.unlink()
    data = replace(config.data, shards=[str(copy)], bad_samples="skip", max_bad_fraction=1.0, max_bad_in_a_row=10**6)
    training = replace(config.training, steps=2, validate_every=2, checkpoint_every=2)
    result = train(run_ranks, replace(config, data=data, training=training), tmp_path / "run")
    assert result["step"] == 2
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    messages = [r["message"] for r in records if r["kind"] == "warning"]
    assert any(f"{train_shards[0]}: the shard is missing" in m for m in messages)
    steps = [r for r in records if r["kind"] == "train"]
    assert [r["bad_samples"] for r in steps] == [BATCH, 2 * BATCH]
    assert [r["loss"] for r in steps] == [0.0, 0.0]
    assert all(r["grad_norm"] == 0.0 for r in steps)
