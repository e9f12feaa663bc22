"""Bytes that one kernel moves through one of its arguments: the terms that an operator's ``bytes.py`` is written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from egmf_kernels import tiles

Direction = Literal["forward", "backward"]
INDEX = 4
"""Bytes of a segment number and of a boundary (int32)."""


@dataclass(frozen=True)
class Sizes:
    """What an operator is called with.

    ``element`` is the bytes of a token's number (2: bf16 or fp16, 4: fp32, 8: fp64); ``gated`` and ``weighed`` say
    whether the expert gate and the modality weights act on the mix; ``table`` is the tile table (one of
    :mod:`egmf_kernels.tiles`).
    """

    tokens: int
    width: int
    element: int
    batch: int
    table: dict[str, Any]
    modalities: int = 3
    experts: int = 3
    queries: int = 4
    kernel_sizes: tuple[int, ...] = (3, 5, 7)
    gated: bool = True
    weighed: bool = False
    lengths: tuple[int, ...] | None = None
    """Tokens of every segment; equal ones where not given."""

    @property
    def stream(self) -> int:
        """Bytes of one pass."""
        return self.tokens * self.width * self.element

    @property
    def accumulator(self) -> int:
        """Bytes of a number in an accumulator."""
        return 8 if self.element == 8 else 4

    @property
    def segments(self) -> int:
        return self.batch * self.modalities

    @property
    def segment_lengths(self) -> tuple[int, ...]:
        """Tokens of every segment."""
        if self.lengths is not None:
            return self.lengths
        each, more = divmod(self.tokens, self.segments)
        return tuple(each + (s < more) for s in range(self.segments))

    def tile(self, kernel: str) -> dict[str, Any]:
        """The kernel's entry in the table."""
        like = torch.empty(0, dtype={2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[self.element])
        with tiles.using(self.table):
            return dict(tiles.lookup(kernel, like, self.width))


@dataclass(frozen=True)
class Term:
    """Bytes that one kernel moves through one of its arguments."""

    kernel: str
    """Its name; "sum" for torch's reductions of partials, "cublas" for the projections left to cuBLAS."""
    argument: str
    passes: int
    """Compulsory passes over a ``[T, D]`` stream; 0 for a small term."""
    compulsory: int
    requested: int


Small = int | tuple[int, int]
"""Compulsory bytes, and requested ones where they differ."""


def of_kernel(name: str, sizes: Sizes, streams: dict[str, int | tuple[int, int]], **small: Small) -> list[Term]:
    """A kernel's terms. ``streams``: argument -> passes, or (passes, requested bytes)."""
    found = []
    for argument, given in streams.items():
        passes, asked = given if isinstance(given, tuple) else (given, given * sizes.stream)
        found.append(Term(name, argument, passes, passes * sizes.stream, asked))
    for argument, size in small.items():
        once, asked = size if isinstance(size, tuple) else (size, size)
        found.append(Term(name, argument, 0, once, asked))
    return [term for term in found if term.requested or term.compulsory]


def blocks(count: int, size: int) -> int:
    """How many blocks of ``size`` hold ``count``."""
    return -(-count // size)
