"""A rank that gets no further without dying is named, with its stack, by whoever still can."""

from __future__ import annotations

import signal
import textwrap
import time
from dataclasses import replace

import psutil
import pytest
from run_records import steps_of

from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.jobs import TrainJob
from egmf_dist.run.folder import Run, open_run
from egmf_dist.run.records import read_records
from egmf_dist.training.health import Beat, described, speaks
from egmf_shards import synthesize


def test_what_is_said_of_ranks_that_stand_still() -> None:
    waits = "training/loop.py:72 train_step (in distributed/distributed_c10d.py:9 all_reduce)"
    beats = [
        Beat(0, 9, 17, 60.0, True, waits, "a"),
        Beat(1, 9, 17, 60.0, False, "data/loader.py:80 load", "b"),
        Beat(2, 4, 16, 10.0, True, waits, "c"),
        Beat(3, 9, 17, 60.0, True, waits, "a"),
    ]
    assert described(beats, [2], 50) == (
        "no rank has got further for 50 s: "
        "rank 2 does not answer (a stopped process, or its host is gone), last seen in step 16 on c; "
        f"rank 1 on b (step 17) is at data/loader.py:80 load; ranks 0, 3 wait for others at {waits}"
    )
    assert described(beats[:1], [1], 50) == (
        "no rank has got further for 50 s: "
        f"rank 1 does not answer (a stopped process, or its host is gone); rank 0 waits for others at {waits}"
    )


def test_a_rank_that_goes_round_in_a_circle_is_named_by_one_that_waits() -> None:
    """Its own thread moves, so it never looks at the others; and that no rank got further would not be true."""
    beats = [
        Beat(0, 9, 17, 0.4, False, "mine.py:3 until_it_is_well", "a"),
        Beat(1, 9, 17, 60.0, True, "distributed.py:99 sum_over_ranks", "b"),
        Beat(2, 9, 17, 61.0, True, "distributed.py:99 sum_over_ranks", "c"),
    ]
    assert speaks(beats, [], 50) == 1
    assert speaks(beats, [1], 50) == 2
    assert described(beats, [], 50) == (
        "some ranks have got no further for 50 s: rank 0 on a (step 17) moved 0 s ago, at mine.py:3 until_it_is_well; "
        "ranks 1, 2 wait for others at distributed.py:99 sum_over_ranks"
    )


@pytest.mark.distributed
def test_a_hung_rank_is_named(random_backbone, start_ranks, tmp_path) -> None:
    """First rank 1's loader process stands still, so that rank 1 hangs in its own code; then all of rank 0."""
    synthesize(tmp_path / "demo", seed=0, samples=80)
    config = Config(
        data=DataConfig(shards=[str(tmp_path / "demo")], workers=1),
        backbone=BackboneConfig(path=str(random_backbone), lora_rank=4),
        model=ModelConfig(width=32, heads=2),
        training=TrainingConfig(
            steps=100_000, global_batch=4, micro_batch=2, precision="fp32", validate_every=100_000,
            checkpoint_every=100_000, log_every=1, hang_seconds=10.0,
        ),
    )  # fmt: skip
    run = Run(tmp_path / "run")
    open_run(config, run, "never")

    def come(what, seconds: float = 120):
        until = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < until
            assert [rank.poll() for rank in ranks] == [None, None]
            time.sleep(0.2)
        return found

    def said() -> list[str]:
        if not run.metrics.is_file():
            return []
        return [
            r["message"] for r in read_records(run.metrics) if r["kind"] == "warning" and "for 10 s" in r["message"]
        ]

    with start_ranks("training_run.py", 2, TrainJob(run.folder, config)) as (ranks, result_of):
        come(lambda: len(steps_of(run)) >= 3)
        assert said() == []
        (loader,) = [p for p in psutil.Process(ranks[1].pid).children() if "resource_tracker" not in p.cmdline()[-1]]
        loader.suspend()
        (first,) = come(said)
        loader.resume()
        assert "; stacks: " in first
        assert "rank 1 on " in first
        assert "is at data/loader.py:" in first
        assert "rank 0 waits for others at egmf_dist/distributed.py:" in first
        for rank in (0, 1):
            assert "in next_step" in (run.folder / "stacks" / f"rank-{rank}.txt").read_text()

        before = steps_of(run)[-1]
        come(lambda: steps_of(run)[-1] > before + 2)
        ranks[0].send_signal(signal.SIGSTOP)
        second = come(lambda: [line for line in said() if "rank 0 does not answer" in line])[0]
        ranks[0].send_signal(signal.SIGCONT)
        assert "rank 0 does not answer (a stopped process, or its host is gone)" in second
        assert "rank 1 waits for others at" in second
        before = steps_of(run)[-1]
        come(lambda: steps_of(run)[-1] > before + 2)

        # Rank 1 runs a quarter of the time now, and is slow; it does not hang.
        def slow() -> list[str]:
            ranks[1].send_signal(signal.SIGSTOP)
            time.sleep(0.6)
            ranks[1].send_signal(signal.SIGCONT)
            return [r["message"] for r in read_records(run.metrics) if "slower than the others" in str(r)]

        (third,) = come(slow)
        assert "rank 1 on " in third
        ranks[1].send_signal(signal.SIGTERM)
        assert [rank.wait(60) for rank in ranks] == [0, 0]
        assert result_of()["stopped"]
    assert said()[:2] == [first, second]


PARTS = """
    import torch
    from egmf_dist import distributed
    from egmf_dist.model.fusion.base import Fused

    class Parting(torch.nn.Module):
        diagnostics = {}

        def __init__(self, config, modalities, tasks, languages):
            super().__init__()
            self.own = torch.nn.Linear(config.width, config.pseudo_tokens * config.width)
            self.seldom = torch.nn.Linear(config.width, config.width)
            self.shape, self.calls = (config.pseudo_tokens, config.width), 0

        def describe(self, device):
            return "kernels: none"

        def forward(self, x_TD, batch):
            self.calls += self.training
            if self.calls == 5 and distributed.rank() == 1:
                x_TD = self.seldom(x_TD)
            bounds = batch.cu_segments.long()[::3]
            mean_BD = torch.segment_reduce(x_TD, "mean", offsets=bounds, axis=0, initial=0)
            return Fused(self.own(mean_BD).view(-1, *self.shape), {})
"""


@pytest.mark.distributed
def test_ranks_that_call_different_modules_are_told_where_they_part(
    random_backbone, run_ranks, tmp_path, monkeypatch
) -> None:
    """Under ZeRO-3 they would wait for each other: rank 1's Linear is gathered by nobody else."""
    (tmp_path / "parting.py").write_text(textwrap.dedent(PARTS))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    synthesize(tmp_path / "demo", seed=0, samples=80)
    config = Config(
        data=DataConfig(shards=[str(tmp_path / "demo")]),
        backbone=BackboneConfig(path=str(random_backbone), lora_rank=4),
        model=ModelConfig(fusion="parting:Parting", width=32, heads=2),
        training=TrainingConfig(
            steps=6, global_batch=4, micro_batch=2, precision="fp32", log_every=1, compare_modules=True
        ),
    )
    run = Run(tmp_path / "run")
    open_run(config, run, "never")
    with pytest.raises(AssertionError) as failed:
        run_ranks("training_run.py", 2, TrainJob(run.folder, config))
    said = "training.compare_modules: ranks call different modules: rank 0 calls fusion.own; rank 1 calls fusion.seldom"
    assert f"{said}, after " in str(failed.value)
    assert len(steps_of(run)) == 4  # what they had in common was trained
    alike = replace(config, training=replace(config.training, steps=4))
    open_run(alike, Run(tmp_path / "alike"), "never")
    assert run_ranks("training_run.py", 2, TrainJob(tmp_path / "alike", alike))["step"] == 4
