"""How segments are cut into chunks: what the pooling's launches and its count of bytes share."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

MIX_COLUMNS, MIX_CHUNKS = 128, 16
"""Columns of a sample, and chunks at once, of a program that puts a segment's chunks together."""
WAYS = 64
"""How many segments a program looks at together to find its own."""


@dataclass(frozen=True)
class Chunking:
    """How one launch cuts the segments."""

    chunk: int
    """The most tokens of a chunk."""
    slots: int
    """Room for all chunks of all segments: ``T // chunk + segments``."""
    compiled: dict[str, int]
    """What the compiler is told: lanes of tokens, steps, and the pieces of a row."""


def chunking(tile: Mapping[str, int], tokens: int, width: int, segments: int, queries: int) -> Chunking:
    """Cut T tokens for a grid that fills the device, by the tokens and the table alone: the same bits everywhere.

    Args:
        tile: ``CHUNK``, the most tokens of a chunk; ``fill``, how many chunks are wanted; ``BP`` and ``ROWS``, columns
            of a piece and lanes of tokens of up to 4 queries; ``STEPS`` lanes' tokens are loaded together.
        tokens: T.
        width: D.
        segments: B * M.
        queries: K. More than 4 keep twice the sums, so a thread has half as many columns of a row.
    """
    whole, steps = power_of_2(width), tile["STEPS"]
    piece, held = min(tile["BP"], whole), tile["ROWS"] * tile["BP"]
    if queries > 4:
        steps = max(1, steps // 2)
        if piece < whole:
            piece *= 2
        else:
            held //= 2
    told = {name: tile[name] for name in ("num_warps", "num_stages") if name in tile}
    rows = held // piece
    if not rows:  # one row already had all threads
        rows, told = 1, told | ({"num_warps": 2 * told["num_warps"]} if "num_warps" in told else {})
    chunk = min(tile["CHUNK"], max(power_of_2(-(-tokens // tile["fill"])), rows * steps))
    compiled = told | {"ROWS": rows, "STEPS": steps, "PIECES": whole // piece, "BP": piece}
    return Chunking(chunk, tokens // chunk + segments, compiled)


def chunks_of(lengths: Sequence[int], chunk: int) -> int:
    """How many chunks segments of these lengths have."""
    return sum(-(-length // chunk) for length in lengths)


def boundaries_asked(lengths: Sequence[int], cut: Chunking) -> int:
    """How many boundaries the programs of all slots look at together to find their segments, and then of their own."""
    count = len(lengths)
    stride = -(-count // WAYS)
    starts = accumulate(lengths, initial=0)
    begins = [start // cut.chunk + segment for segment, start in zip(range(count), starts, strict=False)]
    asked = 0
    for slot in range(cut.slots):
        from_here = (bisect_right(begins, slot) - 1) // stride * stride
        asked += -(-count // stride) + min(stride, count - from_here) + 2
    return asked


def power_of_2(number: int) -> int:
    """The smallest that is not less; triton has it too, and counting bytes needs no triton."""
    return 1 << max(number - 1, 0).bit_length()
