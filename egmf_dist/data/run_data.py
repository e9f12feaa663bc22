"""What a run reads: its tasks, languages and feature streams, and the shards of each split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from egmf_dist.config import Config, DataConfig
from egmf_dist.data.collate import Collator
from egmf_dist.data.prompt_ids import Limits
from egmf_dist.data.standardise import Standardisation, standardisations
from egmf_dist.data.streams import Streams, inputs_of, modalities_of
from egmf_dist.errors import EgmfError
from egmf_dist.features import specifications_of
from egmf_shards import ShardSet, StorageOptions, Stream, StreamOptions, Task


@dataclass(frozen=True)
class RunData:
    """The part of a run's data that its weights depend on; saved beside them."""

    tasks: Mapping[str, Task]
    languages: Sequence[str]
    streams: Streams
    standardisations: Mapping[str, Standardisation]
    """By the key of a feature input; empty where features are taken as they are."""
    specifications: Mapping[str, Any] = field(default_factory=dict)
    """By the key of a feature input how its extractor makes features, where that is known; JSON-able."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """In their order: text, then the feature streams by name."""
        return modalities_of(self.streams)

    @classmethod
    def of(cls, shards: ShardSet, config: DataConfig) -> RunData:
        """From the training split.

        Raises:
            EgmfError: features are to be standardised and a folder has no statistics; or two folders have features of
                one stream and width that were made otherwise.
        """
        inputs = inputs_of(shards.streams)
        known = standardisations(shards.manifests, shards.folders, inputs) if config.standardise else {}
        made = specifications_of(shards.manifests, shards.folders)
        return cls(dict(shards.tasks), list(shards.languages), dict(shards.streams), known, made)

    def keeping(self, known: Mapping[str, Any] | None) -> tuple[RunData, str | None]:
        """The same data, standardised as the run's earlier steps were, and a sentence where the folders say otherwise.

        A manifest's statistics are no part of its data's identity: they may have been made anew, with more digits.

        Args:
            known: by feature input what :meth:`statistics` gives; None for a run without earlier steps.
        """
        if known is None or known == self.statistics():
            return self, None
        kept = {name: Standardisation.from_json(s) for name, s in known.items()}
        said = "the folders' feature statistics are not those the run was started with; it keeps its own"
        return replace(self, standardisations=kept), said

    def collator(self, tokenizer: PreTrainedTokenizerBase, config: Config, limits: Limits) -> Collator:
        """The collator that packs this run's samples.

        Raises:
            EgmfError: two legal answers tokenise alike, or a question does not fit.
        """
        known = self.standardisations
        return Collator(tokenizer, self.tasks, self.languages, self.streams, config, limits, known)

    def statistics(self) -> dict[str, Any]:
        """By feature input by what statistics features are standardised, JSON-able."""
        return {name: s.to_json() for name, s in self.standardisations.items()}

    def to_json(self) -> dict[str, Any]:
        """For the adapter's description."""
        return {
            "tasks": [task.to_json() for task in self.tasks.values()],
            "languages": list(self.languages),
            "streams": {name: list(widths) for name, widths in self.streams.items()},
            "standardisations": self.statistics(),
            "specifications": dict(self.specifications),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunData:
        """The inverse of :meth:`to_json`."""
        tasks = [Task.from_json(t, "adapter.json") for t in data["tasks"]]
        # An adapter of before has no statistics: it was trained on features as they are.
        known = {name: Standardisation.from_json(s) for name, s in data.get("standardisations", {}).items()}
        made = data.get("specifications", {})
        return cls({t.name: t for t in tasks}, data["languages"], data["streams"], known, made)


def open_split(config: Config, split: str) -> ShardSet:
    """The samples of one split over all of the run's shard folders.

    A missing shard is tolerated in the training split alone, by ``data.bad_samples``: scoring is always strict.

    Raises:
        EgmfError: no folder is configured, or a sample has no target.
        ShardError: a folder is missing, damaged, or has no such split.
    """
    if not config.data.shards:
        raise EgmfError("config: data.shards is empty; name at least one folder of shards, such as [data/demo]")
    data = config.data
    storage = StorageOptions(cache_dir=data.cache_dir, cache_bytes=int(data.cache_gib * 2**30), retries=data.retries)
    tolerate = split == "train" and data.bad_samples != "strict"
    shards = ShardSet.open(data.shards, split, storage=storage, tolerate=tolerate)
    check_targets(shards, split)
    return shards


def check_targets(shards: ShardSet, split: str) -> None:
    """Refuse samples without a target.

    Raises:
        EgmfError: names the first and its folder.
    """
    unlabelled = shards.without_target
    if len(unlabelled):
        first = int(unlabelled[0])
        folder = shards.folders[int(np.searchsorted(np.cumsum(shards.counts), first, side="right"))]
        raise EgmfError(
            f"data.shards: {len(unlabelled)} of the {len(shards)} samples of the split {split!r} have no target, the "
            f"first is {shards.key(first)!r} in {folder}; training and evaluation need one of every sample"
        )


def open_stream(config: Config, shards: ShardSet, rank: int, world: int, micro_batches: int = 0) -> Stream:
    """What one rank trains on.

    Args:
        config: the run's settings.
        shards: the training split.
        rank: of the process.
        world: how many there are.
        micro_batches: into how many its part of a global batch is cut; 0: as ``training.micro_batch`` says.

    Raises:
        ShardError: the settings do not fit the shards or the number of ranks.
    """
    data, training = config.data, config.training
    most = -(-training.global_batch // world)
    return Stream(
        shards,
        seed=training.seed,
        global_batch=training.global_batch,
        micro_batch=-(-most // micro_batches) if micro_batches else training.micro_batch,
        rank=rank,
        world=world,
        options=StreamOptions(
            weights=data.weights,
            block=data.block_samples if data.in_blocks else 0,
            window=data.window_blocks,
            dialogues=data.shuffle == "dialogue",
            mixed_epochs=data.mixed_epochs,
            by_length=data.group_by_length,
            tolerate=data.bad_samples != "strict",
        ),
    )
