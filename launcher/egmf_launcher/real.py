"""The recipe on real rows: MELD and CH-SIMS v2 text, one joint bilingual model, both test splits."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from egmf_dist.errors import EgmfError
from egmf_dist.run.folder import Run
from egmf_launcher.demo import call, run_state, timed

CONFIG = Path("configs/real.yaml")
RUN = Path("runs/real")
MELD = Path("data/meld")
SIMSV2 = Path("data/simsv2")
BACKBONE = Path("backbones/real")


def run_real(data: Path, workers: int = 2) -> None:
    """Import, pre-train the backbone on both training splits, train, evaluate, draw. What is there already is kept.

    Args:
        data: a folder with ``meld/{train,dev,test}_sent_emo.csv`` and ``simsv2/label.csv``.
        workers: ranks under Ray.

    Raises:
        EgmfError: ``data`` or the recipe's settings are not there.
        ShardError: a CSV is malformed.
        LaunchError: a command failed.
    """
    from egmf_dist.config import load_config
    from egmf_dist.recipes.tiny_backbone import train_tiny_backbone
    from egmf_shards import import_label_csv, import_meld

    meld_source, simsv2_source = data / "meld", data / "simsv2" / "label.csv"
    for needed, what in ((meld_source, "MELD's CSV files"), (simsv2_source, "CH-SIMS v2's label.csv")):
        if not needed.exists():
            raise EgmfError(f"egmf real: {needed} is not there; --data names the folder that holds {what} there")
    if not CONFIG.is_file():
        raise EgmfError(f"egmf real: {CONFIG} is not here; start it in a clone's folder")
    config = load_config(CONFIG)
    egmf = [sys.executable, "-m", "egmf_launcher.cli"]
    phases: dict[str, float] = {}

    def import_both() -> None:
        if not MELD.exists():
            import_meld(meld_source, MELD, None, None)
        if not SIMSV2.exists():
            import_label_csv(simsv2_source, SIMSV2, "simsv2", "zh", None, None)

    def pretrain() -> None:
        if not BACKBONE.exists():
            train_tiny_backbone(
                [MELD, SIMSV2],
                BACKBONE,
                vocab_size=3000,
                layers=3,
                steps=500,
                seed=config.training.seed,
                context_turns=config.data.context_turns,
            )

    timed(phases, "import", import_both)
    timed(phases, "backbone", pretrain)
    state = run_state(RUN)
    if state == "complete":
        print(f"real: {RUN} is trained already (remove it to train again)", flush=True)
    else:
        resume = "auto" if state == "interrupted" else "never"
        options = [
            "--config",
            os.fspath(CONFIG),
            "--run",
            os.fspath(RUN),
            "--resume",
            resume,
            "--workers",
            str(workers),
        ]
        timed(phases, "training", lambda: call([*egmf, "train", *options]))
    timed(phases, "evaluation", lambda: call([*egmf, "evaluate", os.fspath(RUN), "--split", "test"]))
    timed(phases, "pictures", lambda: call([*egmf, "report", os.fspath(RUN)]))
    print(f"real: {sum(phases.values()):.0f} s in all; results in {Run(RUN).evaluation('test')}", flush=True)
