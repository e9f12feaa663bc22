"""Bytes of ``ragged_pool_gate``, kernel by kernel and argument by argument (:mod:`egmf_kernels.tools.formulas`)."""

from __future__ import annotations

from egmf_kernels.ops.common.bytes import INDEX, Direction, Sizes, Term, of_kernel


def terms(s: Sizes, direction: Direction) -> list[Term]:
    """A segment's program reads its two boundaries, a sample's program those of its segments."""
    e, acc = s.element, s.accumulator
    queries, parts, lse = s.queries * s.width, s.segments * s.queries * s.width, s.segments * s.queries
    boundaries = (INDEX * (s.segments + 1), INDEX * 2 * s.segments)
    beta, pooled = s.segments * acc, s.batch * queries * e
    if direction == "forward":
        return of_kernel(
            "ragged_pool_gate_forward", s, {"X": 1},
            Q=(queries * e, s.segments * queries * e), CU=boundaries, PART=parts * acc, LSE=lse * acc,
        ) + of_kernel(
            "modality_mix_forward", s, {},
            LOGITS=s.segments * e, CU=boundaries, PART=parts * acc, BETA=beta, P=pooled,
        )  # fmt: skip
    programs = min(s.tile("ragged_pool_gate_backward")["programs"], s.segments)
    partial = programs * queries * acc
    found = of_kernel(
        "ragged_pool_gate_backward", s, {"X": 1, "DX": 1},
        DP=(pooled, s.modalities * pooled), Q=(queries * e, programs * queries * e), CU=boundaries, BETA=beta,
        PART=parts * acc, LSE=lse * acc, DQ=partial, DBETA=beta,
    )  # fmt: skip
    found += of_kernel("modality_gate_backward", s, {}, BETA=beta, DBETA=beta, DLOGITS=s.segments * e)
    return found + of_kernel("sum", s, {}, DQ=partial + queries * e)
