"""How many consecutive tokens one run of the convolution takes: what its launch and its count of bytes share."""

from __future__ import annotations

from collections.abc import Mapping

from egmf_kernels.ops.common.bytes import blocks


def run_length(tile: Mapping[str, int], tokens: int, width: int, halo: int) -> int:
    """Tokens of a run: the table's ``length``, or fewer where so few runs would leave multiprocessors idle.

    A function of the tokens, the width and the table alone, so that every GPU of an architecture adds in one order.

    Args:
        tile: ``length`` at most; ``fill``, the programs that are wanted; ``programs``, where parameter gradients leave
            as partials, the programs along the tokens at most; ``STEPS``, the rows that are loaded together.
        tokens: T.
        width: D.
        halo: rows that a run walks through beside its own; runs and halo together are a multiple of ``STEPS``.
    """
    columns = blocks(width, tile["BC"])
    length = min(tile["length"], blocks(tokens * columns, tile["CHUNKS"] * tile["fill"]))
    if "programs" in tile:
        length = max(length, blocks(tokens, tile["programs"] * tile["CHUNKS"]))
    return blocks(max(length, 1) + halo, tile["STEPS"]) * tile["STEPS"] - halo
