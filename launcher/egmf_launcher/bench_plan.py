"""``egmf bench plan``: a plan's seconds against a training's here, and what profiling costs; a table and files."""

from __future__ import annotations

from pathlib import Path

from egmf_dist.scale.measured_options import PlanBenchOptions
from egmf_launcher.bench_report import make_table, new_console, own_folder, picked, progress_bar, write_files

_COLUMNS = {
    "title": "trained here",
    "predicted_s": "predicted s",
    "measured_s": "measured s",
    "ratio": "predicted / measured",
    "profiled": "profiled / plain",
    "phases": "phases / step",
    "steps": "steps",
    "met": "met",
}


def bench_plan(out: Path, options: PlanBenchOptions) -> int:
    """How far a plan's seconds are off on this machine's CPU after --calibrate, and what the profiler costs.

    Args:
        out: folder for summary.json and results.csv
        options: what is measured.

    Returns:
        0, or 1 where a plan is off by more than 25 %, profiling costs more than 5 % of the steps, or phases leave out
        more than 5 % of one.

    Raises:
        EgmfError: an option that does not fit, an ``out`` that cannot be written or holds another report.
    """
    from egmf_dist.scale.measured import KIND, measure_plan

    console = new_console()
    own_folder(out, [KIND], "egmf bench plan")
    with progress_bar(console) as progress:
        summary = measure_plan(out, options, progress, lambda line: console.print(line, markup=False))
    written = write_files(summary, out)
    console.print(make_table(summary["machine"], picked(_COLUMNS, summary["rows"])))
    console.print(f"written to {out}: {', '.join(path.name for path in written)}", markup=False)
    return 0 if summary["met"] else 1
