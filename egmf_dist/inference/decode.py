"""Answers as a language model would give them unasked: greedy free generation, then parsed.

What published systems of this family do. It is here to be compared with: legal answers are scored otherwise
(:mod:`.scorer`), which gives every answer's probability and nothing to parse.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from sklearn.metrics import f1_score
from torch import nn
from transformers import GenerationConfig

from egmf_dist import distributed
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.data.collate import Collator
from egmf_dist.data.rows import Passes, one_a_row
from egmf_dist.inference.score import share_out, without
from egmf_dist.metrics.by_task import evaluate_task, score_classification
from egmf_dist.model.egmf import EGMF
from egmf_shards import CLASSIFICATION, Sample, ShardSet, Task

UNPARSED = "(no legal answer)"
Answered = tuple[str, Any, int | None]
"""A sample's task, its truth, and which legal answer it was given; None for none of them."""


class Decoded(NamedTuple):
    """What a sample's prompt was continued with."""

    text: str
    answer: int | None
    """Which legal answer that is; None for none of them."""


class GreedyDecoder:
    """The likeliest token, again and again, up to the end of sequence; the model is called with it as with a scorer.

    Args:
        collator: the run's.
    """

    def __init__(self, collator: Collator) -> None:
        self.collator = collator
        longest = max(len(ids) for answers in collator.answers.values() for ids in answers)
        self.most = longest + 1
        """New tokens: room for the longest legal answer and the end of sequence."""

    def prepare(self, samples: Sequence[Sample], weights: Sequence[float]) -> RaggedBatch:
        """Pack samples, a prompt a row with its padding on the left.

        Raises:
            EgmfError: a sample is not one of this run's.
        """
        batch = self.collator.unanswered(samples, weights)
        asked = [self.collator.asked(prompt, b, None, []) for b, prompt in enumerate(batch.prompts)]
        rows = one_a_row(asked, self.collator.limits.pseudo_tokens, self.collator.limits.eos)
        return batch._replace(answers=Passes([rows], torch.ones(len(samples), 1, dtype=torch.bool)))

    def __call__(self, model: EGMF, batch: RaggedBatch) -> torch.Tensor:
        """The new tokens' ids, int64 ``[B, at most self.most]``."""
        assert batch.answers is not None, "no decoder has prepared this batch"
        (rows,) = batch.answers.rows
        embedded = model.lay_out(rows, model.speak(model.fuse(batch)))
        eos = self.collator.limits.eos
        generator: Any = model.backbone
        with _greedy(generator):
            new: torch.Tensor = generator.generate(
                inputs_embeds=embedded,
                attention_mask=(rows.end_RC > 0).long(),
                max_new_tokens=self.most,
                do_sample=False,
                num_beams=1,
                eos_token_id=eos,
                pad_token_id=eos,
                # Under ZeRO-3 a rank that has finished goes on as long as another has not: weights are gathered
                # together.
                synced_gpus=distributed.world_size() > 1,
            )
        return new

    def parse(self, ids: Sequence[int], sample: Sample) -> Decoded:
        """A continuation as one of the sample's legal answers: the same words, but for case, spaces and a full stop."""
        eos = self.collator.limits.eos
        kept = list(ids[: list(ids).index(eos)]) if eos in ids else list(ids)
        text = str(self.collator.tokenizer.decode(kept, skip_special_tokens=True))
        legal = self.collator.tasks[sample.task].legal_answers(sample.language)
        words = {_plain(word): number for number, word in enumerate(legal)}
        return Decoded(text, words.get(_plain(text)))


@contextlib.contextmanager
def _greedy(generator: Any) -> Iterator[None]:
    """Set aside what a backbone brings along for chatting (penalties, suppressed tokens): the likeliest token is asked
    for, and each setting that nobody gives would be taken from there."""
    own, generator.generation_config = generator.generation_config, GenerationConfig()
    try:
        yield
    finally:
        generator.generation_config = own


def _plain(text: str) -> str:
    return text.strip().rstrip(".。").strip().casefold()


def decode_samples(
    model: nn.Module, shards: ShardSet, collator: Collator, batch_size: int, remove: Sequence[str] = ()
) -> dict[str, Any]:
    """Generate an answer to every sample of a split, shared out over the ranks; every rank must call this.

    Args:
        model: EGMF, or the module inside an engine, in evaluation mode.
        shards: the split.
        collator: the run's.
        batch_size: samples at once on one rank.
        remove: modalities to take away from every sample.

    Returns:
        On rank 0 ``seconds``, and by task ``n``, ``unparsed`` and ``metrics``; elsewhere an empty dictionary. A class
        that could not be parsed counts as wrong, a number as the middle of its range.
    """
    decoder = GreedyDecoder(collator)

    def answered(samples: Sequence[Sample], weights: Sequence[float]) -> list[Answered]:
        with distributed.failing_together():
            batch = decoder.prepare(samples, weights)
        with torch.no_grad():
            new = model(batch.to(distributed.device()), decoder).tolist()
        return [
            (s.task, s.label if s.label is not None else s.value, decoder.parse(ids, s).answer)
            for s, ids in zip(samples, new, strict=True)
        ]

    start = time.perf_counter()
    rows = share_out(shards, range(len(shards)), batch_size, lambda _, sample: without(sample, remove), answered)
    seconds = time.perf_counter() - start
    judged = distributed.on_rank_zero(lambda: _judged(rows, collator.tasks))
    return {} if distributed.rank() else {"seconds": round(seconds, 3), "tasks": judged}


def _judged(rows: Sequence[Answered], tasks: Mapping[str, Task]) -> dict[str, Any]:
    found = {}
    for name, task in tasks.items():
        own = [(target, answer) for asked, target, answer in rows if asked == name]
        if not own:
            continue
        if task.kind == CLASSIFICATION:
            labels = [*task.labels, UNPARSED]
            truth = [task.labels.index(target) for target, _ in own]
            said = [len(task.labels) if answer is None else answer for _, answer in own]
            metrics = score_classification(labels, truth, said)
            # What is no answer is wrong for its own class, and is no class of its own.
            classes = sorted({*truth, *said} - {len(task.labels)})
            metrics["macro_f1"] = float(f1_score(truth, said, labels=classes, average="macro", zero_division=0.0))
        else:
            middle = (task.low + task.high) / 2
            values = [middle if answer is None else task.values[answer] for _, answer in own]
            metrics = evaluate_task(task, [float(target) for target, _ in own], values)["metrics"]
            metrics.pop("nll")
        found[name] = {"n": len(own), "unparsed": sum(a is None for _, a in own), "metrics": metrics}
    return found
