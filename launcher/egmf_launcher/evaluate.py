"""``egmf evaluate``: the same launching as training, a job of its own, and the result as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from egmf_dist.config import load_config
from egmf_dist.errors import EgmfError
from egmf_launcher.decide import LaunchArguments
from egmf_launcher.launch import choose, is_silent_rank, launch_job, reexecute_under_deepspeed

# One figure a task: the one that runs are selected by and the README quotes.
_HEADLINE = {"classification": "weighted_f1", "regression": "corr"}


def evaluate(
    run: Path, split: str, remove: Sequence[str], remove_each: bool, launch: LaunchArguments, arguments: Sequence[str]
) -> int:
    """Score a split of a run and print the table; returns the exit code.

    Raises:
        EgmfError: the run is not there, or a modality does not exist.
    """
    settings = run / "config.yaml"
    if not settings.is_file():
        raise EgmfError(f"run {run}: no {settings.name} in it, so it is no run; give runs/NAME of a trained run")
    config = load_config(settings)
    decision = choose(launch)
    if decision.way == "leave":
        return 0
    if decision.way == "deepspeed":
        return reexecute_under_deepspeed(decision, launch.hostfile, arguments)
    job = {"verb": "evaluate", "run": str(run), "split": split, "remove": list(remove), "remove_each": remove_each}
    result = launch_job(decision, job, config.launch)
    if not is_silent_rank():
        print_table(result, split, remove)
    return 0


def table_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str, list[tuple[str, float | None, float | None]]]]:
    """For each task: its name, metric, number of samples, and (condition, measured, ceiling) for every scoring.

    ``condition`` names the modalities that were left; a ceiling is there where the data is generated.
    """
    rows = []
    removed: Mapping[str, Any] = result.get("removed", {})
    for name, task in result["tasks"].items():
        metric = _HEADLINE.get(task["kind"], next(iter(task["metrics"])))
        ceilings: Mapping[str, Any] = result.get("ceilings", {}).get(name, {})
        left = [m for m in ("text", "audio", "vision") if m not in result.get("without", ())]
        conditions = [("all" if not result.get("without") else "+".join(left), result, left)]
        conditions += [(f"without {m}", part, [x for x in left if x != m]) for m, part in removed.items()]
        cells = [
            (label, part["tasks"][name]["metrics"].get(metric), ceilings.get("+".join(kept)))
            for label, part, kept in conditions
        ]
        rows.append((name, metric, str(task["n"]), cells))
    return rows


def print_table(result: Mapping[str, Any], split: str, remove: Sequence[str]) -> None:
    """Measured beside the construction's ceiling, on standard output."""
    from rich.console import Console
    from rich.table import Table

    rows = table_rows(result)
    with_ceiling = any(ceiling is not None for _, _, _, cells in rows for _, _, ceiling in cells)
    table = Table(title=f"{split}, checkpoint {result.get('checkpoint', '?')}", title_justify="left")
    for heading in (
        "task",
        "metric",
        "n",
        "modalities",
        "measured",
        *(["best possible"] if with_ceiling else []),
    ):
        table.add_column(
            heading, no_wrap=True, justify="right" if heading in ("n", "measured", "best possible") else "left"
        )
    for name, metric, count, cells in rows:
        for label, measured, ceiling in cells:
            table.add_row(name, metric, count, label, _number(measured), *([_number(ceiling)] if with_ceiling else []))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for task in result["tasks"].values():
        if task.get("collapsed"):
            console.print(f"warning: {task['collapsed']}", markup=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
