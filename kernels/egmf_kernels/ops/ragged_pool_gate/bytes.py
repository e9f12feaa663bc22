"""Bytes of ``ragged_pool_gate``, kernel by kernel and argument by argument (:mod:`egmf_kernels.tools.formulas`)."""

from __future__ import annotations

from egmf_kernels.ops.common.bytes import INDEX, Direction, Sizes, Term, blocks, of_kernel
from egmf_kernels.ops.ragged_pool_gate.chunks import (
    MIX_COLUMNS,
    Chunking,
    boundaries_asked,
    chunking,
    chunks_of,
    power_of_2,
)


def _cut(s: Sizes, direction: Direction) -> tuple[Chunking, int]:
    """How segments are cut, and how many chunks that makes."""
    tile = s.tile(f"ragged_pool_gate_{direction}")
    cut = chunking(tile, s.tokens, s.width, s.segments, s.queries)
    return cut, chunks_of(s.segment_lengths, cut.chunk)


def _boundaries(s: Sizes, cut: Chunking) -> tuple[int, int]:
    return INDEX * (s.segments + 1), INDEX * boundaries_asked(s.segment_lengths, cut)


def terms(s: Sizes, direction: Direction) -> list[Term]:
    """A chunk's program asks for the queries; a segment's chunks are put together by columns."""
    e, acc = s.element, s.accumulator
    queries, parts, lse = s.queries * s.width, s.segments * s.queries * s.width, s.segments * s.queries
    beta, pooled = s.segments * acc, s.batch * queries * e
    cut, chunks = _cut(s, direction)
    if direction == "forward":
        part, peak = chunks * queries * acc, chunks * s.queries * acc
        columns = blocks(s.width, min(MIX_COLUMNS, power_of_2(s.width)))
        programs = columns * s.queries
        # The gate's softmax looks at both boundaries of each segment once, the mix at both again.
        boundaries = INDEX * programs * 4 * s.segments
        return of_kernel(
            "ragged_pool_gate_forward", s, {"X": 1},
            Q=(queries * e, chunks * queries * e), CU=_boundaries(s, cut), PART=part, PEAK=peak, TOTAL=peak,
        ) + of_kernel(
            "modality_mix_forward", s, {},
            LOGITS=(s.segments * e, programs * s.segments * e), CU=(INDEX * (s.segments + 1), boundaries),
            PART=part, PEAK=(peak, columns * peak), TOTAL=(peak, columns * peak), BETA=beta, POOLED=parts * acc,
            LSE=lse * acc, P=pooled,
        )  # fmt: skip
    programs = min(s.tile("ragged_pool_gate_backward")["programs"], cut.slots)
    partial = programs * queries * acc
    found = of_kernel(
        "modality_mix_backward", s, {},
        DP=pooled, POOLED=parts * acc, BETA=beta, DELTA=lse * acc, DLOGITS=s.segments * e,
    ) + of_kernel(
        "ragged_pool_gate_backward", s, {"X": 1, "DX": 1},
        DP=(pooled, chunks * queries * e), Q=(queries * e, programs * queries * e), CU=_boundaries(s, cut),
        BETA=(beta, chunks * acc), DELTA=(lse * acc, chunks * s.queries * acc),
        LSE=(lse * acc, chunks * s.queries * acc), DQ=partial,
    )  # fmt: skip
    return found + of_kernel("sum", s, {}, DQ=partial + queries * e)
