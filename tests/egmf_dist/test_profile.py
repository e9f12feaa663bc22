"""Profiling without a training: phases of their own, nothing while off, refusals, what follows from a profile."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from egmf_dist.bench.index import measure_index
from egmf_dist.config import Config, TrainingConfig
from egmf_dist.config.check import check_config
from egmf_dist.errors import EgmfError
from egmf_dist.ledger import Count
from egmf_dist.preflight import preflight
from egmf_dist.run.folder import Run
from egmf_dist.scale import profiled
from egmf_dist.training.profile import PHASES, WARM, Phases, Profiler


def test_a_phase_inside_of_another_is_not_counted_twice():
    phases = Phases(torch.device("cpu"))
    inner = phases.around("gathers", lambda: time.sleep(0.05))
    outer = phases.around("backward", lambda: (time.sleep(0.02), inner()))
    begin = time.perf_counter()
    phases.begin()
    outer()
    seconds = phases.end()
    whole = time.perf_counter() - begin
    assert seconds["gathers"] >= 0.05
    assert 0.02 <= seconds["backward"] < whole - 0.05
    assert 0.07 <= sum(seconds.values()) <= whole
    assert list(seconds) == list(PHASES)


def test_a_phase_that_fails_is_left():
    phases = Phases(torch.device("cpu"))
    phases.begin()
    with pytest.raises(ZeroDivisionError):
        phases.around("backward", lambda: 1 / 0)()
    assert phases.now == "host"


def trainer(steps: int) -> SimpleNamespace:
    config = Config(training=TrainingConfig(profile_steps=steps))
    return SimpleNamespace(config=config, device=torch.device("cpu"))


def test_off_and_before_its_steps_it_is_a_context_that_does_nothing():
    off, on = Profiler(trainer(0)), Profiler(trainer(2))
    nothing = off.step()
    assert all(off.step() is nothing for _ in range(9))
    assert [on.step() is nothing for _ in range(WARM + 1)] == [True] * WARM + [False]


def test_a_profile_that_is_there_is_not_written_over(tmp_path):
    run = Run(tmp_path / "run")
    run.profile.mkdir(parents=True)
    config = replace(Config(), training=TrainingConfig(profile_steps=2))
    with pytest.raises(EgmfError, match=r"profile exists, and training.profile_steps would write there") as caught:
        preflight(config, 1, run, "never")
    assert "\n" not in str(caught.value)


def test_who_goes_on_with_a_profiled_run_leaves_its_profile(tmp_path):
    """A worker's death or a stop must not end in a folder that is there already."""
    own = trainer(2)
    own.run = Run(tmp_path / "run")
    with Profiler(own) as profiler:
        assert profiler.steps == 2
    own.run.profile.mkdir(parents=True)
    with Profiler(own) as profiler:
        assert profiler.steps == 0


def test_settings_that_cannot_be(tmp_path):
    flex = replace(Config().backbone, attn_implementation="flex_attention")
    with pytest.raises(EgmfError, match=r"profile_steps is 2; it must be 0 with backbone.attn_implementation flex_att"):
        check_config(Config(training=TrainingConfig(profile_steps=2), backbone=flex))
    config = Config(training=TrainingConfig(zero_options={"zero_hpz_partition_size": 4}))
    with pytest.raises(EgmfError, match=r"zero_hpz_partition_size 4 for 6 ranks; it must divide them"):
        preflight(config, 6, Run(tmp_path / "run"), "never")


def test_a_run_too_short_to_be_profiled_is_refused():
    check_config(Config(training=TrainingConfig(steps=6, profile_steps=2)))
    with pytest.raises(EgmfError, match=r"training.profile_steps is 3; it must be at most training.steps - 4 \(2\)"):
        check_config(Config(training=TrainingConfig(steps=6, profile_steps=3)))


def test_what_is_computed_again_is_no_work_of_the_models(monkeypatch, tmp_path):
    monkeypatch.setattr(profiled, "matmul_tflops", lambda: 0.1)
    monkeypatch.setattr(profiled, "peak_tflops", lambda: None)
    found = {
        "step_s": 0.5, "steps": 2, "stage": 1, "ranks": 1, "checkpointing": True, "peak_bytes": 2**20,
        "phases": {"LLM forward": 0.1, "backward": 0.3, "host": 0.1},
        "flops": {"LLM forward": 10**9, "backward": 3 * 10**9}, "messages": {"all-reduce": {"bytes": 4, "calls": 1}},
        "kernels": [{"name": "ms_dwconv_forward", "seconds": 1.0, "calls": 1},
                    {"name": "gemm", "seconds": 3.0, "calls": 2}],
        "timeline": [("host", 1), ("backward", 2)],
    }  # fmt: skip
    planned = SimpleNamespace(step=Count(), peak_bytes=2**20)
    whole = profiled.with_plan(found, planned)
    assert (whole["hardware_flops"], whole["model_flops"]) == (4 * 10**9, 3 * 10**9)
    assert whole["mfu"] == pytest.approx(3e9 / 0.5 / 1e11)
    assert whole["fused_share"] == 0.25
    assert any("25.0%" in line for line in profiled.lines_of(whole))
    assert [row["share"] for row in profiled.rows_of(whole)] == ["20.0%", "60.0%", "20.0%"]
    assert profiled.message_rows(whole)[0]["MiB planned"] == 0
    assert profiled.draw(whole, tmp_path).stat().st_size > 10_000


def test_the_index_of_many_samples_is_measured_in_a_process_of_its_own():
    found = measure_index(600_000)
    assert found["samples"] == 600_000
    assert found["file_bytes"] > 70 * 2**20
    for order in ("full", "dialogue"):
        first, later = found[order]["first"], found[order]["later"]
        assert first["read"] == later["read"] == 600_000
        # Held is a part of what is mapped, whoever goes through all of it first; what follows from it is kept.
        assert later["held_bytes"] <= first["peak_held_bytes"] < found["file_bytes"] / 2
        assert later["read_held_bytes"] < found["file_bytes"] / 4
        assert later["read_mapped_bytes"] > later["mapped_bytes"]
        assert later["batch_s"] > 0
    assert found["full"]["later"]["peak_held_bytes"] < found["full"]["first"]["peak_held_bytes"] / 2
    with pytest.raises(EgmfError, match=r"--samples is 0; it must be from 1"):
        measure_index(0)
