"""The commands of the run on real rows: one joint bilingual model on MELD and CH-SIMS v2 text, both test splits.

What they need is made by :mod:`egmf_dist.recipes.real`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from egmf_dist.recipe_files import recipe_file
from egmf_dist.recipes.real import RUN, import_both, pretrain, sources
from egmf_dist.run.folder import Run
from egmf_launcher.demo import call, run_state, timed


def run_real(data: Path, workers: int = 2) -> None:
    """Import, pre-train the backbone on both training splits, train, evaluate, draw. What is there already is kept.

    Args:
        data: folder that holds meld/*.csv and simsv2/label.csv
        workers: ranks under Ray

    Raises:
        EgmfError: ``data`` or the recipe's settings are not there.
        ShardError: a CSV is malformed.
        LaunchError: a command failed.
    """
    from egmf_dist.config import load_config

    meld, simsv2 = sources(data)
    file = recipe_file("real")
    config = load_config(file)
    egmf = [sys.executable, "-m", "egmf_launcher.cli"]
    phases: dict[str, float] = {}
    timed(phases, "import", lambda: import_both(meld, simsv2))
    timed(phases, "backbone", lambda: pretrain(config))
    state = run_state(RUN)
    if state == "complete":
        print(f"real: {RUN} is trained already (remove it to train again)", flush=True)
    else:
        resume = "auto" if state == "interrupted" else "never"
        options = ["--config", os.fspath(file), "--run", os.fspath(RUN), "--resume", resume, "--workers", str(workers)]
        timed(phases, "training", lambda: call([*egmf, "train", *options]))
    timed(phases, "evaluation", lambda: call([*egmf, "evaluate", os.fspath(RUN), "--split", "test"]))
    timed(phases, "pictures", lambda: call([*egmf, "report", os.fspath(RUN)]))
    print(f"real: {sum(phases.values()):.0f} s in all; results in {Run(RUN).evaluation('test')}", flush=True)
