"""``egmf bench step``: a training step beside other ways to train the same; tables, files and a picture."""

from __future__ import annotations

from pathlib import Path

from egmf_dist.bench.step_options import StepOptions
from egmf_launcher.bench_report import begin_on_one_rank, make_table, picked, progress_bar, say_notes, write_files

_COLUMNS = {
    "title": "trained by",
    "samples_per_s": "samples/s",
    "min": "min",
    "max": "max",
    "tokens_per_s": "tokens/s",
    "tflops": "TFLOP/s",
    "mfu": "MFU",
    "samples": "samples a round",
}


def bench_step(out: Path, options: StepOptions) -> int:
    """What a training step costs beside a bare PyTorch loop, transformers' Trainer and a padded predecessor.

    Tables are printed.

    Args:
        out: folder for summary.json, results.csv and step.png
        options: what is measured.

    Returns:
        0.

    Raises:
        EgmfError: an option that does not fit, an ``out`` that cannot be written or holds another report.
    """
    from egmf_dist.bench.step import KIND, RATIOS, TITLES, measure_step
    from egmf_dist.report.step_bench import write_step_report

    console = begin_on_one_rank(out, KIND, "egmf bench step")
    with progress_bar(console) as progress:
        summary = measure_step(out, options, progress, lambda line: console.print(line, markup=False))
    written = [*write_files(summary, out), write_step_report(summary, out)]
    title = f"{summary['backbone']}; {summary['data']}; {summary['device']}; {summary['machine']}"
    console.print(make_table(title, picked(_COLUMNS, summary["rows"])))
    if summary["breakdown"]:
        whole = sum(summary["breakdown"].values())
        parts = [
            {"part": part, "ms a sample": 1e3 * seconds, "share": f"{seconds / whole:.1%}"}
            for part, seconds in summary["breakdown"].items()
        ]
        console.print(make_table(f"where the time goes: {TITLES['forest']}", parts))
    for name, ratio in summary["ratios"].items():
        if ratio is not None:
            first, second = RATIOS[name]
            console.print(f"{name}: {ratio:.2f} ({TITLES[first]} / {TITLES[second]})", markup=False)
    say_notes(console, summary, out, written)
    return 0
