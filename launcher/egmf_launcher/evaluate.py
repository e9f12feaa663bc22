"""``egmf evaluate``: the same launching as training, a job of its own, and the result as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from egmf_dist.config import SomeSettings, load_run_config
from egmf_dist.errors import EgmfError
from egmf_dist.jobs import EvaluateJob
from egmf_dist.run.folder import Run
from egmf_dist.run.places import Places
from egmf_launcher.arguments import CommandLine
from egmf_launcher.bench_report import new_console
from egmf_launcher.decide import LaunchArguments
from egmf_launcher.launch import choose, is_silent_rank, launch_job, new_launch, reexecute_under_deepspeed


@dataclass(frozen=True)
class Wanted:
    """What is scored, and how."""

    split: str = "test"
    """train, valid or test"""
    remove: Sequence[str] = ()
    """modalities (text, or a feature stream's name) to take away from every sample"""
    remove_each: bool = False
    """also score with each modality alone taken away"""
    decode: Literal["score", "greedy"] = "score"
    """score every legal answer; greedy also generates each answer freely, to compare"""
    robustness: bool = False
    """also score it with frames, words and streams lost, with noise, and with streams exchanged"""


def evaluate(
    path: Path,
    /,
    wanted: Wanted = Wanted(),
    *,
    settings: SomeSettings,
    launch: LaunchArguments,
    words: CommandLine,
) -> int:
    """Score a split of a run and print the table; returns the exit code.

    Harmless beside a training of the run: it has its own files of Ray, and moves nothing that training reads.

    Args:
        path: the run's folder, runs/NAME
        wanted: what is scored, and how.
        settings: given instead of the run's.
        launch: what the command line says about launching.
        words: given on under ``--launcher deepspeed``.

    Raises:
        EgmfError: the run is not there, a modality does not exist, or its data or backbone are not found or others.
    """
    run = Run(path)
    if not run.config.is_file():
        raise EgmfError(f"run {run}: no {run.config.name} in it, so it is no run; give runs/NAME of a trained run")
    if wanted.robustness and wanted.remove:
        raise EgmfError("--remove beside --robustness: that takes each modality away itself; leave one of them out")
    config = load_run_config(run.config)
    decision = choose(launch)
    if decision.way == "leave":
        return 0
    if decision.way == "deepspeed":
        return reexecute_under_deepspeed(decision, launch.hostfile, words)
    places = Places(settings.values.get("data.shards"), settings.values.get("backbone.path"))
    evaluation = settings.section("evaluation")
    job = EvaluateJob(
        path,
        wanted.split,
        list(wanted.remove),
        wanted.remove_each,
        new_launch(),
        evaluation=evaluation,
        decode=wanted.decode == "greedy",
        robustness=wanted.robustness,
    )

    def prepare() -> EvaluateJob:
        from egmf_dist.preflight import preflight_evaluation

        found = preflight_evaluation(run, wanted.split, wanted.remove, places, evaluation)
        return replace(job, shards=found.shards, backbone=found.backbone)

    result = launch_job(decision, job, config.launch, prepare=prepare)
    if not is_silent_rank():
        print_table(result, wanted.split, wanted.remove)
        if wanted.robustness:
            print_robustness(result["robustness"])
    return 0


def print_robustness(found: Mapping[str, Any]) -> None:
    """The curves as a table, on standard output."""
    from rich.table import Table

    console = new_console()
    for name, task in found["tasks"].items():
        table = Table(title=f"{name}: {task['metric']} with so much lost, {found['split']}", title_justify="left")
        for heading in ("stream", *(f"{rate:.0%}" for rate in found["rates"]), "mean", "all of it"):
            table.add_column(heading, no_wrap=True, justify="left" if heading == "stream" else "right")
        for stream, curves in task["curves"].items():
            own = "text" if stream == "words" else stream
            whole = (task.get("removed") or {}).get(own)
            points = [_number(value) for _, value in curves["drop"]]
            table.add_row(stream, *points, _number(task["area"][stream]), _number(whole))
        console.print(table)
        for stream, votes in (task.get("conflict") or {}).items():
            console.print(
                f"{stream} of another sample: {votes['follows_stream']:.0%} of {votes['n']} answers follow it "
                f"({votes['follows_stream_before']:.0%} did with their own), "
                f"{votes['follows_rest']:.0%} the rest, {votes['neither']:.0%} neither",
                markup=False,
            )


def print_table(result: Mapping[str, Any], split: str, remove: Sequence[str]) -> None:
    """Measured beside the construction's ceiling, on standard output."""
    from rich.table import Table

    from egmf_dist.inference.conditions import conditions

    tasks = conditions(result)
    with_ceiling = any(row.ceiling is not None for _, rows in tasks.values() for row in rows)
    table = Table(title=f"{split}, checkpoint {result.get('checkpoint', '?')}", title_justify="left")
    words, figures = ["task", "metric"], ["n", "measured", "95 %", *(["best possible"] if with_ceiling else [])]
    for heading in [*words, "n", "modalities", *figures[1:]]:
        table.add_column(heading, no_wrap=True, justify="right" if heading in figures else "left")
    for name, (metric, rows) in tasks.items():
        count = str(result["tasks"][name]["n"])
        for row in rows:
            ceiling = [_number(row.ceiling)] if with_ceiling else []
            sure = (result["tasks"][name].get("intervals") or {}).get(metric) if row is rows[0] else None
            between = f"{sure[0]:.3f} to {sure[1]:.3f}" if sure else ""
            table.add_row(name, metric, count, row.label, _number(row.measured), between, *ceiling)
    console = new_console()
    console.print(table)
    for name, task in (result.get("greedy") or {}).get("tasks", {}).items():
        names = ("accuracy", "weighted_f1") if "accuracy" in task["metrics"] else ("mae", "corr", "non0_acc2")
        found = ", ".join(f"{metric} {_number(task['metrics'][metric])}" for metric in names)
        console.print(f"{name}, generated greedily: {found}; {task['unparsed']} of {task['n']} unparsed", markup=False)
    for name, task in result["tasks"].items():
        if task.get("calibrated"):
            console.print(f"{name}: {calibrated(task)}", markup=False)
        if task.get("collapsed"):
            console.print(f"warning: {task['collapsed']}", markup=False)


def calibrated(task: Mapping[str, Any]) -> str:
    """What the calibration that was fitted on validation does to a task's result, as a line."""
    before, after, fitted = task["metrics"], task["calibrated"]["metrics"], task["calibration"]
    names = ("ece", "nll") if "ece" in before else ("mae", "corr", "nll")
    parts = [f"{name} {_number(before[name])} -> {_number(after[name])}" for name in names]
    if task["calibrated"].get("coverage") is not None:
        parts.append(f"80 % intervals hold {task['calibrated']['coverage']:.3f} of the truth")
    return f"calibrated on {fitted['samples']} validation samples: {', '.join(parts)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
