"""What is planned: a configuration's model by its shapes and its batches by their lengths; no weight is read."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from egmf_dist.bench.backbones import SHAPES, SMALL, write_shape
from egmf_dist.bench.dialogues import write_dialogues
from egmf_dist.build import read_backbone
from egmf_dist.config import Config
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.data.collate import Collator
from egmf_dist.data.loader import Steps, micro_batches_of
from egmf_dist.data.run_data import RunData, open_split, open_stream
from egmf_dist.errors import EgmfError
from egmf_dist.model.backbone import Capabilities
from egmf_dist.objectives.numbers import reads_trees
from egmf_dist.preflight import check_batch, check_parts
from egmf_shards import ShardSet, Stream

GENERATED = 512
"""Utterances that are generated where a configuration's data is not here."""
LOOKED_AT = 2048
"""Samples that say how long one may be: half of them those with the most text, the others spread over the data."""
MOST_RANKS = 256
"""Of more ranks so many say who has most to do."""


class Share(NamedTuple):
    """A rank's part of a global batch."""

    rank: int
    load: float
    """What its rows hold, of what a rank's hold on the average."""


@dataclass(frozen=True)
class Subject:
    """A configuration with everything that its files say."""

    config: Config
    capabilities: Capabilities
    collator: Collator
    data: RunData
    shards: ShardSet
    said: tuple[str, ...]
    """What was put in the place of something that is not here, a line each."""

    def stream(self, rank: int, ranks: int) -> Stream:
        """What one rank reads.

        Raises:
            EgmfError, ShardError: the global batch does not fit so many ranks.
        """
        return next(self.streams(ranks, [rank]))

    def streams(self, ranks: int, wanted: Iterable[int]) -> Iterator[Stream]:
        """What each of the ``wanted`` ranks reads; see :meth:`stream`."""
        check_batch(self.config.training.global_batch, ranks)
        cuts = 0
        if tokens := self.config.training.micro_tokens:
            first = open_stream(self.config, self.shards, 0, ranks)  # every rank finds the same
            cuts = micro_batches_of(first, self.collator, tokens, reads_trees(self.config, self.capabilities))
        for rank in wanted:
            yield open_stream(self.config, self.shards, rank, ranks, cuts)

    def batches(self, stream: Stream, step: int) -> list[RaggedBatch]:
        """A step's micro-batches of one rank.

        Raises:
            EgmfError: a sample cannot be read.
        """
        made = self._steps(stream)[step * stream.global_batch]
        if made.error is not None:
            raise EgmfError(made.error)
        return made.batches

    def longest(self, stream: Stream) -> RaggedBatch:
        """A micro-batch of the stream's with the longest sample in the place of one of its own: once an epoch, a rank
        has to hold it.

        Raises:
            ShardError: a sample cannot be read.
        """
        count = len(self.shards)
        if count > LOOKED_AT:
            spread = np.linspace(0, count - 1, LOOKED_AT // 2).astype(np.int64)
            text = np.argsort(self.shards.column("text_chars"))[-LOOKED_AT // 2 :]
            indices = np.unique(np.concatenate([spread, text]))
        else:
            indices = np.arange(count)
        found = max(self.shards.read(indices, stream.tolerate).samples, key=self.collator.row_bytes)
        most = max(stream.read(0, self._steps(stream).size), key=lambda batch: len(batch.samples))
        return self.collator([found, *most.samples[1:]], [1.0] * len(most.samples))

    def heaviest(self, ranks: int, step: int) -> Share:
        """The rank whose part of a global batch holds the most: the others wait for it.

        Raises:
            EgmfError, ShardError: see :meth:`stream`; or a sample cannot be read.
        """
        loads = []
        for stream in self.streams(ranks, range(min(ranks, MOST_RANKS))):
            indices = [slot.index for part in stream.plan(step * stream.global_batch) for slot in part]
            loads.append(sum(map(self.collator.row_bytes, self.shards.read(indices, stream.tolerate).samples)))
        most = max(range(len(loads)), key=loads.__getitem__)
        return Share(most, loads[most] * len(loads) / sum(loads))

    def _steps(self, stream: Stream) -> Steps:
        return Steps(stream, self.collator, self.config.training.micro_tokens > 0)


@contextlib.contextmanager
def read_subject(config: Config, shape: str | None = None) -> Iterator[Subject]:
    """Read what a configuration names: the backbone's ``config.json`` and tokenizer, the shards' samples.

    Args:
        config: the settings.
        shape: a shape in place of ``backbone.path``, of :data:`egmf_dist.bench.backbones.SHAPES` or ``SMALL``.

    Raises:
        EgmfError: the backbone cannot be read, the shape has no such name, or a setting does not fit.
        ShardError: the data cannot be read.
    """
    check_parts(config)
    said = []
    with tempfile.TemporaryDirectory(prefix="egmf-plan-") as made:
        if shape is not None:
            known = {**SHAPES, **SMALL}
            if shape not in known:
                raise EgmfError(f"--shape is {shape!r}; it may be {', '.join(SHAPES)}")
            write_shape(Path(made, "backbone"), shape)
            config = replace(config, backbone=replace(config.backbone, path=str(Path(made, "backbone"))))
            said.append(f"backbone: the shape of {known[shape][0]}, a token a word")
        missing = [f for f in config.data.shards if "://" not in f and not Path(f, "manifest.json").is_file()]
        if missing or not config.data.shards:
            folder = Path(made, "data")
            write_dialogues(folder, GENERATED)
            config = replace(config, data=replace(config.data, shards=[str(folder)], weights=[]))
            what = f"{missing[0]} holds no manifest.json" if missing else "data.shards is empty"
            said.append(f"data: {what}; dialogues of MELD's lengths in its place")
        shards = open_split(config, "train")
        data = RunData.of(shards, config.data)
        capabilities, collator = read_backbone(config, data)
        sequences = capabilities.sequence_only or config.evaluation.scoring == "sequence"
        collator.packed = config.training.packing == "auto" and not sequences
        yield Subject(config, capabilities, collator, data, shards, tuple(said))
