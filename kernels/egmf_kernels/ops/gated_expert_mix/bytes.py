"""Bytes of ``gated_expert_mix``, kernel by kernel and argument by argument (:mod:`egmf_kernels.tools.formulas`)."""

from __future__ import annotations

from egmf_kernels.ops.common.bytes import Direction, Sizes, Term, of_kernel
from egmf_kernels.ops.gated_tri_proj import bytes as gated_tri_proj
from egmf_kernels.ops.hier_gate_mix_norm import bytes as hier_gate_mix_norm
from egmf_kernels.select import PROJECTION_WIDTH


def _projections(s: Sizes, direction: Direction) -> list[Term]:
    """Three products a_e -> W_e a_e + b_e that cuBLAS computes: forward reads a_e and writes the stream; backward
    reads dh_e for da_e, dh_e and a_e for dW_e, dh_e for db_e, and writes da_e."""
    weights = s.experts * s.width * (s.width + 1) * s.element
    if direction == "forward":
        return of_kernel("cublas", s, {"A": s.experts, "H": s.experts}, W=weights)
    return of_kernel("cublas", s, {"DH": 3 * s.experts, "A": s.experts, "DA": s.experts}, W=weights, DW=weights)


def terms(s: Sizes, direction: Direction) -> list[Term]:
    if s.width <= PROJECTION_WIDTH:
        return gated_tri_proj.terms(s, direction) + hier_gate_mix_norm.norm_terms(s, direction)
    return _projections(s, direction) + hier_gate_mix_norm.terms(s, direction)
