"""A training that loses frames, words and streams; an evaluation that damages, generates and takes away; two ranks."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.data.loader import Steps
from egmf_dist.data.perturb import Augmentation
from egmf_dist.inference.robustness import DECIBELS, RATES
from egmf_dist.jobs import EvaluateJob, TrainJob
from egmf_dist.metrics.by_task import HEADLINE
from egmf_dist.report import write_report
from egmf_dist.run.folder import Run, open_run
from egmf_shards import ShardSet, Stream, synthesize


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "demo"
    synthesize(folder, seed=0, samples=120, missing=0.1)
    return folder


def test_what_is_lost_does_not_depend_on_ranks(data) -> None:
    shards, augmentation = ShardSet.open([str(data)], "train"), Augmentation(0, 0.9, 0.5, 0.3)

    def lost(world: int) -> dict[int, tuple]:
        found = {}
        for rank in range(world):
            stream = Stream(shards, seed=0, global_batch=10, micro_batch=3, rank=rank, world=world)
            steps = Steps(stream, SimpleNamespace(row_bytes=None), augmentation=augmentation)
            for position in (0, 10, 190):  # the last crosses into the second epoch
                for m in stream.read(position):
                    changed = zip(m.slots, steps._changed(m), m.weights, strict=True)
                    for slot, s, weight in changed:
                        if weight:
                            found[slot.position] = s.id, s.text, {n: a.sum() for n, a in s.features.items()}
        return found

    assert lost(1) == lost(3)
    assert len(lost(1)) == 30


@pytest.mark.distributed
def test_two_ranks(data, random_backbone, run_ranks, tmp_path) -> None:
    config = Config(
        data=DataConfig(shards=[str(data)], context_turns=1, drop_frames=0.5, drop_words=0.2, drop_stream=0.1),
        backbone=BackboneConfig(path=str(random_backbone), lora_rank=4, lora_dropout=0.0),
        model=ModelConfig(width=32, heads=2),
        training=TrainingConfig(
            steps=4,
            global_batch=8,
            micro_batch=4,
            learning_rate=5e-3,
            warmup_steps=1,
            validate_every=4,
            precision="fp32",
        ),
    )
    run = Run(tmp_path / "run")
    open_run(config, run, "never")
    evaluate = EvaluateJob(run.folder, remove_each=True, decode=True, robustness=True)
    result = run_ranks("training_run.py", 2, {"train": TrainJob(run.folder, config), "evaluate": evaluate})["evaluate"]
    assert json.loads(run.robustness("test").read_text()) == result["robustness"]
    assert set(result["greedy"]["tasks"]) == {"emotion", "sentiment"}
    found_tasks = result["robustness"]["tasks"]
    for name, found in found_tasks.items():
        own = result["tasks"][name]
        metric = HEADLINE[own["kind"]]
        assert (found["metric"], found["clean"]) == (metric, pytest.approx(own["metrics"][metric], abs=1e-6))
        assert set(found["curves"]) == {"words", "audio", "vision", "all frames"}
        for key, curves in found["curves"].items():
            assert [rate for rate, _ in curves["drop"]] == list(RATES)
            assert [db for db, _ in curves.get("noise", [])] == (list(DECIBELS) if key in ("audio", "vision") else [])
        for stream, value in found["removed"].items():
            assert value == pytest.approx(result["removed"][stream]["tasks"][name]["metrics"][metric], abs=1e-6)
        assert set(found["context"]) == {"shuffled", "removed"}
        for votes in found["conflict"].values():
            assert votes["n"] > 0
            assert 0 <= votes["follows_stream_before"] <= 1
            assert votes["follows_stream"] + votes["follows_rest"] + votes["neither"] == pytest.approx(1)
        assert result["greedy"]["tasks"][name]["n"] == own["n"]
    drawn = {path.name for path in write_report(run.folder)}
    assert {f"robustness-{kind}-{task}-test.png" for kind in ("drop", "noise") for task in found_tasks} <= drawn
