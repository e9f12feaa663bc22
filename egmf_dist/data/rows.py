"""What the LLM reads: sequences laid out in rows, with as little padding as can be and no token read twice.

A sequence is ``[start | context | K pseudo tokens | rest of the prompt | answers]``. Sequences whose contexts begin
alike (utterances of one dialogue, several questions on one clip) share that beginning: together they are a tree of
tokens, and a sequence's answers are one more tree at its end. A tree stands in its row in depth-first order, so that
what follows a token is an interval of columns: column i sees column j where ``j <= i < end[j]``. One number a column is
the whole mask. A token's position is its depth in the tree, as if its sequence stood alone.

Models that honour no such mask get one sequence a row, padding on its left: a sliding window, an attention bias by
distance or a recurrent state then meets no hole. A sequence's result does not depend on what shares its row, its tree
or its batch.

Shape legend: R rows, C columns, N columns that are read, E log-probabilities that are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from egmf_dist.data.answers import AnswerTree

COLUMNS = 2048
"""In a row of so many columns attention, which grows with the square, costs as much as everything else."""
_MOST_ROWS = 64
_ALIGNED = 8
_SHARED = 8
"""Fewer common tokens than this are read again: what shares a tree must share a row."""


class Asked(NamedTuple):
    """One sequence, and what is asked about it."""

    context: Sequence[int]
    """Ids before the pseudo tokens, which other sequences may begin with as well; the tokenizer's start included."""
    rest: Sequence[int]
    """The prompt's ids behind them."""
    source: int
    """Whose pseudo tokens these are: the sample's place in its batch."""
    answers: AnswerTree | None
    """What may follow; None for nothing."""
    owners: Sequence[int]
    """For each answer the number under which its log-probability is added up."""


class Rows(NamedTuple):
    """Sequences in rows, as tensors."""

    ids_RC: torch.Tensor
    """int64: token ids; 0 where padding or a pseudo token stands."""
    position_RC: torch.Tensor
    """int64: place in its sequence, from 0; 0 for padding."""
    end_RC: torch.Tensor
    """int64: the column behind everything that sees this one; 0 for padding."""
    pseudo_P: torch.Tensor
    """int64: the pseudo tokens' columns, in the flattened rows."""
    source_P: torch.Tensor
    """int64: which of the flattened ``[B, K]`` pseudo tokens each is."""
    read_N: torch.Tensor
    """int64: the columns, in the flattened rows, whose next tokens are asked for."""
    at_E: torch.Tensor
    """int64: which of ``read_N``."""
    token_E: torch.Tensor
    """int64: the next token."""
    owner_E: torch.Tensor
    """int64: under which number its log-probability is added up."""
    packed: bool
    """Several sequences stand in a row, or branch: a mask of two dimensions would not say so."""

    def to(self, device: torch.device) -> Rows:
        """The same rows on ``device``."""
        moved: dict[str, Any] = {
            name: part.to(device, non_blocking=True)
            for name, part in self._asdict().items()
            if isinstance(part, torch.Tensor)
        }
        return self._replace(**moved)


class Passes(NamedTuple):
    """All legal answers of a batch, in rows for one forward of the LLM after another."""

    rows: list[Rows]
    legal_BC: torch.Tensor
    """bool: the sample has an answer of this number; answer c of sample b adds up under ``b * C + c``."""

    def to(self, device: torch.device) -> Passes:
        """The same on ``device``."""
        return Passes([rows.to(device) for rows in self.rows], self.legal_BC.to(device))


class _Tree:
    """One tree in depth-first order; columns count from its own first."""

    def __init__(self, pseudo_tokens: int) -> None:
        self.pseudo_tokens = pseudo_tokens
        self.ids: list[int] = []
        self.position: list[int] = []
        self.end: list[int] = []
        self.pseudo: list[tuple[int, int]] = []
        """First column and sample of each run of pseudo tokens."""
        self.asked: list[tuple[int, int, Asked]] = []
        """First column that is read, how many are, and for whom."""

    def grow(self, sequences: Sequence[Asked], depth: int) -> None:
        """Everything of ``sequences``, sorted by their contexts, from ``depth`` on."""
        first, last = sequences[0].context, sequences[-1].context
        shared = depth + _common(first[depth:], last[depth:])
        trunk = len(self.ids)
        self._add(first[depth:shared], depth)
        number = 0
        while number < len(sequences) and len(sequences[number].context) == shared:
            self._add_own(sequences[number], shared)
            number += 1
        while number < len(sequences):
            token, begin = sequences[number].context[shared], number
            while number < len(sequences) and sequences[number].context[shared] == token:
                number += 1
            self.grow(sequences[begin:number], shared)
        self.end[trunk : trunk + shared - depth] = [len(self.ids)] * (shared - depth)

    def _add(self, ids: Sequence[int], depth: int) -> None:
        self.ids.extend(ids)
        self.position.extend(range(depth, depth + len(ids)))
        self.end.extend([0] * len(ids))

    def _add_own(self, sequence: Asked, depth: int) -> None:
        begin = len(self.ids)
        if self.pseudo_tokens:
            self.pseudo.append((begin, sequence.source))
            self._add([0] * self.pseudo_tokens, depth)
        self._add(sequence.rest, depth + self.pseudo_tokens)
        nodes = 0
        last, bottom = len(self.ids) - 1, depth + len(self.ids) - 1 - begin
        if sequence.answers is not None:
            nodes = len(sequence.answers.tokens)
            self.ids.extend(sequence.answers.tokens)
            self.position.extend(bottom + d for d in sequence.answers.depths)
            self.end.extend(last + e for e in sequence.answers.ends)
        self.end[begin : last + 1] = [len(self.ids)] * (last + 1 - begin)
        self.asked.append((last, nodes + 1, sequence))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many elements two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def pack(sequences: Sequence[Asked], pseudo_tokens: int, eos: int, columns: int = COLUMNS) -> Rows:
    """As many rows, filled alike, as cost least.

    Args:
        sequences: at least one.
        pseudo_tokens: K.
        eos: the end-of-sequence id.
        columns: see :data:`COLUMNS`.
    """
    ordered = sorted(sequences, key=lambda sequence: tuple(sequence.context))
    trees, begin = [], 0
    for number in range(1, len(ordered) + 1):
        if number == len(ordered) or _common(ordered[number - 1].context, ordered[number].context) < _SHARED:
            tree = _Tree(pseudo_tokens)
            tree.grow(ordered[begin:number], 0)
            trees.append(tree)
            begin = number
    trees.sort(key=lambda tree: -len(tree.ids))
    shares = [_share_out(trees, count) for count in range(1, min(len(trees), _MOST_ROWS) + 1)]
    rows = min(shares, key=lambda rows: len(rows) * _width(rows) * (1 + _width(rows) / columns))
    # Attention on a GPU copies a mask whose rows do not begin at multiples of 16 bytes.
    return _assemble(rows, -(-_width(rows) // _ALIGNED) * _ALIGNED, pseudo_tokens, eos, packed=True)


def _share_out(trees: Sequence[_Tree], count: int) -> list[list[_Tree]]:
    """Trees, the longest first, each into the row that is emptiest."""
    rows: list[list[_Tree]] = [[] for _ in range(count)]
    filled = [0] * count
    for tree in trees:
        emptiest = filled.index(min(filled))
        rows[emptiest].append(tree)
        filled[emptiest] += len(tree.ids)
    return rows


def _width(rows: Sequence[Sequence[_Tree]]) -> int:
    return max(sum(len(tree.ids) for tree in row) for row in rows)


def one_a_row(sequences: Sequence[Asked], pseudo_tokens: int, eos: int, padding: int = 0) -> Rows:
    """One sequence a row, padding on its left.

    Args:
        sequences: at least one, each with one answer at most.
        pseudo_tokens: K.
        eos: the end-of-sequence id.
        padding: columns of it before the longest, too; for checks.
    """
    trees = []
    for sequence in sequences:
        tree = _Tree(pseudo_tokens)
        tree.grow([sequence], 0)
        trees.append(tree)
    columns = padding + max(len(tree.ids) for tree in trees)
    return _assemble([[tree] for tree in trees], columns, pseudo_tokens, eos, packed=False)


def nothing() -> Rows:
    """No row at all."""
    return _assemble([], 0, 0, 0, packed=False)


def _assemble(rows: list[list[_Tree]], columns: int, pseudo_tokens: int, eos: int, packed: bool) -> Rows:
    ids_RC, position_RC, end_RC = np.zeros((3, len(rows), columns), dtype=np.int64)
    pseudo, source, read, at, token, owner = [], [], [], [], [], []
    reads, each = 0, np.arange(pseudo_tokens)
    for r, trees in enumerate(rows):
        first = 0 if packed else columns - sum(len(tree.ids) for tree in trees)
        for tree in trees:
            own = slice(first, first + len(tree.ids))
            ids_RC[r, own], position_RC[r, own] = tree.ids, tree.position
            end_RC[r, own] = np.array(tree.end) + first
            for column, sample in tree.pseudo:
                pseudo.append(r * columns + first + column + each)
                source.append(sample * pseudo_tokens + each)
            for column, count, sequence in tree.asked:
                read.append(r * columns + first + column + np.arange(count))
                if sequence.answers is not None:
                    steps = sequence.answers.steps
                    at.append(reads + steps.node)
                    token.append(np.where(steps.token < 0, eos, steps.token))
                    owner.append(np.asarray(sequence.owners, dtype=np.int64)[steps.answer])
                reads += count
            first = own.stop

    def together(parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *parts]))

    return Rows(
        ids_RC=torch.from_numpy(ids_RC),
        position_RC=torch.from_numpy(position_RC),
        end_RC=torch.from_numpy(end_RC),
        pseudo_P=together(pseudo),
        source_P=together(source),
        read_N=together(read),
        at_E=together(at),
        token_E=together(token),
        owner_E=together(owner),
        packed=packed,
    )
