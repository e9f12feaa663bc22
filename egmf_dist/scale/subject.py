"""What is planned: a configuration's model by its shapes and its batches by their lengths; no weight is read."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from egmf_dist.bench.backbones import SHAPES, write_shape
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
        check_batch(self.config.training.global_batch, ranks)
        stream, tokens = open_stream(self.config, self.shards, rank, ranks), self.config.training.micro_tokens
        if not tokens:
            return stream
        cuts = micro_batches_of(stream, self.collator, tokens, reads_trees(self.config, self.capabilities))
        return open_stream(self.config, self.shards, rank, ranks, cuts)

    def batches(self, stream: Stream, step: int) -> list[RaggedBatch]:
        """A step's micro-batches of one rank.

        Raises:
            EgmfError: a sample cannot be read.
        """
        made = Steps(stream, self.collator, self.config.training.micro_tokens > 0)[step * stream.global_batch]
        if made.error is not None:
            raise EgmfError(made.error)
        return made.batches


@contextlib.contextmanager
def read_subject(config: Config, shape: str | None = None) -> Iterator[Subject]:
    """Read what a configuration names: the backbone's ``config.json`` and tokenizer, the shards' samples.

    Args:
        config: the settings.
        shape: a published model's shape in place of ``backbone.path``, of :data:`egmf_dist.bench.backbones.SHAPES`.

    Raises:
        EgmfError: the backbone cannot be read, the shape has no such name, or a setting does not fit.
        ShardError: the data cannot be read.
    """
    check_parts(config)
    said = []
    with tempfile.TemporaryDirectory(prefix="egmf-plan-") as made:
        if shape is not None:
            if shape not in SHAPES:
                raise EgmfError(f"--shape is {shape!r}; it may be {', '.join(SHAPES)}")
            write_shape(Path(made, "backbone"), shape)
            config = replace(config, backbone=replace(config.backbone, path=str(Path(made, "backbone"))))
            said.append(f"backbone: the shape of {SHAPES[shape][0]}, a token a word")
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
