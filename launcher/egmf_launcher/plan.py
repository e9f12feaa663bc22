"""``egmf plan``: the plan's tables, files and picture."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Any

from egmf_dist.config import AllSettings
from egmf_dist.errors import EgmfError
from egmf_dist.scale.options import PlanOptions
from egmf_launcher.bench_report import make_table, new_console, own_folder, picked

_WAYS = {
    "fits": "fits",
    "whole_gib": "GiB",
    "frozen_gib": "frozen",
    "optimizer_gib": "optimiser",
    "gathered_gib": "gathered",
    "activations_gib": "activations",
    "sent_gib": "GiB sent",
    "step_s": "s a step",
    "settings": "settings",
}


def plan(out: Path | None = None, json: bool = False, *, options: PlanOptions, settings: AllSettings) -> int:
    """What a training needs and takes on machines that need not be here: memory, messages, time, cost, advice.

    Everything is predicted; no weight is read and no GPU is touched.

    Args:
        out: folder for summary.json, sweep.png and table.md; null: nothing is written
        json: print the summary as one JSON object
        options: where, and what else is asked.
        settings: of the training.

    Returns:
        0.

    Raises:
        EgmfError, ShardError: bad options or settings, or a backbone or data that cannot be read.
    """
    if not settings.name_data:
        raise EgmfError("egmf plan needs --config FILE or a recipe's name, such as --config demo")
    from egmf_dist.files import write_json
    from egmf_dist.scale.plan import KIND, TABLE, check_options, plan_table, said
    from egmf_dist.scale.plan import plan as make_plan
    from egmf_dist.scale.sweep import draw

    check_options(options)
    if out is not None:
        own_folder(out, [KIND, TABLE], "egmf plan")
    console = new_console()
    if options.table:
        tabled = plan_table(
            settings.config(), options, lambda line: None if json else console.print(line, markup=False)
        )
        return _show_table(tabled, out, json)
    summary = make_plan(settings.config(), options)
    if json:
        print(dumps(summary, indent=2))
    else:
        for line in said(summary):
            console.print(line, markup=False)
        memory = [{"of one rank": name, "GiB": size / 2**30} for name, size in summary["memory"].items()]
        console.print(make_table("memory (predicted)", memory))
        messages = [
            {"message": row["kind"], "MiB a step": row["bytes_a_step"] / 2**20, "calls": row["calls"]}
            for row in summary["messages"]
        ]
        console.print(make_table("messages of one rank (predicted)", messages))
        console.print(make_table("ways to train it (predicted)", picked(_WAYS, summary["ways"])))
        if "sweep" in summary:
            console.print(make_table("other numbers of hosts (predicted)", summary["sweep"]))
    if out is not None:
        write_json(out / "summary.json", summary)
        if "sweep" in summary:
            draw(summary["sweep"], f"{summary['machines']['hardware']}, stage {summary['model']['stage']}", out)
    return 0


def _show_table(summary: dict[str, Any], out: Path | None, json: bool) -> int:
    from egmf_dist.files import write_json, write_text
    from egmf_dist.scale.table import markdown

    console, machines = new_console(), summary["machines"]
    if json:
        print(dumps(summary, indent=2))
    else:
        for line in summary["said"]:
            console.print(f"note: {line}", markup=False)
        console.print(f"{machines['hardware']}: {machines['source']}", markup=False)
        console.print(make_table("backbones over numbers of GPUs (predicted)", summary["rows"]))
    if out is not None:
        write_json(out / "summary.json", summary)
        write_text(out / "table.md", markdown(summary["rows"]))
    return 0
