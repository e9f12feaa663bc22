"""``egmf bench score``: what an answer costs, all legal ones at once, one by one, or generated; a table and files."""

from __future__ import annotations

from pathlib import Path

from egmf_dist.bench.score_options import ScoringOptions
from egmf_launcher.bench_report import begin_on_one_rank, make_table, picked, progress_bar, say_notes, write_files

_COLUMNS = {"answers": "legal answers", "title": "scored by", "ms_a_sample": "ms a sample", "min": "min", "max": "max"}


def bench_score(out: Path, options: ScoringOptions) -> int:
    """What an answer costs: legal answers in one pass over their tree, a forward each, or one generated greedily.

    Args:
        out: folder for summary.json and results.csv
        options: what is measured.

    Returns:
        0.

    Raises:
        EgmfError: an option that does not fit, an ``out`` that cannot be written or holds another report.
    """
    from egmf_dist.bench.scoring import KIND, measure_scoring

    console = begin_on_one_rank(out, KIND, "egmf bench score")
    with progress_bar(console) as progress:
        summary = measure_scoring(out, options, progress)
    written = write_files(summary, out)
    title = f"{summary['backbone']}; {summary['device']}; {summary['machine']}"
    console.print(make_table(title, picked(_COLUMNS, summary["rows"])))
    for name, ratio in summary["ratios"].items():
        console.print(f"{name}: {ratio:.2f}", markup=False)
    say_notes(console, summary, out, written)
    return 0
