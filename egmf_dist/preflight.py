"""What can be known before a run has a folder and ranks: that its settings, data, backbone and checkpoint fit together.

Runs in the process that launches (or in rank 0), so that a mistake costs seconds, is said once, and leaves nothing
behind. It loads no weights, joins no process group and touches no GPU; what only the weights can tell (LoRA's targets)
is found by the ranks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egmf_dist.config import Config
from egmf_dist.data.run_data import RunData, open_split, open_stream
from egmf_dist.errors import EgmfError
from egmf_dist.inference.selection import check_definable, check_selection, chosen_for_validation
from egmf_dist.model.backbone import backbone_identity
from egmf_dist.model.build import read_backbone
from egmf_dist.training.checkpoint import RECORD, find_checkpoint


def preflight(config: Config, ranks: int, run: Path, resume: str) -> None:
    """Check everything that every rank would find out later.

    Args:
        config: the resolved settings.
        ranks: how many will train.
        run: ``runs/NAME``; need not exist.
        resume: ``never``, ``auto``, or a checkpoint's path.

    Raises:
        EgmfError: a setting does not fit the data or the number of ranks, the backbone cannot be loaded, or the
            checkpoint is none or was made with other data or another number of ranks.
        ShardError: a folder of shards is missing, damaged, given twice or without a split, or folders disagree.
    """
    check_batch(config.training.global_batch, ranks)
    shards = open_split(config, "train")
    validation = open_split(config, "valid")
    open_stream(config, shards, 0, ranks)
    run_data = RunData.of(shards, config.data)
    check_selection(config.training.select_by, run_data.tasks)
    chosen = chosen_for_validation(validation.task_numbers, config.training.validation_samples)
    check_definable(config.training.select_by, validation, chosen)
    read_backbone(config, run_data)
    checkpoint = find_checkpoint(run, resume)
    if checkpoint is not None:
        check_identity(checkpoint, ranks, shards.index_hash, backbone_identity(config.backbone))


def check_batch(global_batch: int, ranks: int) -> None:
    """Refuse a global batch in which a rank would have no sample."""
    if global_batch < ranks:
        raise EgmfError(
            f"config: training.global_batch is {global_batch} for {ranks} ranks; it must be {ranks} or more, "
            "one sample a rank"
        )


def check_identity(checkpoint: Path, ranks: int, index_hash: str, backbone: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of other ranks, data or backbone; its files' hashes are checked by the ranks that load them.

    Args:
        checkpoint: its folder.
        ranks: of this start.
        index_hash: of the training split.
        backbone: of :func:`egmf_dist.model.backbone.backbone_identity`.
    """
    try:
        identity = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))["identity"]
        made_with = {key: identity[key] for key in ("world_size", "data", "backbone")}
    except (ValueError, KeyError, TypeError) as error:
        raise EgmfError(f"checkpoint {checkpoint}: {RECORD} is damaged; resume from another one") from error
    if made_with["world_size"] != ranks:
        raise EgmfError(
            f"checkpoint {checkpoint}: made with {made_with['world_size']} ranks, this start has {ranks}; "
            "resume with as many as it was made with, or start a new run"
        )
    for key, value, name in (("data", index_hash, "the shards in data.shards"), ("backbone", backbone, "the backbone")):
        if made_with[key] != value:
            raise EgmfError(
                f"checkpoint {checkpoint}: {name} changed; made with {made_with[key]!r}, this start has {value!r}; "
                "resume with the same, or start a new run"
            )
