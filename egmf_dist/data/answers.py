"""All legal answers, laid out for the two ways of scoring them.

* **Tree**: the answers' prefix tree stands behind the prompt as extra columns; a node sees the prompt, its ancestors
  and itself. The log-probability of an answer is the sum over its path of log p(token | parent), plus
  log p(end-of-sequence | last node). A tree with too many nodes for one pass is cut into several, answer by answer.
* **Sequences**: every answer is a row of its own, as in training.

Shape legend: B samples, N tree nodes, C legal answers, R rows (a sample with one of its answers), A answer columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

CHUNK = 2**25
"""The most logits that are widened to float32 at once: 128 MiB."""


@dataclass(frozen=True)
class AnswerTree:
    """The tree of some of a task's legal answers in one language.

    Node 0 stands for the prompt's last token, the parent of every first token.
    """

    tokens: tuple[int, ...]
    """Token of node 1, 2, ... (node 0 has none)."""
    parents: tuple[int, ...]
    """Parent of node 1, 2, ...; 0 is the prompt."""
    depths: tuple[int, ...]
    """Distance of node 1, 2, ... from node 0."""
    paths: tuple[tuple[int, ...], ...]
    """For each answer its nodes, first to last."""

    @classmethod
    def build(cls, answers: Sequence[Sequence[int]]) -> AnswerTree:
        """From each answer's token ids (without end-of-sequence; none may be empty, none equal)."""
        children: dict[tuple[int, int], int] = {}
        tokens: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        paths = []
        for answer in answers:
            node, path = 0, []
            for depth, token in enumerate(answer, start=1):
                if (node, token) not in children:
                    tokens.append(token)
                    parents.append(node)
                    depths.append(depth)
                    children[node, token] = len(tokens)
                node = children[node, token]
                path.append(node)
            paths.append(tuple(path))
        if len(set(paths)) != len(paths) or not all(paths):
            raise ValueError("legal answers must be different and not empty once tokenized")
        return cls(tuple(tokens), tuple(parents), tuple(depths), tuple(paths))

    @classmethod
    def build_passes(cls, answers: Sequence[Sequence[int]], most_nodes: int) -> list[AnswerTree]:
        """Trees of at most ``most_nodes`` nodes (or of one answer) that together hold all answers in their order."""
        trees, first, seen = [], 0, set[tuple[int, ...]]()
        for number, answer in enumerate(answers):
            new = {tuple(answer[: depth + 1]) for depth in range(len(answer))} - seen
            if number > first and len(seen) + len(new) > most_nodes:
                trees.append(cls.build(answers[first:number]))
                first, seen = number, set()
            seen |= {tuple(answer[: depth + 1]) for depth in range(len(answer))}
        return [*trees, cls.build(answers[first:])]

    @cached_property
    def sees(self) -> torch.Tensor:
        """bool ``[N, N]``: node sees node (its ancestors and itself); node 1 stands at 0."""
        sees = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent:
                sees[node] |= sees[parent - 1]
        return sees

    @cached_property
    def on_path(self) -> torch.Tensor:
        """bool ``[C, N]``: the answer's path runs through the node; node 1 stands at 0."""
        return self.sees[torch.tensor([path[-1] - 1 for path in self.paths])]


class TreeBatch(NamedTuple):
    """One tree for each of a batch's samples, padded to the widest: N nodes without node 0, C answers."""

    tokens_BN: torch.Tensor
    """int64: node tokens."""
    depth_BN: torch.Tensor
    """int64: distance from the prompt's last token; 1 for padding too."""
    sees_BNN: torch.Tensor
    """bool: node sees node (its ancestors and itself; a padding node sees itself)."""
    parent_BN: torch.Tensor
    """int64: the parent, counting the prompt's last token as 0 and the nodes from 1."""
    on_path_BCN: torch.Tensor
    """bool: the answer's path runs through the node."""
    last_BC: torch.Tensor
    """int64: the answer's last node, counted from 1; 0 for padding."""
    place_BC: torch.Tensor
    """int64: which of the task's legal answers it is; -1 for padding."""

    @classmethod
    def stack(cls, trees: Sequence[AnswerTree | None], first: Sequence[int]) -> TreeBatch:
        """Pad and stack one tree per sample; None stands for a sample that has no answer in this pass.

        Args:
            trees: one for each sample.
            first: for each sample, how many of its answers stand in earlier passes.
        """
        batch, nodes = len(trees), max((len(t.tokens) for t in trees if t is not None), default=1)
        answers = max((len(t.paths) for t in trees if t is not None), default=1)
        out = cls(
            tokens_BN=torch.zeros(batch, nodes, dtype=torch.long),
            depth_BN=torch.ones(batch, nodes, dtype=torch.long),
            sees_BNN=torch.eye(nodes, dtype=torch.bool).repeat(batch, 1, 1),
            parent_BN=torch.zeros(batch, nodes, dtype=torch.long),
            on_path_BCN=torch.zeros(batch, answers, nodes, dtype=torch.bool),
            last_BC=torch.zeros(batch, answers, dtype=torch.long),
            place_BC=torch.full((batch, answers), -1),
        )
        for b, tree in enumerate(trees):
            if tree is None:
                continue
            n, c = len(tree.tokens), len(tree.paths)
            out.tokens_BN[b, :n] = torch.tensor(tree.tokens)
            out.depth_BN[b, :n] = torch.tensor(tree.depths)
            out.parent_BN[b, :n] = torch.tensor(tree.parents)
            out.sees_BNN[b, :n, :n] = tree.sees
            out.on_path_BCN[b, :c, :n] = tree.on_path
            out.last_BC[b, :c] = torch.tensor([path[-1] for path in tree.paths])
            out.place_BC[b, :c] = torch.arange(first[b], first[b] + c)
        return out

    def part(self, rows: slice) -> TreeBatch:
        """The trees of some of the samples."""
        return TreeBatch(*(tensor[rows] for tensor in self))

    def log_probabilities(self, logits_BNV: torch.Tensor, eos: int) -> torch.Tensor:
        """Log-probability of every answer.

        No second table of the logits' size is made: log p = logit - logsumexp, which is taken a few rows at a time.

        Args:
            logits_BNV: logits ``[B, 1 + N, vocabulary]`` at the prompt's last token and at every node.
            eos: the end-of-sequence token's id.

        Returns:
            float32 ``[B, C]`` in the order of ``place_BC``; minus infinity for padding.
        """
        normal_BN = log_normalisers(logits_BNV)
        sample_B1 = torch.arange(len(logits_BNV), device=logits_BNV.device)[:, None]
        node_BN = logits_BNV[sample_B1, self.parent_BN, self.tokens_BN].float() - normal_BN[sample_B1, self.parent_BN]
        # Not a product with the mask: a node of probability 0 off the path would make it NaN.
        path_BC = torch.where(self.on_path_BCN, node_BN[:, None, :], 0.0).sum(-1)
        end_BC = (logits_BNV[:, :, eos].float() - normal_BN).gather(1, self.last_BC)
        return (path_BC + end_BC).masked_fill(self.place_BC < 0, float("-inf"))


class TreePasses(NamedTuple):
    """A batch's answer trees; every pass holds some of the answers of each sample, in order."""

    passes: list[TreeBatch]
    answers: int
    """The most legal answers of one task."""
    samples_at_once: int
    """The most samples of one forward of the LLM."""

    def to(self, device: torch.device) -> TreePasses:
        """The same trees on ``device``."""
        moved = [TreeBatch(*(tensor.to(device, non_blocking=True) for tensor in tree)) for tree in self.passes]
        return self._replace(passes=moved)


class AnswerRows(NamedTuple):
    """A batch's answers as sequences of their own; each row is a sample with one of its answers."""

    sample_R: torch.Tensor
    """int64: which sample of the batch."""
    answer_R: torch.Tensor
    """int64: which of its legal answers; C for a row that only fills."""
    target_RA: torch.Tensor
    """int64: the answer's ids and end-of-sequence, padded on the left."""
    target_mask_RA: torch.Tensor
    """bool."""
    answers: int
    """C, the most legal answers of one sample."""
    rows_at_once: int
    """The most rows of one forward of the LLM."""

    def filled_to(self, rows: int) -> AnswerRows:
        """At least so many rows, by repeating the first one; the repeated ones' scores go nowhere."""
        more = max(0, rows - len(self.sample_R))
        moved: dict[str, Any] = {
            name: torch.cat([part, part[:1].expand(more, *part.shape[1:])])
            for name, part in self._asdict().items()
            if isinstance(part, torch.Tensor)
        }
        moved["answer_R"][len(self.sample_R) :] = self.answers
        return self._replace(**moved)

    def to(self, device: torch.device) -> AnswerRows:
        """The same rows on ``device``."""
        moved: dict[str, Any] = {
            name: part.to(device, non_blocking=True)
            for name, part in self._asdict().items()
            if isinstance(part, torch.Tensor)
        }
        return self._replace(**moved)


def log_normalisers(logits_BNV: torch.Tensor) -> torch.Tensor:
    """float32 ``[B, N]``: logsumexp of logits of any float type, :data:`CHUNK` numbers at a time."""
    flat = logits_BNV.flatten(0, 1)
    parts = [rows.float().logsumexp(-1) for rows in flat.split(max(1, CHUNK // flat.shape[-1]))]
    return torch.cat(parts).view(logits_BNV.shape[:2])
