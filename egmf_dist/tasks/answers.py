"""Legal answers as a prefix tree, so that one teacher-forced forward scores them all.

The tree's nodes are put behind the prompt as extra columns; a node sees the prompt, its ancestors and itself. The
log-probability of an answer is the sum over its path of log p(token | parent), plus log p(end-of-sequence | last node).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class AnswerTree:
    """The tree of one task in one language.

    Node 0 stands for the prompt's last token, the parent of every first token.
    """

    tokens: tuple[int, ...]
    """Token of node 1, 2, ... (node 0 has none)."""
    parents: tuple[int, ...]
    """Parent of node 1, 2, ...; 0 is the prompt."""
    depths: tuple[int, ...]
    """Distance of node 1, 2, ... from node 0."""
    paths: tuple[tuple[int, ...], ...]
    """For each legal answer its nodes, first to last."""

    @classmethod
    def build(cls, answers: Sequence[Sequence[int]]) -> AnswerTree:
        """From each legal answer's token ids (without end-of-sequence; none may be empty, none equal)."""
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


class TreeBatch(NamedTuple):
    """The trees of a batch's samples, padded to the widest: N nodes without node 0, C answers."""

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
    legal_BC: torch.Tensor
    """bool: the answer exists for that sample's task."""

    @classmethod
    def stack(cls, trees: Sequence[AnswerTree]) -> TreeBatch:
        """Pad and stack one tree per sample."""
        batch, nodes = len(trees), max(len(t.tokens) for t in trees)
        answers = max(len(t.paths) for t in trees)
        out = cls(
            tokens_BN=torch.zeros(batch, nodes, dtype=torch.long),
            depth_BN=torch.ones(batch, nodes, dtype=torch.long),
            sees_BNN=torch.eye(nodes, dtype=torch.bool).repeat(batch, 1, 1),
            parent_BN=torch.zeros(batch, nodes, dtype=torch.long),
            on_path_BCN=torch.zeros(batch, answers, nodes, dtype=torch.bool),
            last_BC=torch.zeros(batch, answers, dtype=torch.long),
            legal_BC=torch.zeros(batch, answers, dtype=torch.bool),
        )
        for b, tree in enumerate(trees):
            size = len(tree.tokens)
            out.tokens_BN[b, :size] = torch.tensor(tree.tokens)
            out.depth_BN[b, :size] = torch.tensor(tree.depths)
            out.parent_BN[b, :size] = torch.tensor(tree.parents)
            for node, parent in enumerate(tree.parents, start=1):
                if parent:
                    out.sees_BNN[b, node - 1] |= out.sees_BNN[b, parent - 1]
            for c, path in enumerate(tree.paths):
                out.on_path_BCN[b, c, torch.tensor(path) - 1] = True
                out.last_BC[b, c] = path[-1]
                out.legal_BC[b, c] = True
        return out

    def to(self, device: torch.device) -> TreeBatch:
        """The same trees on ``device``."""
        return TreeBatch(*(tensor.to(device, non_blocking=True) for tensor in self))

    def log_probabilities(self, logits_BNV: torch.Tensor, eos: int) -> torch.Tensor:
        """Log-probability of every legal answer.

        Args:
            logits_BNV: logits ``[B, 1 + N, vocabulary]`` at the prompt's last token and at every node.
            eos: the end-of-sequence token's id.

        Returns:
            float32 ``[B, C]``; minus infinity where a sample's task has fewer answers.
        """
        log_p = logits_BNV.float().log_softmax(-1)
        sample_B1 = torch.arange(len(log_p), device=log_p.device)[:, None]
        node_BN = log_p[sample_B1, self.parent_BN, self.tokens_BN]
        path_BC = (self.on_path_BCN * node_BN[:, None, :]).sum(-1)
        end_BC = log_p[:, :, eos].gather(1, self.last_BC)
        return (path_BC + end_BC).masked_fill(~self.legal_BC, float("-inf"))
