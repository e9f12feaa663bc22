"""What can be known before ranks are started: that settings, data, backbone and checkpoint fit together.

Runs in the process that launches (or in rank 0), so that a mistake costs seconds, is said once, and leaves nothing
behind. It loads no weights, joins no process group and touches no GPU; what only the weights can tell (a checkpoint's
hashes) is found by the ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from egmf_dist.build import read_backbone
from egmf_dist.config import Config, load_run_config
from egmf_dist.config.check import check_config
from egmf_dist.data.run_data import RunData, open_split, open_stream
from egmf_dist.errors import EgmfError
from egmf_dist.inference.opened import check_modalities, check_trained
from egmf_dist.metrics.selection import check_definable, check_selection, chosen_for_validation
from egmf_dist.model.adapter import describe_best
from egmf_dist.model.backbone import check_tuning
from egmf_dist.model.fusion.base import FUSIONS
from egmf_dist.model.identity import backbone_identity
from egmf_dist.model.tuning.base import TUNINGS
from egmf_dist.objectives.base import OBJECTIVES
from egmf_dist.objectives.numbers import check_numbers
from egmf_dist.run.checkpoints import find_checkpoint
from egmf_dist.run.folder import Run
from egmf_dist.run.identity import Identity, check_identity, is_folder
from egmf_dist.run.manifest import read_identity
from egmf_dist.run.places import Places, locate
from egmf_dist.run.trackers import check_trackers


def preflight(config: Config, ranks: int, run: Run, resume: str) -> str | None:
    """Check everything that every rank would find out later.

    Args:
        config: the resolved settings.
        ranks: how many will train.
        run: the run; need not exist.
        resume: ``never``, ``auto``, or a checkpoint's step, name or path.

    Returns:
        What a person should know before it begins; None for nothing.

    Raises:
        EgmfError: a setting does not fit the data or the number of ranks, a tracker is not installed, a profile is
            there already, the backbone cannot be loaded, or the checkpoint is none or was made with other data or
            another backbone or seed.
        ShardError: a folder of shards is missing, damaged, given twice or without a split, or folders disagree.
    """
    check_batch(config.training.global_batch, ranks)
    check_shards_of_weights(config.training.zero_options, ranks)
    if config.training.profile_steps and resume == "never" and run.profile.exists():
        raise EgmfError(
            f"{run.profile} exists, and training.profile_steps would write there; move it away, or set it to 0"
        )
    check_trackers(config.logging)
    shards = open_split(config, "train")
    validation = open_split(config, "valid")
    open_stream(config, shards, 0, ranks)
    run_data = RunData.of(shards, config.data)
    check_selection(config.training.select_by, run_data.tasks)
    chosen = chosen_for_validation(validation.task_numbers, config.training.validation_samples)
    said = check_definable(config.training.select_by, validation, chosen)
    capabilities, collator = read_backbone(config, run_data)
    check_parts(config)
    check_numbers(config, collator, capabilities, ranks)
    check_tuning(config.backbone)
    if not run.folder.is_dir():
        return said
    checkpoint = find_checkpoint(run, resume, check=None)
    made_with = read_identity(run) if checkpoint is None else checkpoint.record.identity
    if made_with is not None:
        backbone, made = backbone_identity(config.backbone), run_data.specifications
        now = Identity(ranks, shards.index_hash, config.training.seed, backbone, made)
        if checkpoint is not None:
            check_identity(made_with, now, f"checkpoint {checkpoint.folder}")
        else:  # nothing is trained yet that another number of ranks could not do
            check_identity(made_with, now, f"run {run}", ("features", "data", "backbone"))
    return said


def preflight_evaluation(
    run: Run, split: str, remove: Sequence[str], given: Places, evaluation: Mapping[str, Any]
) -> Places:
    """Check everything that every rank would find out later about an evaluation.

    Args:
        run: the run.
        split: what is scored.
        remove: modalities to be taken away.
        given: where data and backbone lie, as far as the command line says so.
        evaluation: settings of that section instead of the run's.

    Returns:
        Where they lie.

    Raises:
        EgmfError: nothing is trained yet, a modality or setting does not exist, data or backbone are not there or not
            those of the run.
        ShardError: a folder of shards is damaged, or has no such split.
    """
    _, description = describe_best(run)
    run_data = RunData.from_json(description["data"])
    check_modalities(remove, run_data)
    backbone = description.get("identity", description).get("backbone", {})
    places = locate(run, given, is_folder(backbone))
    config = places.put_into(load_run_config(run.config))
    check_config(replace(config, evaluation=replace(config.evaluation, **evaluation)))
    check_parts(config)
    check_trained(run, config, description)
    read_backbone(config, run_data)
    open_split(config, split)
    return places


def check_parts(config: Config) -> None:
    """Refuse a part that no name leads to: one of one's own may be gone, or may fail as it is imported."""
    FUSIONS.find(config.model.fusion)
    OBJECTIVES.find(config.training.objective)
    TUNINGS.find(config.backbone.tuning)


def check_batch(global_batch: int, ranks: int) -> None:
    """Refuse a global batch in which a rank would have no sample."""
    if global_batch < ranks:
        raise EgmfError(
            f"config: training.global_batch is {global_batch} for {ranks} ranks; it must be {ranks} or more, "
            "one sample a rank"
        )


def check_shards_of_weights(options: dict[str, int], ranks: int) -> None:
    """Refuse groups of hpZ that the ranks cannot be cut into."""
    group = options.get("zero_hpz_partition_size", 1)
    if group > 1 and ranks % group:
        raise EgmfError(
            f"config: training.zero_options has zero_hpz_partition_size {group} for {ranks} ranks; it must divide them"
        )
