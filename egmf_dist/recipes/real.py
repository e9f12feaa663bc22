"""The ingredients of the run on real rows: MELD's and CH-SIMS v2's text, and a stand-in pre-trained on both."""

from __future__ import annotations

from pathlib import Path

from egmf_dist.config import Config
from egmf_dist.errors import EgmfError

RUN = Path("runs/real")
RUN_LLM = Path("runs/real-llm")
MELD = Path("data/meld")
SIMSV2 = Path("data/simsv2")
BACKBONE = Path("backbones/real")


def sources(data: Path) -> tuple[Path, Path]:
    """MELD's folder and CH-SIMS v2's table in ``data``.

    Raises:
        EgmfError: one is not there.
    """
    meld, simsv2 = data / "meld", data / "simsv2" / "label.csv"
    for needed, what in ((meld, "MELD's CSV files"), (simsv2, "CH-SIMS v2's label.csv")):
        if not needed.exists():
            raise EgmfError(f"egmf real: {needed} is not there; --data names the folder that holds {what} there")
    return meld, simsv2


def import_both(meld: Path, simsv2: Path) -> None:
    """Shards of both, where they are missing.

    Raises:
        ShardError: a CSV is malformed.
    """
    from egmf_shards.importers.label_csv import import_label_csv
    from egmf_shards.importers.meld import import_meld

    if not MELD.exists():
        import_meld(meld, MELD, None, None)
    if not SIMSV2.exists():
        import_label_csv(simsv2, SIMSV2, "simsv2", "zh", None, None)


def pretrain(config: Config) -> None:
    """The backbone, where it is missing."""
    from egmf_dist.recipes.tiny_backbone import TinySettings, train_tiny_backbone

    if not BACKBONE.exists():
        train_tiny_backbone(
            [MELD, SIMSV2],
            BACKBONE,
            TinySettings(vocab_size=3000, layers=3),
            steps=500,
            seed=config.training.seed,
            context_turns=config.data.context_turns,
        )
