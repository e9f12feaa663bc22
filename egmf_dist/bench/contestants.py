"""Who trains in ``egmf bench step``: this project's loop in three layouts of rows, and others on the same samples.

Each is a context manager that gives a :data:`Pass`: what trains on so many samples. Everything is made before, so that
a pass is training alone, reading and laying out included.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from egmf_dist import distributed
from egmf_dist.bench.predecessor import Dense, Fusion, Padded, Ragged, dense
from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.config import Config
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.data.collate import Collator
from egmf_dist.data.loader import load
from egmf_dist.data.run_data import RunData, open_split, open_stream
from egmf_dist.engine import deepspeed_settings, initialise
from egmf_dist.model.backbone import Capabilities, load_backbone
from egmf_dist.model.precision import dtype_of
from egmf_dist.objectives.base import make_objective
from egmf_dist.run.folder import Run, open_run
from egmf_dist.training.loop import train_step
from egmf_dist.training.schedule import parameter_groups
from egmf_dist.training.trainer import Start, Trainer, started
from egmf_shards import Sample

Pass = Callable[[int], None]
"""Trains on so many samples, a multiple of its batch."""
Making = contextlib.AbstractContextManager[Pass]
DENSE_BATCH = 8
"""Samples at once where logits of every position are made: the predecessor's own batch, and what fits in memory."""
ENDLESS = 10**6
"""Steps of a training that is stopped from outside."""


@contextlib.contextmanager
def ours(config: Config, folder: Path) -> Iterator[tuple[Pass, Trainer]]:
    """The whole of ``egmf train``'s loop on one rank: stream, collator, DeepSpeed, records."""
    run = Run(folder)
    open_run(config, run, "never")
    with started(config, run, Start()) as trainer:

        def once(samples: int) -> None:
            for _ in range(samples // config.training.global_batch):
                step, facts = trainer.next_step()
                trainer.count(step, facts, train_step(trainer.engine, step.batches, facts.valid, trainer.device))
            trainer.supervision.read()

        yield once, trainer


class Read:
    """The training split in memory, and what lays it out as ``config`` says."""

    def __init__(self, config: Config) -> None:
        self.config, self.device = config, distributed.device()
        self.shards = open_split(config, "train")
        self.data = RunData.of(self.shards, config.data)
        self.capabilities: Capabilities
        self.collator: Collator
        self.capabilities, self.collator = read_backbone(config, self.data)
        self.collator.packed = config.training.packing == "auto" and not self.capabilities.sequence_only
        self.samples: list[Sample] = self.shards.read(range(len(self.shards))).samples
        self._random = random.Random(config.training.seed)

    def shuffled(self, count: int) -> list[Sample]:
        """``count`` samples in random order."""
        return self._random.sample(self.samples, count)

    def spread(self, count: int) -> list[Sample]:
        """``count`` samples in random order whose prompts are as long as those of all: every so many by length."""
        ordered = sorted(self.samples, key=self.collator.prompt_bytes)
        step = len(ordered) / count
        chosen = [ordered[int((i + 0.5) * step)] for i in range(count)]
        return self._random.sample(chosen, count)

    def batch(self, samples: Sequence[Sample]) -> RaggedBatch:
        """One batch of them, on the CPU."""
        return self.collator(samples, [1.0] * len(samples))

    def answers(self, batch: RaggedBatch, samples: Sequence[Sample]) -> list[list[int]]:
        """Each one's right answer as ids."""
        numbers = batch.answer_B.tolist()
        return [self.collator.answers[s.task, s.language][i] for s, i in zip(samples, numbers, strict=True)]

    def prompt_tokens(self) -> float:
        """Tokens of a sample's sequence, mean: start, pseudo tokens, prompt, answer; whatever shares its row."""
        batch = self.batch(self.samples)
        asked = sum(len(ids) for ids in self.answers(batch, self.samples)) + sum(len(p.ids) for p in batch.prompts)
        limits = self.collator.limits
        return asked / len(self.samples) + len(limits.start) + len(limits.after) + limits.pseudo_tokens


@contextlib.contextmanager
def bare(config: Config) -> Iterator[Pass]:
    """A plain PyTorch loop over the same modules and batches: no DeepSpeed, no stream, no records."""
    read, training = Read(config), config.training
    model = build_egmf(config, read.capabilities, read.data).to(read.device).train()
    groups = parameter_groups(model, training)
    parameters = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(groups)

    def once(samples: int) -> None:
        order = read.shuffled(samples)
        for first in range(0, samples, training.global_batch):
            for begin in range(first, first + training.global_batch, training.micro_batch):
                batch = read.batch(order[begin : begin + training.micro_batch]).to(read.device)
                (model(batch).total / training.global_batch).backward()
            nn.utils.clip_grad_norm_(parameters, training.gradient_clipping)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    yield once


@contextlib.contextmanager
def transformers_trainer(config: Config, folder: Path, most: int) -> Iterator[Pass]:
    """transformers' ``Trainer`` with PEFT's LoRA on the same prompts, tokenized before; without a fusion. A pass takes
    the first of ``most`` samples."""
    import transformers

    read = Read(config)
    model = load_backbone(config.backbone, dtype_of(config.training.precision))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype_of(config.training.precision))

    def rows(samples: Sequence[Sample]) -> list[dict[str, list[int]]]:
        batch, limits = read.batch(samples), read.collator.limits
        found = []
        for prompt, answer in zip(batch.prompts, read.answers(batch, samples), strict=True):
            before, said = [*limits.start, *prompt.ids, *limits.after], [*answer, limits.eos]
            ids = before + said
            found.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(before) + said})
        return found

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=DENSE_BATCH,
        num_train_epochs=1,
        learning_rate=config.training.learning_rate,
        max_grad_norm=config.training.gradient_clipping,
        bf16=config.training.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    together = transformers.DataCollatorForSeq2Seq(read.collator.tokenizer, padding=True)

    whole = rows(read.spread(most))

    def once(samples: int) -> None:
        dataset: Any = whole[:samples]
        transformers.Trainer(model, arguments, train_dataset=dataset, data_collator=together).train()

    yield once


@contextlib.contextmanager
def predecessor_padded(config: Config) -> Iterator[Pass]:
    """The predecessor as it trains: dense batches, a frozen LLM, logits of every position."""
    read = Read(config)
    backbone, fusion = _predecessor(config, read)
    model = Padded(backbone, fusion).to(read.device).train()
    optimizer = torch.optim.AdamW(fusion.parameters(), config.training.learning_rate)
    limits = read.collator.limits

    def made(samples: Sequence[Sample]) -> Dense:
        batch = read.batch(samples)
        whole = dense(batch, read.answers(batch, samples), limits)
        moved: dict[str, Any] = {
            name: tuple(t.to(read.device) for t in part) if isinstance(part, tuple) else part.to(read.device)
            for name, part in whole._asdict().items()
        }
        return Dense(**moved)

    def once(samples: int) -> None:
        order = read.spread(samples)
        for first in range(0, samples, DENSE_BATCH):
            model(made(order[first : first + DENSE_BATCH])).backward()
            nn.utils.clip_grad_norm_(fusion.parameters(), config.training.gradient_clipping)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    yield once


@contextlib.contextmanager
def predecessor_ragged(config: Config) -> Iterator[Pass]:
    """The predecessor's modules under this project's loop: packed features and rows, logits where asked for."""
    config = replace(config, model=replace(config.model, auxiliary_weight=0.0))
    read, training = Read(config), config.training
    backbone, fusion = _predecessor(config, read)
    model = Ragged(backbone, fusion, read.capabilities, make_objective(config, read.data.tasks))
    stream = open_stream(config, read.shards, 0, 1)
    settings = deepspeed_settings(config, stream.micro_batches)
    engine = initialise(model, torch.optim.AdamW(fusion.parameters(), training.learning_rate), settings)
    steps = load(stream, read.collator, range(0, ENDLESS * training.global_batch, training.global_batch), config.data)

    def once(samples: int) -> None:
        for _ in range(samples // training.global_batch):
            train_step(engine, next(steps).batches, float(training.global_batch), read.device)

    yield once
    engine.destroy()


def _predecessor(config: Config, read: Read) -> tuple[nn.Module, Fusion]:
    """A frozen LLM and the fusion before it."""
    backbone = load_backbone(replace(config.backbone, tuning="frozen"), dtype_of(config.training.precision))
    dims = [read.data.streams[name][0] for name in ("audio", "vision")]
    torch.manual_seed(config.training.seed)
    return backbone, Fusion(read.capabilities.width, dims, config.model.pseudo_tokens).to(
        dtype_of(config.training.precision)
    )
