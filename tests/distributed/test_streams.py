"""A fourth stream is learned from, beside a folder that has it in no width and another audio."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.inference.conditions import conditions
from egmf_dist.jobs import EvaluateJob, TrainJob
from egmf_dist.run.folder import Run, open_run
from egmf_shards import LABELLED_SPLITS, Sample, ShardSet, ShardWriter, synthesize

pytestmark = pytest.mark.distributed
SPREAD = np.random.default_rng(7).normal(size=(16, 20)).astype(np.float32)
"""Another extractor's view of the same 16 numbers."""


def spread(sample: Sample) -> Sample:
    """The sample with an audio of 20 numbers a frame, as a data set of another name."""
    features = {m: array @ SPREAD if m == "audio" else array for m, array in sample.features.items()}
    return replace(sample, id=f"other-{sample.id}", dataset="other", features=features)


def sentiment_alone(source: Path, out: Path, change=lambda sample: sample) -> str:
    """The folder's sentiment samples, changed, as a folder of their own."""
    samples = {split: ShardSet.open([source], split) for split in LABELLED_SPLITS}
    tasks = [samples["train"].tasks["sentiment"]]
    ceilings = {"sentiment": samples["train"].manifests[0]["ceilings"]["sentiment"]}
    first = change(samples["train"][0])
    with ShardWriter(out, first.dataset, tasks, ceilings=ceilings) as writer:
        for split in LABELLED_SPLITS:
            for sample in samples[split]:
                if sample.task == "sentiment":
                    writer.write(change(sample))
    return str(out)


def test_a_fourth_stream_is_worth_what_its_construction_says(random_backbone, run_ranks, tmp_path):
    """Two folders, whose audio is 16 and 20 wide, train one model; each cue that is taken away costs its share."""
    for name, seed in (("a", 0), ("b", 1)):
        synthesize(tmp_path / name, seed=seed, samples=900, missing=0.0, noise=0.0, streams="audio,vision,eda")
    folders = [
        sentiment_alone(tmp_path / "a", tmp_path / "first"),
        sentiment_alone(tmp_path / "b", tmp_path / "second", spread),
    ]
    config = Config(
        data=DataConfig(shards=folders, context_turns=0),
        backbone=BackboneConfig(path=str(random_backbone), tuning="full"),
        model=ModelConfig(width=64, heads=2, pseudo_tokens=4, auxiliary_weight=1.0),
        training=TrainingConfig(
            steps=240, global_batch=32, micro_batch=32, learning_rate=3e-3, warmup_steps=10, precision="fp32",
            zero_stage=1, validate_every=240, validation_samples=100, checkpoint_every=240,
        ),
    )  # fmt: skip
    open_run(config, Run(tmp_path / "run"), "never")
    run_ranks("training_run.py", 1, TrainJob(tmp_path / "run", config))
    evaluation = run_ranks("training_run.py", 1, EvaluateJob(tmp_path / "run", remove_each=True))
    assert evaluation["modalities"] == ["text", "audio", "eda", "vision"]
    metric, rows = conditions(evaluation)["sentiment"]
    found = {row.label: row for row in rows}
    whole, without = found["all"], found["without eda"]
    assert metric == "corr"
    assert whole.measured >= 0.9 * whole.ceiling
    for label, row in found.items():
        assert row.measured <= row.ceiling + 0.05, label  # of 180 samples
    cost = whole.ceiling - without.ceiling
    assert cost > 0.15
    assert whole.measured - without.measured == pytest.approx(cost, abs=0.1)
