"""A task's legal answers as a prefix tree, which hangs behind a prompt: each token once, however many answers share it.

The log-probability of an answer is the sum over its path of log p(token | parent), plus log p(end-of-sequence | last
node). A tree with too many nodes for one pass is cut into several, answer by answer. In training the tree is the right
answer alone, or a regression's legal numbers (``objective.number``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from egmf_dist.config import ObjectiveConfig
from egmf_shards import REGRESSION, Task


class Picks(NamedTuple):
    """Which log-probabilities an answer tree's answers are the sums of."""

    node: np.ndarray
    """int64: the node at which a token is predicted; 0 is the prompt's last token."""
    token: np.ndarray
    """int64: the token."""
    answer: np.ndarray
    """int64: the answer, by its place in the tree's list."""


@dataclass(frozen=True)
class AnswerTree:
    """The tree of some of a task's legal answers in one language, its nodes in depth-first order.

    Node 0 stands for the prompt's last token, the parent of every first token.
    """

    tokens: tuple[int, ...]
    """Token of node 1, 2, ... (node 0 has none)."""
    depths: tuple[int, ...]
    """Distance of node 1, 2, ... from node 0."""
    ends: tuple[int, ...]
    """The node behind the last descendant of node 1, 2, ...: ``n`` to ``ends[n - 1] - 1`` are n and what follows it."""
    paths: tuple[tuple[int, ...], ...]
    """For each answer its nodes, first to last."""

    @classmethod
    def build(cls, answers: Sequence[Sequence[int]]) -> AnswerTree:
        """From each answer's token ids (without end-of-sequence; none may be empty, none equal)."""
        tokens: list[int] = []
        depths: list[int] = []
        ends: list[int] = []
        paths: list[tuple[int, ...]] = [()] * len(answers)
        path: list[int] = []
        # In sorted order every answer leaves the path of the one before it where the two part, and never comes back.
        for number in sorted(range(len(answers)), key=lambda i: tuple(answers[i])):
            answer = answers[number]
            shared = 0
            while shared < min(len(path), len(answer)) and tokens[path[shared] - 1] == answer[shared]:
                shared += 1
            for node in path[shared:]:
                ends[node - 1] = len(tokens) + 1
            del path[shared:]
            for depth in range(shared, len(answer)):
                tokens.append(answer[depth])
                depths.append(depth + 1)
                ends.append(0)
                path.append(len(tokens))
            paths[number] = tuple(path)
        for node in path:
            ends[node - 1] = len(tokens) + 1
        if len(set(paths)) != len(paths) or not all(paths):
            raise ValueError("legal answers must be different and not empty once tokenized")
        return cls(tuple(tokens), tuple(depths), tuple(ends), tuple(paths))

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
    def steps(self) -> Picks:
        """Every answer's tokens, each at its parent; the end of sequence, which is -1 here, at its last node."""
        rows = [
            (parent, token, number)
            for number, path in enumerate(self.paths)
            for parent, token in zip((0, *path), (*(self.tokens[node - 1] for node in path), -1), strict=True)
        ]
        return Picks(*np.array(rows, dtype=np.int64).T)


def has_distances(task: Task, settings: ObjectiveConfig) -> bool:
    """Whether ``objective.number`` asks how far an answer lies from the truth: of a regression, and of ordered labels.
    All legal answers are read then."""
    return settings.number != "tokens" and (task.kind == REGRESSION or task.name in settings.ordered)


def most_answers(tasks: Iterable[Task]) -> int:
    """C: how many legal answers the task with the most of them has."""
    return max(len(task.labels or task.values) for task in tasks)
