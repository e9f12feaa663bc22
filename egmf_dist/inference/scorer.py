"""The two ways of scoring every legal answer, and the choice between them.

* :class:`TreeScorer`: all answers in one pass over their prefix tree, under a 4-D mask. For backbones that honour one.
* :class:`SequenceScorer`: every answer as a sequence of its own, as in training. Right for any model; slower.

``auto`` takes the tree where the backbone's configuration says it can, and only after real samples were scored both
ways: they must agree to :data:`AGREEMENT`. In bf16 rounding alone moves a score further, so the measure is the rounding
seen when the same samples are scored behind other padding, or one part in 256 of the largest score. Padding also shows
a model that ignores its padding mask; such a model is refused before its first step, because a sample's loss would
depend on its batch. Later, in bf16, training may have made it so sharp that rounding alone moves a score as far (1.5
nats were seen with Gemma 3 270M): its run was checked before, so it is scored, and the line says how far.

Memory is bounded whatever the number of answers (a task has at most 10,000): at most :data:`LOGITS` logits and
:data:`MASK` numbers of a mask at once. How many forwards that takes depends on the run's tasks and settings and never
on a sample, so every rank makes as many; only those of the sequence way depend on the batch, so the ranks agree on
their number.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from egmf_dist import distributed
from egmf_dist.config import EvaluationConfig
from egmf_dist.data.answers import AnswerTree
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.data.collate import Collator
from egmf_dist.data.rows import COLUMNS, Passes, Rows
from egmf_dist.errors import EgmfError
from egmf_dist.model.backbone import Capabilities
from egmf_dist.model.egmf import EGMF
from egmf_dist.model.sequence import log_probabilities
from egmf_shards import Sample, ShardSet
from egmf_shards.messages import unbroken

LOGITS = 2**27
"""The most logits of one forward: 512 MiB in fp32."""
MASK = 2**28
"""The most numbers of one 4-D mask: 1 GiB in fp32."""
NODES = 512
"""The most nodes of one tree; a task with more answers takes several passes."""
AGREEMENT = 1e-4
"""Nats by which the two ways may differ on one answer in fp32."""
_NOISE = 4.0
"""In bf16 they may differ by this many times the rounding seen."""
_PADDING = (1, 3, 8)
"""Columns of padding that scores are compared behind."""
_IGNORES_PADDING = {"float32": 1e-4, "tf32": 2**-8, "bfloat16": 2**-5}
"""A score that padding moves further than this part of the largest is no rounding."""
_CANDIDATES = 64
"""Samples whose prompts are looked at to find those that reach furthest."""
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)


class Scores(NamedTuple):
    """What is known of a batch after scoring it."""

    log_p_BC: torch.Tensor
    """float32 log-probability of every legal answer; minus infinity where a task has fewer."""
    diagnostics: dict[str, torch.Tensor]
    """The fusion's (:class:`egmf_dist.model.fusion.base.Fused`)."""


class Scorer(Protocol):
    """A way of scoring; the model is called with it as it is with an objective."""

    way: str
    """``tree`` or ``sequence``."""
    collator: Collator

    def prepare(self, samples: Sequence[Sample], weights: Sequence[float]) -> RaggedBatch:
        """Pack samples together with all their legal answers.

        Raises:
            EgmfError: a sample is not one of this run's.
        """
        ...

    def __call__(self, model: EGMF, batch: RaggedBatch) -> Scores:
        """Score a prepared batch."""
        ...


def score(
    scorer: Scorer,
    model: nn.Module,
    samples: Sequence[Sample],
    weights: Sequence[float],
    device: torch.device | None = None,
) -> tuple[Scores, list[int]]:
    """Log-probabilities of every legal answer of every sample; every rank must call this together.

    Args:
        scorer: the way.
        model: EGMF in evaluation mode.
        samples: B samples.
        weights: of each; fillers have 0.
        device: of the model; None: this rank's.

    Returns:
        The scores, and per sample how many tokens its prompt lost to the budget.

    Raises:
        EgmfError: on every rank, a sample is not one of this run's.
    """
    with distributed.failing_together():
        batch = scorer.prepare(samples, weights)
    if scorer.way == "sequence":
        # Every rank makes as many forwards as the one with the most rows; what is read once more adds up nowhere.
        assert batch.answers is not None
        rows = batch.answers.rows
        most = max(distributed.share_objects([len(rows)]))
        batch = batch._replace(answers=batch.answers._replace(rows=[*rows, *[_unasked(rows[0])] * (most - len(rows))]))
    batch = batch.to(device or distributed.device())
    with torch.no_grad():
        scores: Scores = model(batch, scorer)
    return scores, batch.cut


def _unasked(rows: Rows) -> Rows:
    """The same rows, about which nothing is asked."""
    nothing = rows.at_E[:0]
    return rows._replace(at_E=nothing, token_E=nothing, owner_E=nothing)


class TreeScorer:
    """All answers in one pass over their prefix tree, several samples in a row."""

    way = "tree"

    def __init__(self, collator: Collator, capabilities: Capabilities, batch_size: int) -> None:
        self.collator = collator
        vocabulary = capabilities.vocabulary
        most_nodes = max(1, min(NODES, LOGITS // vocabulary - 1))
        self.trees = {key: AnswerTree.build_passes(ids, most_nodes) for key, ids in collator.answers.items()}
        self.passes = max(len(trees) for trees in self.trees.values())
        nodes = max(len(tree.tokens) for trees in self.trees.values() for tree in trees)
        limits = collator.limits
        around = len(limits.start) + len(limits.after)
        columns = around + limits.pseudo_tokens + collator.prompt_limit + nodes
        masks = max(1, len(capabilities.kinds))
        # A row may hold several samples, but is never much longer than COLUMNS or the longest sample.
        mask = masks * columns * max(columns, COLUMNS)
        self.samples_at_once = max(1, min(batch_size, LOGITS // (vocabulary * (nodes + 1)), MASK // mask))

    def prepare(self, samples: Sequence[Sample], weights: Sequence[float]) -> RaggedBatch:
        """See :class:`Scorer`."""
        batch = self.collator.unanswered(samples, weights)
        legal_BC = _legal(self.collator, samples)
        trees, answers = [self.trees[s.task, s.language] for s in samples], legal_BC.shape[1]
        rows, own = [], copy.copy(self.collator)
        own.packed = True
        for number in range(self.passes):
            for first in range(0, len(samples), self.samples_at_once):
                asked = []
                for b in range(first, min(first + self.samples_at_once, len(samples))):
                    tree = trees[b][number] if number < len(trees[b]) else None
                    done = b * answers + sum(len(t.paths) for t in trees[b][:number])
                    owners = range(done, done + (0 if tree is None else len(tree.paths)))
                    asked.append(own.asked(batch.prompts[b], b, tree, owners))
                rows.append(own.rows(asked))
        return batch._replace(answers=Passes(rows, legal_BC))

    def __call__(self, model: EGMF, batch: RaggedBatch) -> Scores:
        """See :class:`Scorer`."""
        return _read(model, batch)


class SequenceScorer:
    """Every answer as a sequence of its own.

    Args:
        collator: the run's.
        capabilities: the backbone's.
        batch_size: the most sequences of one forward.
        padding: columns of padding before everything; for checks.
    """

    way = "sequence"

    def __init__(self, collator: Collator, capabilities: Capabilities, batch_size: int, padding: int = 0) -> None:
        self.collator, self.padding = collator, padding
        longest = 1 + max(len(ids) for answers in collator.answers.values() for ids in answers)
        self.rows_at_once = max(1, min(batch_size, LOGITS // (capabilities.vocabulary * longest)))

    def prepare(self, samples: Sequence[Sample], weights: Sequence[float]) -> RaggedBatch:
        """See :class:`Scorer`."""
        batch = self.collator.unanswered(samples, weights)
        legal_BC = _legal(self.collator, samples)
        own = copy.copy(self.collator)
        own.packed = False
        asked = [
            own.asked(batch.prompts[b], b, tree, [b * legal_BC.shape[1] + c])
            for b, sample in enumerate(samples)
            for c, tree in enumerate(own.alone[sample.task, sample.language])
        ]
        parts = [asked[first : first + self.rows_at_once] for first in range(0, len(asked), self.rows_at_once)]
        return batch._replace(answers=Passes([own.rows(part, self.padding) for part in parts], legal_BC))

    def __call__(self, model: EGMF, batch: RaggedBatch) -> Scores:
        """See :class:`Scorer`."""
        return _read(model, batch)


def _legal(collator: Collator, samples: Sequence[Sample]) -> torch.Tensor:
    """bool ``[B, C]``: which answers each sample has, of as many as the task with the most has."""
    most = max(len(ids) for ids in collator.answers.values())
    counts = torch.tensor([len(collator.answers[s.task, s.language]) for s in samples])
    return torch.arange(most) < counts[:, None]


def _read(model: EGMF, batch: RaggedBatch) -> Scores:
    """Every answer's log-probability, one forward of the LLM after another."""
    assert batch.answers is not None, "no scorer has prepared this batch"
    fused = model.fuse(batch)
    pseudo_BKH = model.speak(fused)
    legal_BC = batch.answers.legal_BC
    log_p = torch.zeros(legal_BC.numel(), device=legal_BC.device)
    for rows in batch.answers.rows:
        log_p.index_add_(0, rows.owner_E, log_probabilities(model.read(rows, pseudo_BKH), rows))
    log_p_BC = log_p.view_as(legal_BC).masked_fill(~legal_BC, float("-inf"))
    return Scores(log_p_BC, {} if fused is None else fused.diagnostics)


def check_samples(shards: ShardSet, chosen: Sequence[int], collator: Collator) -> list[Sample]:
    """What the ways of scoring are compared on: of each task and language the sample with the longest prompt.

    Among some samples spread over the chosen ones and that with the longest utterance. A window, or a table of
    positions, shows only where a prompt reaches past it.

    Raises:
        EgmfError: on every rank, one of them cannot read a sample.
    """
    numbers = np.asarray(chosen)
    spread = numbers[:: max(1, len(numbers) // _CANDIDATES)]
    longest = numbers[shards.column("text_chars")[numbers].argmax()]
    found: dict[tuple[str, str], tuple[int, Sample]] = {}
    with distributed.failing_together():
        for sample in shards.read([*spread.tolist(), int(longest)]).samples:
            tokens = len(collator.unanswered([sample], [1.0]).prompts[0].ids)
            if tokens > found.get((sample.task, sample.language), (0, sample))[0]:
                found[sample.task, sample.language] = tokens, sample
    return [sample for _, sample in found.values()]


class Choice(NamedTuple):
    """The scorer of a run."""

    scorer: Scorer
    line: str
    """What was chosen and why."""


def choose_scorer(
    config: EvaluationConfig,
    model: nn.Module,
    capabilities: Capabilities,
    collator: Collator,
    samples: Sequence[Sample],
    trained: bool = True,
    device: torch.device | None = None,
) -> Choice:
    """Choose by capability, check on real samples; every rank must call this together, and all choose alike.

    Args:
        config: ``scoring`` and ``batch_size``.
        model: EGMF in evaluation mode.
        capabilities: its backbone's.
        collator: the run's.
        samples: see :func:`check_samples`; the same on every rank.
        trained: the model has taken a step.
        device: of the model; None: this rank's.

    Raises:
        EgmfError: the backbone cannot be run, its scores are not finite, it ignores its padding, or the tree was asked
            for and it cannot.
    """
    name, batch_size = capabilities.architecture, config.batch_size
    sequence = SequenceScorer(collator, capabilities, batch_size)

    def scored(way: Scorer) -> torch.Tensor:
        return score(way, model, samples, [1.0] * len(samples), device)[0].log_p_BC

    try:
        plain = scored(sequence)
    except torch.OutOfMemoryError:
        raise
    except _FAILURES as error:
        raise EgmfError(f"backbone: {name} cannot be run on embeddings: {_short(error)}") from error
    if not _finite(plain):
        cause = (
            "the weights have diverged, or overflow in training.precision; train again with a lower "
            "training.learning_rate, or in another precision"
        )
        if not trained:
            cause = (
                f"nothing is trained yet, so the weights of the {name} backbone are not finite or overflow in "
                "training.precision; take sound weights, or another precision"
            )
        raise EgmfError(f"the scores of a sample are not finite: {cause}")
    largest = _agreed(float(torch.where(torch.isfinite(plain), plain, 0.0).abs().max()))
    noise = _agreed(
        max(_distance(plain, scored(SequenceScorer(collator, capabilities, batch_size, n))) for n in _PADDING)
    )
    arithmetic = _arithmetic(next(model.parameters()))
    moved = noise > _IGNORES_PADDING.get(arithmetic, 1.0) * max(largest, 1.0)
    if moved and (not trained or arithmetic == "float32"):
        raise EgmfError(
            f"backbone: a sample's score moves by {noise:.2g} with padding before it: {name} "
            "ignores its padding mask, so results would depend on the batch; take another backbone"
        )
    rounded = f"; rounding moves a score by up to {noise:.2g}: {arithmetic}" if moved else ""
    if config.scoring == "sequence":
        return Choice(sequence, f"scoring: every answer as a sequence (evaluation.scoring){rounded}")
    reason, gap = capabilities.sequence_only or _attention_fault(model), 0.0
    allowed = AGREEMENT if arithmetic == "float32" else max(AGREEMENT, _NOISE * noise, 2**-8 * largest)
    if not reason:
        tree = TreeScorer(collator, capabilities, batch_size)
        try:
            gap = _agreed(_distance(plain, scored(tree)))
        except torch.OutOfMemoryError:
            raise  # perhaps this rank's alone; the others would wait
        except _FAILURES as error:
            # Model code that stumbles over a mask of four dimensions does so on every rank alike.
            reason = f"the tree's mask made it fail: {_short(error)}"
        if gap > allowed:
            reason = f"the tree's scores differ by {gap:.2g}, more than {allowed:.0e}"
    if not reason:
        return Choice(tree, f"scoring: all answers in one pass over their tree (both ways agree to {gap:.0e}){rounded}")
    if config.scoring == "tree":
        raise EgmfError(
            f"config: evaluation.scoring is 'tree', which {name} cannot ({reason}); 'auto' takes the sequence way"
        )
    return Choice(sequence, f"scoring: every answer as a sequence ({name}: {reason}){rounded}")


def _arithmetic(weight: torch.Tensor) -> str:
    """What a model's products are rounded to: its weights' dtype, or TF32 where a GPU may take that for float32."""
    named = str(weight.dtype).removeprefix("torch.")
    coarse = weight.is_cuda and named == "float32" and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if coarse else named


def _agreed(number: float) -> float:
    """The largest of all ranks' numbers."""
    return max(distributed.share_objects([number]))


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {unbroken(str(error))[:120]}"


def _finite(log_p_BC: torch.Tensor) -> bool:
    """Whether every legal answer has a finite score, on every rank; what is not legal is minus infinity."""
    return not _agreed(float(torch.isnan(log_p_BC).any() or torch.isposinf(log_p_BC).any()))


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The most that two scorings of the legal answers differ; infinite where one is not a number."""
    legal = torch.isfinite(a) & torch.isfinite(b)
    if not torch.equal(torch.isneginf(a), torch.isneginf(b)) or torch.isnan(a).any() or torch.isnan(b).any():
        return float("inf")
    return float((a - b)[legal].abs().max())


def _attention_fault(model: nn.Module) -> str:
    """Why this model's attention takes no 4-D mask; empty where it does."""
    backbone = getattr(model, "backbone", None)
    implementation = getattr(getattr(backbone, "config", None), "_attn_implementation", "sdpa")
    return "" if implementation in ("sdpa", "eager", "flex_attention") else f"attention implementation {implementation}"
