"""The two ways of scoring every legal answer, and the choice between them.

* :class:`TreeScorer`: all answers in one pass over their prefix tree, under a 4-D mask. For backbones that honour one.
* :class:`SequenceScorer`: every answer as a sequence of its own, as in training. Right for any model; slower.

``auto`` takes the tree where the backbone's configuration says it can, and only after a real sample was scored both
ways: they must agree to :data:`AGREEMENT`. In bf16 rounding alone moves a score further, so the measure is the rounding
seen on the same sample, which is scored once more behind other padding. That second scoring also shows a model that
ignores its padding mask; such a model is refused, because a sample's loss would depend on its batch.

Memory is bounded whatever the number of answers (a task has at most 10,000): at most :data:`LOGITS` logits and
:data:`MASK` numbers of a mask at once. How many passes that takes depends on the run's tasks and settings and never on
a sample, so every rank makes as many; only the rows of the sequence way depend on the batch, so the ranks agree on
their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from egmf_dist import distributed
from egmf_dist.config import EvaluationConfig
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.data.collate import Collator, pad_left
from egmf_dist.errors import EgmfError
from egmf_dist.model.backbone import Capabilities
from egmf_dist.model.egmf import Scores
from egmf_dist.tasks.answers import AnswerRows, AnswerTree, TreeBatch, TreePasses
from egmf_shards import Sample, ShardSet

LOGITS = 2**28
"""The most logits of one forward: 1 GiB in fp32."""
MASK = 2**28
"""The most numbers of one 4-D mask: 1 GiB in fp32."""
NODES = 512
"""The most nodes of one tree; a task with more answers takes several passes."""
AGREEMENT = 1e-4
"""Nats by which the two ways may differ on one answer in fp32."""
_NOISE = 4.0
"""In bf16 they may differ by this many times the rounding seen."""
_IGNORES_PADDING = {torch.float32: 1e-3, torch.bfloat16: 0.5}
"""A score that padding moves further than this is no rounding."""


class Scorer(Protocol):
    """A way of scoring."""

    way: str
    """``tree`` or ``sequence``."""
    collator: Collator

    def prepare(self, samples: Sequence[Sample], weights: Sequence[float]) -> RaggedBatch:
        """Pack samples together with all their legal answers.

        Raises:
            EgmfError: a sample is not one of this run's.
        """
        ...


def score(
    scorer: Scorer, model: nn.Module, samples: Sequence[Sample], weights: Sequence[float]
) -> tuple[Scores, list[int]]:
    """Log-probabilities of every legal answer of every sample; every rank must call this together.

    Args:
        scorer: the way.
        model: EGMF in evaluation mode.
        samples: B samples.
        weights: of each; fillers have 0.

    Returns:
        The scores, and per sample how many tokens its prompt lost to the budget.

    Raises:
        EgmfError: on every rank, a sample is not one of this run's.
    """
    with distributed.failing_together():
        batch = scorer.prepare(samples, weights)
    if isinstance(batch.answers, AnswerRows):
        # Every rank makes as many forwards as the one with the most rows.
        most = max(distributed.share_objects([len(batch.answers.sample_R)]))
        batch = batch._replace(answers=batch.answers.filled_to(most))
    batch = batch.to(distributed.device())
    with torch.no_grad():
        scores: Scores = model(batch, mode="score")
    return scores, batch.cut


class TreeScorer:
    """All answers in one pass over their prefix tree."""

    way = "tree"

    def __init__(self, collator: Collator, capabilities: Capabilities, batch_size: int, pseudo_tokens: int) -> None:
        self.collator = collator
        vocabulary = capabilities.vocabulary
        most_nodes = max(1, min(NODES, LOGITS // vocabulary - 1))
        self.trees = {key: AnswerTree.build_passes(ids, most_nodes) for key, ids in collator.answers.items()}
        self.passes = max(len(trees) for trees in self.trees.values())
        self.answers = max(len(ids) for ids in collator.answers.values())
        nodes = max(len(tree.tokens) for trees in self.trees.values() for tree in trees)
        columns = len(capabilities.start) + pseudo_tokens + collator.prompt_limit + nodes
        masks = max(1, len(capabilities.kinds))
        self.samples_at_once = max(
            1, min(batch_size, LOGITS // (vocabulary * (nodes + 1)), MASK // (masks * columns * columns))
        )

    def prepare(self, samples: Sequence[Sample], weights: Sequence[float]) -> RaggedBatch:
        """See :class:`Scorer`."""
        batch = self.collator(samples, weights)
        trees = [self.trees[s.task, s.language] for s in samples]
        passes = []
        for number in range(self.passes):
            own = [known[number] if number < len(known) else None for known in trees]
            passes.append(TreeBatch.stack(own, [sum(len(t.paths) for t in known[:number]) for known in trees]))
        return batch._replace(answers=TreePasses(passes, self.answers, self.samples_at_once))


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
        batch = self.collator(samples, weights)
        answers = [self.collator.answers[s.task, s.language] for s in samples]
        pairs = [(b, c) for b, own in enumerate(answers) for c in range(len(own))]
        eos = self.collator.limits.eos
        target_RA, mask_RA = pad_left([[*answers[b][c], eos] for b, c in pairs])
        if self.padding:
            nothing = torch.zeros(len(samples), self.padding, dtype=torch.long)
            batch = batch._replace(
                prompt_BL=torch.cat([nothing, batch.prompt_BL], 1),
                prompt_mask_BL=torch.cat([nothing.bool(), batch.prompt_mask_BL], 1),
            )
        rows = AnswerRows(
            sample_R=torch.tensor([b for b, _ in pairs]),
            answer_R=torch.tensor([c for _, c in pairs]),
            target_RA=target_RA,
            target_mask_RA=mask_RA,
            answers=max(len(ids) for ids in self.collator.answers.values()),
            rows_at_once=self.rows_at_once,
        )
        return batch._replace(answers=rows)


def longest_sample(shards: ShardSet, chosen: Sequence[int]) -> Sample:
    """Of the chosen samples the one with the longest utterance: the likeliest to reach past a window."""
    numbers = np.asarray(chosen)
    return shards[int(numbers[shards.column("text_chars")[numbers].argmax()])]


class Choice(NamedTuple):
    """The scorer of a run."""

    scorer: Scorer
    line: str
    """What was chosen and why."""


def choose_scorer(
    config: EvaluationConfig, model: nn.Module, capabilities: Capabilities, collator: Collator, sample: Sample
) -> Choice:
    """Choose by capability, check on a real sample; every rank must call this together.

    Args:
        config: ``scoring`` and ``batch_size``.
        model: EGMF in evaluation mode.
        capabilities: its backbone's.
        collator: the run's.
        sample: the sample, the same on every rank; the longer its prompt, the more a window shows.

    Raises:
        EgmfError: the tree was asked for and the backbone cannot, or the backbone ignores its padding.
    """
    batch_size, pseudo_tokens = config.batch_size, _pseudo_tokens(model)
    sequence = SequenceScorer(collator, capabilities, batch_size)

    def scored(way: Scorer) -> torch.Tensor:
        return score(way, model, [sample], [1.0])[0].log_p_BC

    plain = scored(sequence)
    noise = _distance(plain, scored(SequenceScorer(collator, capabilities, batch_size, padding=3)))
    dtype = next(model.parameters()).dtype
    if noise > _IGNORES_PADDING.get(dtype, 1.0):
        raise EgmfError(
            f"backbone: a sample's score moves by {noise:.2g} with padding before it: {capabilities.architecture} "
            "ignores its padding mask, so results would depend on the batch; take another backbone"
        )
    reason = capabilities.sequence_only or _attention_fault(model)
    if config.scoring == "tree" and reason:
        raise EgmfError(
            f"config: evaluation.scoring is 'tree', which {capabilities.architecture} cannot ({reason}); "
            "'auto' takes the sequence way"
        )
    if config.scoring == "sequence":
        return Choice(sequence, "scoring: every answer as a sequence (evaluation.scoring)")
    if reason:
        return Choice(sequence, f"scoring: every answer as a sequence ({capabilities.architecture}: {reason})")
    tree = TreeScorer(collator, capabilities, batch_size, pseudo_tokens)
    allowed = max(AGREEMENT, _NOISE * noise if dtype != torch.float32 else 0.0)
    try:
        gap = _distance(plain, scored(tree))
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        # Model code that stumbles over a mask of four dimensions does so on every rank alike.
        if config.scoring == "tree":
            raise
        why = f"the tree's mask made it fail: {' '.join(str(error).split())[:120]}"
        return Choice(sequence, f"scoring: every answer as a sequence ({why})")
    if gap <= allowed:
        return Choice(tree, f"scoring: all answers in one pass over their tree (both ways agree to {gap:.0e})")
    if config.scoring == "tree":
        raise EgmfError(
            f"config: evaluation.scoring is 'tree', but on sample {sample.id} it differs from the sequence way by "
            f"{gap:.2g}; take 'auto' or 'sequence'"
        )
    why = f"on sample {sample.id} the tree's scores differ by {gap:.2g}, more than {allowed:.0e}"
    return Choice(sequence, f"scoring: every answer as a sequence ({why})")


def _pseudo_tokens(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    return int(getattr(config, "pseudo_tokens", 0))


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
    return "" if implementation in ("sdpa", "eager") else f"attention implementation {implementation}"
