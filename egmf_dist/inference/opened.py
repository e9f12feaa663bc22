"""A run's best adapter and a split of its data, ready to be scored: what every kind of evaluation begins with."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.progress import Progress
from torch import nn

from egmf_dist import distributed
from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.config import Config, config_from_saved
from egmf_dist.data.collate import Collator
from egmf_dist.data.run_data import RunData, open_split
from egmf_dist.engine import deepspeed_settings, initialise_for_scoring, partitioned_loading
from egmf_dist.errors import EgmfError
from egmf_dist.features import specifications_of
from egmf_dist.inference.predictions import Prediction
from egmf_dist.inference.score import score_samples
from egmf_dist.inference.scorer import Scorer, check_samples, choose_scorer
from egmf_dist.model.adapter import best_adapter
from egmf_dist.model.identity import backbone_identity
from egmf_dist.model.trained import load_trained
from egmf_dist.run.folder import Run
from egmf_dist.run.identity import Identity, check_identity
from egmf_dist.run.places import Places
from egmf_shards import Sample, ShardSet


@dataclass(frozen=True)
class Opened:
    """A model in evaluation mode beside the split that it is scored on; the same on every rank."""

    run: Run
    split: str
    config: Config
    data: RunData
    shards: ShardSet
    collator: Collator
    module: nn.Module
    scorer: Scorer
    checkpoint: str
    """The adapter, from the run's folder."""
    description: Mapping[str, Any]
    """The adapter's."""
    console: bool
    """This rank shows progress."""
    _scored: dict[frozenset[str], list[Prediction]] = field(default_factory=dict)
    """The whole split without some modalities: an evaluation and its damage ask for the same."""

    def score(
        self,
        what: str,
        remove: Sequence[str] = (),
        change: Callable[[int, Sample], Sample] | None = None,
        indices: Sequence[int] | None = None,
    ) -> list[Prediction]:
        """Score the split, or some of it, with a progress bar; every rank must call this. What was scored before is
        not scored again.

        Args:
            what: names it on the terminal.
            remove: modalities taken away from every sample.
            change: what becomes of each sample by its number.
            indices: which samples; None for all.

        Returns:
            On rank 0 one prediction a sample, in their order; elsewhere an empty list.
        """
        if change is not None or indices is not None:
            return self._score(what, remove, change, indices)
        key = frozenset(remove)
        if key not in self._scored:
            self._scored[key] = self._score(what, remove, None, None)
        return self._scored[key]

    def _score(
        self,
        what: str,
        remove: Sequence[str],
        change: Callable[[int, Sample], Sample] | None,
        indices: Sequence[int] | None,
    ) -> list[Prediction]:
        count = len(self.shards) if indices is None else len(indices)
        if self.console and not os.isatty(1):
            print(f"scoring {what}: {count} samples", flush=True)
        with Progress(disable=not (self.console and os.isatty(1))) as bar:
            task = bar.add_task(f"scoring {what}", total=None)
            return score_samples(
                self.module,
                self.shards,
                self.scorer,
                self.config.evaluation.batch_size,
                indices,
                remove,
                lambda done, total: bar.update(task, completed=done, total=total),
                change,
            )


def open_run(
    run: Run, split: str, remove: Sequence[str], places: Places, evaluation: Mapping[str, Any], console: bool = True
) -> Opened:
    """Load a run's best adapter, open a split, choose how answers are scored; every rank must call this.

    Args:
        run: the run.
        split: ``valid`` or ``test`` (``train`` works too).
        remove: modalities that will be taken away.
        places: where data and backbone lie now.
        evaluation: settings of that section instead of the run's.
        console: rank 0 says what was chosen, and shows progress.

    Raises:
        EgmfError: nothing is trained yet, a modality does not exist, or data or backbone are not those of the run.
        ShardError: the split is missing or damaged.
    """
    console = console and distributed.rank() == 0
    with best_adapter(run) as adapter:
        description = adapter.description
        saved = description["config"]
        saved = saved | {"evaluation": saved.get("evaluation", {}) | evaluation}
        config = places.put_into(config_from_saved(saved))
        data = RunData.from_json(description["data"])
        check_modalities(remove, data)
        check_trained(run, config, description)
        shards = open_split(config, split)
        capabilities, collator = read_backbone(config, data)
        settings = deepspeed_settings(config, 1)
        with partitioned_loading(config, settings):
            model = build_egmf(config, capabilities, data)
        load_trained(model, adapter.folder)
    kernels = model.describe_kernels(distributed.device())
    if console:
        print(kernels, flush=True)
    module = initialise_for_scoring(config, model, settings)
    samples = check_samples(shards, range(len(shards)), collator)
    scorer, scoring = choose_scorer(config.evaluation, module, capabilities, collator, samples)
    if console:
        print(scoring, flush=True)
    checkpoint = f"{run.adapters.name}/{adapter.name}"
    return Opened(run, split, config, data, shards, collator, module, scorer, checkpoint, description, console)


def check_trained(run: Run, config: Config, description: Mapping[str, Any]) -> None:
    """Refuse to evaluate a run's adapter with other data or another backbone than it was trained with.

    Args:
        run: for the message.
        config: the run's settings, with the places in which data and backbone lie now.
        description: the adapter's; version 1 names no data, which is then not compared.

    Raises:
        EgmfError: the first that differs.
        ShardError: a folder of shards cannot be opened.
    """
    now = backbone_identity(config.backbone)
    if "identity" not in description:
        part = {"world_size": 0, "data": "", "seed": 0, "backbone": description.get("backbone")}
        then = Identity.from_json(part, f"run {run}: its adapter")
        return check_identity(then, replace(then, backbone=now), f"run {run}", ("backbone",), "")
    then = Identity.from_json(description["identity"], f"run {run}: its adapter")
    # Only the index counts here: training shards may be gone by the time the test split is scored.
    tolerant = replace(config, data=replace(config.data, bad_samples="skip"))
    shards = open_split(tolerant, "train")
    made = specifications_of(shards.manifests, shards.folders)
    found = replace(then, data=shards.index_hash, backbone=now, features=made)
    return check_identity(then, found, f"run {run}", ("features", "data", "backbone"), "")


def check_modalities(remove: Sequence[str], run_data: RunData) -> None:
    """Refuse to take away what no sample has.

    Raises:
        EgmfError: names the modality, and those there are.
    """
    odd = [m for m in remove if m not in run_data.modalities]
    if odd:
        known = ", ".join(run_data.modalities)
        raise EgmfError(f"evaluate: modality {odd[0]!r} does not exist; remove any of {known}")
