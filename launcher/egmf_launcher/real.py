"""The commands of the run on real rows: one joint bilingual model on MELD and CH-SIMS v2 text, both test splits.

What they need is made by :mod:`egmf_dist.recipes.real`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from egmf_dist.errors import EgmfError
from egmf_dist.recipe_files import recipe_file
from egmf_dist.recipes.real import RUN, RUN_LLM, import_both, pretrain, sources
from egmf_dist.run.folder import Run
from egmf_launcher.demo import call, run_state, timed
from egmf_launcher.launch import count_gpus


def run_real(
    data: Path,
    backbone: Path | None = None,
    config: str | None = None,
    run: Path | None = None,
    workers: int | None = None,
) -> None:
    """Import, train one joint model, evaluate both test splits, draw. What is there already is kept.

    Args:
        data: folder that holds meld/*.csv and simsv2/label.csv
        backbone: a causal LM in Hugging Face format; left out, a stand-in is pre-trained on both training splits
        config: settings: a file or a recipe; left out, real, or with a backbone real-llm, on a GPU real-llm-gpu
        run: the run's folder; left out, runs/real, or with a backbone runs/real-llm
        workers: ranks under Ray; left out, one for each GPU, or 2

    Raises:
        EgmfError: ``data``, ``backbone`` or the recipe's settings are not there.
        ShardError: a CSV is malformed.
        LaunchError: a command failed.
    """
    from egmf_dist.config import load_config

    gpus = count_gpus()
    recipe = "real" if backbone is None else "real-llm-gpu" if gpus else "real-llm"
    meld, simsv2 = sources(data)
    settings = load_config(config or recipe_file(recipe))
    run = run or (RUN if backbone is None else RUN_LLM)
    if backbone is not None and not (backbone / "config.json").is_file():
        raise EgmfError(
            f"egmf real: {backbone} holds no config.json; --backbone names a folder in Hugging Face format, such as "
            "one that `egmf backbone fetch` or `egmf backbone convert` has made"
        )
    egmf = [sys.executable, "-m", "egmf_launcher.cli"]
    ranks = ["--workers", str(workers or gpus or 2)]
    phases: dict[str, float] = {}
    timed(phases, "import", lambda: import_both(meld, simsv2))
    if backbone is None:
        timed(phases, "backbone", lambda: pretrain(settings))
    state = run_state(run)
    if state == "complete":
        print(f"real: {run} is trained already (remove it to train again)", flush=True)
    else:
        resume = "auto" if state == "interrupted" else "never"
        options = ["--config", config or os.fspath(recipe_file(recipe)), "--run", os.fspath(run), "--resume", resume]
        options += ranks
        options += [] if backbone is None else ["--backbone.path", os.fspath(backbone)]
        timed(phases, "training", lambda: call([*egmf, "train", *options]))
    # The stand-in scores both splits in less time than ranks take to start.
    scoring = ["--split", "test", *([] if backbone is None else ranks)]
    timed(phases, "evaluation", lambda: call([*egmf, "evaluate", os.fspath(run), *scoring]))
    timed(phases, "pictures", lambda: call([*egmf, "report", os.fspath(run)]))
    print(f"real: {sum(phases.values()):.0f} s in all; results in {Run(run).evaluation('test')}", flush=True)
