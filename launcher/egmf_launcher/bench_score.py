"""``egmf bench score``: what an answer costs, all legal ones at once, one by one, or generated; a table and files."""

from __future__ import annotations

import os
from pathlib import Path

from egmf_dist.bench.score_options import ScoringOptions
from egmf_launcher.bench_report import make_table, new_console, own_folder, picked, progress_bar, write_files
from egmf_launcher.network import single_rank_environment

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
    import torch

    from egmf_dist.bench.scoring import KIND, measure_scoring

    console = new_console()
    own_folder(out, [KIND], "egmf bench score")
    single_rank_environment()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with progress_bar(console) as progress:
        summary = measure_scoring(out, options, progress)
    written = write_files(summary, out)
    title = f"{summary['backbone']}; {summary['device']}; {summary['machine']}"
    console.print(make_table(title, picked(_COLUMNS, summary["rows"])))
    for name, ratio in summary["ratios"].items():
        console.print(f"{name}: {ratio:.2f}", markup=False)
    for note in summary["notes"]:
        console.print(f"- {note}", markup=False)
    console.print(f"written to {out}: {', '.join(path.name for path in written)}", markup=False)
    return 0
