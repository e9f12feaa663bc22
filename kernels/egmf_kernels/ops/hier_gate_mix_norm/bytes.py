"""Bytes of ``hier_gate_mix_norm``, kernel by kernel and argument by argument (:mod:`egmf_kernels.tools.formulas`)."""

from __future__ import annotations

from egmf_kernels.ops.common.bytes import INDEX, Direction, Sizes, Small, Term, blocks, of_kernel


def terms(s: Sizes, direction: Direction) -> list[Term]:
    """Each program asks for the gate's weights and the gain once; rows ask for their context."""
    e, experts = s.element, s.experts
    gate, gain, alpha = experts * s.width * e, s.width * e, s.tokens * experts * s.accumulator
    name = f"{'mix_norm' if experts else 'norm'}_{direction}"
    tile = s.tile(name)
    tiles = blocks(s.tokens, tile["BT"])
    segment, beta = s.tokens * INDEX, (s.segments * e, s.tokens * e)
    rstd = s.tokens * s.accumulator
    programs = min(tile["programs"], tiles)
    if direction == "forward":
        small: dict[str, Small] = {"GAMMA": (gain, programs * gain), "RSTD": rstd}
        if experts:
            small |= {"SEGMENT": segment, "ALPHA": alpha}
        if experts and s.gated:
            small |= {"GATE": (gate, programs * gate), "CONTEXT": (s.batch * experts * e, s.tokens * experts * e)}
        if experts and s.weighed:
            small["BETA"] = beta
        return of_kernel("mix_norm_forward", s, {"X": 1, "H": experts, "O": 1}, **small)
    partial = programs * s.width * s.accumulator
    small = {"GAMMA": (gain, programs * gain), "RSTD": rstd, "ALPHA": alpha, "PGAMMA": partial}
    sums = of_kernel("sum", s, {}, PGAMMA=partial + gain)
    if experts and s.weighed:
        small |= {"SEGMENT": segment, "BETA": beta}
    if experts and s.gated:
        small |= {"GATE": (gate, programs * gate), "PGATE": experts * partial}
        sums += of_kernel("sum", s, {}, PGATE=experts * partial + gate)
    if experts and (s.gated or s.weighed):
        small["DZ"] = s.tokens * (experts + 1) * s.accumulator
        sums += gate_gradients(s)
    return of_kernel("mix_norm_backward", s, {"DO": 1, "X": 1, "H": experts, "DX": 1, "DH": experts}, **small) + sums


def gate_gradients(s: Sizes) -> list[Term]:
    """Per-token gradients of the gate's logits and the modality weight, summed by segment, then by sample."""
    columns = s.experts + 1
    sums = s.segments * columns * s.accumulator
    results = s.batch * s.experts * s.element * s.gated + s.segments * s.element * s.weighed
    return of_kernel(
        "segment_sum_kernel", s, {},
        V=s.tokens * columns * s.accumulator, CU=((s.segments + 1) * INDEX, 2 * s.segments * INDEX), OUT=sums,
    ) + of_kernel("sum", s, {}, OUT=sums + results)  # fmt: skip


def norm_terms(s: Sizes, direction: Direction) -> list[Term]:
    """Without streams it is a norm."""
    return terms(Sizes(**(vars(s) | {"experts": 0})), direction)
