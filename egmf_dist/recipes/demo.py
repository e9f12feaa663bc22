"""The demo's ingredients: generated bilingual clips and a backbone of a million parameters."""

from __future__ import annotations

import json
from pathlib import Path

from egmf_dist.config import Config
from egmf_dist.errors import EgmfError
from egmf_dist.recipe_files import recipe_file
from egmf_shards import ShardSet
from egmf_shards.errors import ShardError
from egmf_shards.format.manifest import read_manifest

RUN = Path("runs/demo")
DATA = Path("data/demo")
BACKBONE = Path("backbones/demo")
SEED, UTTERANCES, MISSING, NOISE = 0, 6000, 0.03, 0.01


def config_path() -> Path:
    """The demo's settings.

    Raises:
        EgmfError: see :func:`recipe_file`.
    """
    return recipe_file("demo")


def prepare(config: Config) -> None:
    """Make the demo's data and backbone where they are missing.

    Raises:
        EgmfError: what is there under their names is not what the demo makes; names the folder to remove.
    """
    if DATA.exists():
        check_data()
    else:
        from egmf_shards.synthetic.generate import synthesize

        print(f"demo: generating {DATA}", flush=True)
        synthesize(DATA, SEED, UTTERANCES, MISSING, NOISE)
    if Path(config.backbone.path) != BACKBONE:
        return  # an option names another
    if BACKBONE.exists():
        check_backbone()
    else:
        from egmf_dist.recipes.tiny_backbone import TinySettings, train_tiny_backbone

        print(f"demo: pre-training {BACKBONE} (about a minute)", flush=True)
        seed, turns = config.training.seed, config.data.context_turns
        train_tiny_backbone([DATA], BACKBONE, TinySettings(layers=3), seed=seed, context_turns=turns)


def check_data() -> None:
    """Refuse data under the demo's name that the demo would not generate: its figures would not be the demo's."""
    try:
        source = read_manifest(DATA)["source"]
    except ShardError as error:
        raise EgmfError(f"{error}; remove {DATA} to have the demo make it anew") from error
    wanted = {"seed": SEED, "samples": UTTERANCES, "missing": MISSING, "noise": NOISE}
    other = [
        f"{key} {source.get(key)!r} instead of {value!r}" for key, value in wanted.items() if source.get(key) != value
    ]
    if other:
        raise EgmfError(f"{DATA} is not the demo's data ({', '.join(other)}); move it away, or remove {DATA}")


def check_backbone() -> None:
    """Refuse a backbone under the demo's name that was pre-trained on other text than the demo's data."""
    record = BACKBONE / "backbone.json"
    try:
        found = [source.get("index_hash") for source in json.loads(record.read_text(encoding="utf-8"))["sources"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EgmfError(
            f"{BACKBONE} is not the demo's backbone (no readable {record.name}); remove {BACKBONE}"
        ) from error
    if found != [ShardSet.open([DATA], "train").index_hash]:
        raise EgmfError(f"{BACKBONE} was pre-trained on other data than {DATA} as the demo makes it; remove {BACKBONE}")
