"""``egmf profile``: a few steps of a training, by phase, beside what was planned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from egmf_dist.config import AllSettings, Config
from egmf_dist.errors import EgmfError
from egmf_launcher.arguments import CommandLine
from egmf_launcher.bench_report import make_table, new_console
from egmf_launcher.decide import LaunchArguments
from egmf_launcher.launch import is_silent_rank


def profile(
    run: Path, steps: int = 3, *, launch: LaunchArguments, settings: AllSettings, words: CommandLine
) -> dict[str, Any] | int:
    """Train a few steps in a run of its own and say where their time goes.

    RUN/profile gets summary.json, trace.json for a browser's trace viewer (chrome://tracing, Perfetto) and profile.png.

    Args:
        run: folder of the run to make, such as runs/profile
        steps: steps that are timed; four more come before and after
        launch: what the command line says about launching.
        settings: of the training.
        words: the command line.

    Returns:
        What training returned where it did not train; else the profile.

    Raises:
        EgmfError, ShardError: bad input.
        LaunchError: ranks could not be started, or one died.
    """
    if not settings.name_data:
        raise EgmfError("egmf profile needs --config FILE, such as --config mine.yaml")
    if launch.launcher == "deepspeed":
        raise EgmfError(
            "egmf profile does not go through --launcher deepspeed; set training.profile_steps in a training"
        )
    if steps < 1:
        raise EgmfError(f"--steps is {steps}; it must be 1 or more")
    if run.exists():
        raise EgmfError(f"--run {run} exists; a profile gets a folder of its own, such as runs/profile")
    config = shortened(settings.config(), steps)
    from egmf_launcher.train import train_run

    result = train_run(config, run, "never", launch, words, False)
    if isinstance(result, int) or is_silent_rank():
        return result
    return show(config, run / "profile")


def shortened(config: Config, steps: int) -> Config:
    """The settings of a training that ends when it is profiled."""
    from egmf_dist.training.profile import MORE, WARM

    training = replace(
        config.training,
        steps=steps + WARM + MORE,
        profile_steps=steps,
        validate_every=steps + WARM + MORE,
        validation_samples=8,
        checkpoint_every=steps + WARM + MORE,
        keep_checkpoints=1,
    )
    return replace(config, training=training, logging=replace(config.logging, to=[]))


def show(config: Config, folder: Path) -> dict[str, Any]:
    """Compare with the plan, print, and write what follows from a profile.

    Raises:
        EgmfError: the profile is not there.
    """
    from egmf_dist.files import write_json
    from egmf_dist.scale import profiled
    from egmf_dist.scale.rehearsal import Part, rehearse
    from egmf_dist.training.profile import SUMMARY, TRACE

    found = profiled.read_profile(folder)
    (planned,) = rehearse([Part(config, found["ranks"])])
    whole = profiled.with_plan(found, planned)
    console = new_console()
    for line in profiled.lines_of(whole):
        console.print(line, markup=False)
    console.print(make_table("where a step's time goes", profiled.rows_of(whole)))
    console.print(make_table("messages of rank 0 in a step", profiled.message_rows(whole)))
    write_json(folder / SUMMARY, whole)
    profiled.draw(whole, folder)
    console.print(f"written to {folder}: {SUMMARY}, {TRACE}, profile.png", markup=False)
    return whole
