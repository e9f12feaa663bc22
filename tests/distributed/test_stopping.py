"""Signals to ranks, one after another, while loader processes read: one checkpoint, and the run goes on from it."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace

import psutil
import pytest
from run_records import steps_of

from egmf_dist.config import BackboneConfig, Config, DataConfig, EvaluationConfig, ModelConfig, TrainingConfig
from egmf_dist.jobs import TrainJob
from egmf_dist.run.folder import Run, open_run
from egmf_dist.run.records import read_records
from egmf_dist.training.stopping import Stopping, ask, listening
from egmf_shards import synthesize


@pytest.mark.distributed
def test_ranks_that_are_told_one_after_another_save_together(random_backbone, start_ranks, run_ranks, tmp_path) -> None:
    synthesize(tmp_path / "demo", seed=0, samples=80)
    config = Config(
        data=DataConfig(shards=[str(tmp_path / "demo")], workers=1),
        backbone=BackboneConfig(path=str(random_backbone), lora_rank=4),
        model=ModelConfig(width=32, heads=2),
        training=TrainingConfig(
            steps=100_000, global_batch=4, micro_batch=2, precision="fp32", validate_every=100_000,
            checkpoint_every=100_000, log_every=1,
        ),
    )  # fmt: skip
    run = Run(tmp_path / "run")
    open_run(config, run, "never")
    with start_ranks("training_run.py", 2, TrainJob(run.folder, config)) as (ranks, result_of):
        until = time.monotonic() + 120
        while len(steps_of(run)) < 3:
            assert time.monotonic() < until
            assert ranks[0].poll() is None
            time.sleep(0.1)
        # A queue's signal reaches every process of a job, loader processes first: their batches are still needed.
        loaders = [child for rank in ranks for child in psutil.Process(rank.pid).children()]
        assert len(loaders) >= 2
        for loader in loaders:
            loader.send_signal(signal.SIGTERM)
            loader.send_signal(signal.SIGUSR1)
        before = steps_of(run)[-1]
        while steps_of(run)[-1] < before + 3:
            assert time.monotonic() < until
            assert [rank.poll() for rank in ranks] == [None, None]
            time.sleep(0.1)
        ranks[1].send_signal(signal.SIGTERM)
        assert [rank.wait(60) for rank in ranks] == [0, 0]
        result = result_of()
    assert result["stopped"] == "another rank's signal"
    last = steps_of(run)[-1]
    assert result["step"] == last
    assert [*run.saved_checkpoints()] == [last]
    (end,) = [r for r in read_records(run.metrics) if r["kind"] == "end"]
    assert end["reason"] == "told to stop by another rank's signal"
    assert not any(loader.is_running() for loader in loaders)

    run_ranks(
        "training_run.py",
        2,
        TrainJob(run.folder, replace(config, training=replace(config.training, steps=last + 2)), "auto"),
    )
    assert steps_of(run) == list(range(1, last + 3))


def test_a_note_is_the_launchs_own(tmp_path) -> None:
    run = Run(tmp_path)
    mine, blind = Stopping(run, "mine", looks=True), Stopping(run, "mine", looks=False)
    ask(run, "another", signal.SIGTERM)
    assert mine.by is None
    run.stop.write_text("{")
    assert mine.by is None
    ask(run, "mine", signal.SIGUSR1)
    assert (mine.by, blind.by) == ("SIGUSR1", None)
    assert json.loads(run.stop.read_text())["signal"] == "SIGUSR1"


def test_a_second_ctrl_c_does_not_wait(tmp_path) -> None:
    stopping = Stopping(Run(tmp_path), None, looks=False)
    before = signal.getsignal(signal.SIGTERM)
    with listening(stopping.note):
        signal.raise_signal(signal.SIGTERM)
        assert stopping.by == "SIGTERM"
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.distributed
def test_a_validation_is_broken_off_and_done_by_who_goes_on(random_backbone, start_ranks, run_ranks, tmp_path) -> None:
    synthesize(tmp_path / "demo", seed=0, samples=120)
    config = Config(
        data=DataConfig(shards=[str(tmp_path / "demo")]),
        backbone=BackboneConfig(path=str(random_backbone), lora_rank=4),
        model=ModelConfig(width=32, heads=2),
        evaluation=EvaluationConfig(batch_size=2),
        training=TrainingConfig(
            steps=4, global_batch=4, micro_batch=2, precision="fp32", validate_every=2,
            checkpoint_every=100, log_every=1,
        ),
    )  # fmt: skip
    run, whole = Run(tmp_path / "run"), Run(tmp_path / "whole")
    for one in (run, whole):
        open_run(config, one, "never")
    with start_ranks("training_run.py", 2, TrainJob(run.folder, config)) as (ranks, result_of):
        until = time.monotonic() + 120
        while len(steps_of(run)) < 2:
            assert time.monotonic() < until
            assert ranks[0].poll() is None
            time.sleep(0.02)
        ranks[1].send_signal(signal.SIGTERM)
        assert [rank.wait(60) for rank in ranks] == [0, 0]
        assert result_of()["stopped"]
    assert steps_of(run) == [1, 2]
    assert steps_of(run, "valid") == []  # it was under way
    assert [*run.saved_checkpoints()] == [2]

    jobs = {"on": TrainJob(run.folder, config, "auto"), "whole": TrainJob(whole.folder, config)}
    run_ranks("training_run.py", 2, jobs)
    for kind in ("train", "valid"):
        ours, theirs = ([r for r in read_records(one.metrics) if r["kind"] == kind] for one in (run, whole))
        for record in (*ours, *theirs):
            for name in ("samples_per_s", "tokens_per_s", "mem_mib"):
                record.pop(name, None)
        assert ours == theirs
    assert steps_of(run, "valid") == [2, 4]
