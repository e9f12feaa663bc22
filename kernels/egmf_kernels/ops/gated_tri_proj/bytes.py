"""Bytes of ``gated_tri_proj``, kernel by kernel and argument by argument (:mod:`egmf_kernels.tools.formulas`)."""

from __future__ import annotations

from egmf_kernels.ops.common.bytes import INDEX, Direction, Sizes, Small, Term, blocks, of_kernel
from egmf_kernels.ops.hier_gate_mix_norm.bytes import gate_gradients


def terms(s: Sizes, direction: Direction) -> list[Term]:
    return _tri_proj_forward(s) if direction == "forward" else _tri_proj_backward(s)


def _weights(s: Sizes, times: int) -> Small:
    """``w [E, T]``, asked for so often."""
    once = s.tokens * s.experts * s.accumulator
    return once, times * once


def _tri_proj_forward(s: Sizes) -> list[Term]:
    """The product asks for a_e once a column tile (in whole row tiles) and for W_e once a row tile."""
    e, experts = s.element, s.experts
    tile = s.tile("expert_gate_forward")
    programs = min(tile["programs"], blocks(s.tokens, tile["BT"]))
    gate = experts * s.width * e
    small: dict[str, Small] = {"SEGMENT": s.tokens * INDEX, "ALPHA": _weights(s, 1), "WEIGHT": _weights(s, 1)}
    if s.weighed:
        small["BETA"] = (s.segments * e, s.tokens * e)
    if s.gated:
        small |= {"GATE": (gate, programs * gate), "CONTEXT": (s.batch * experts * e, s.tokens * experts * e)}
    found = of_kernel("expert_gate_forward", s, {"X": 1} if s.gated else {}, **small)
    tile = s.tile("gated_tri_proj_forward")
    rows, columns = blocks(s.tokens, tile["BM"]), blocks(s.width, tile["BN"])
    weights = experts * s.width * s.width * e
    operand = experts * rows * tile["BM"] * s.width * e * columns
    return found + of_kernel(
        "gated_tri_proj_forward", s, {"A": (experts, operand), "X": 1, "Y": 1},
        W=(weights, rows * weights), BIAS=(gate, rows * gate), WEIGHT=_weights(s, columns),
    )  # fmt: skip


def _tri_proj_backward(s: Sizes) -> list[Term]:
    """Three kernels: da_e and the rows' dots (dy once an expert and column tile), dW_e in splits of the tokens, then
    the gate, context, x and bias."""
    e, acc, experts = s.element, s.accumulator, s.experts
    weights, bias = experts * s.width * s.width, experts * s.width
    tile = s.tile("gated_tri_proj_backward_a")
    rows, columns = blocks(s.tokens, tile["BM"]), blocks(s.width, tile["BN"])
    dots = columns * s.tokens * experts * acc
    operand = experts * columns * rows * tile["BM"] * s.width * e
    found = of_kernel(
        "gated_tri_proj_backward_a", s, {"DY": (1, operand), "A": experts, "DA": experts},
        W=(weights * e, rows * weights * e), PDOT=dots, WEIGHT=_weights(s, columns),
    )  # fmt: skip
    tile = s.tile("gated_tri_proj_backward_w")
    span = blocks(blocks(s.tokens, tile["splits"]), tile["BK"]) * tile["BK"]
    splits = blocks(s.tokens, span)
    out, into = blocks(s.width, tile["BM"]), blocks(s.width, tile["BN"])
    partial = splits * weights * acc
    found += of_kernel(
        "gated_tri_proj_backward_w", s,
        {"DY": (1, experts * into * s.stream), "A": (experts, experts * out * s.stream)},
        PW=partial, WEIGHT=_weights(s, out * into),
    )  # fmt: skip
    found += of_kernel("sum", s, {}, PW=partial + weights * e)
    tile = s.tile("expert_gate_backward")
    programs = min(tile["programs"], blocks(s.tokens, tile["BT"]))
    partial = programs * bias * acc
    small: dict[str, Small] = {
        "ALPHA": s.tokens * experts * acc,
        "PDOT": dots,
        "BIAS": (bias * e, programs * bias * e),
        "DZ": s.tokens * (experts + 1) * acc,
        "PBIAS": partial,
    }
    found += of_kernel("sum", s, {}, PBIAS=partial + bias * e)
    if s.weighed:
        small |= {"SEGMENT": s.tokens * INDEX, "BETA": (s.segments * e, s.tokens * e)}
    if s.gated:
        small |= {"GATE": (bias * e, programs * bias * e), "PGATE": partial}
        found += of_kernel("sum", s, {}, PGATE=partial + bias * e)
    streams: dict[str, int | tuple[int, int]] = {"DY": 1, "X": int(s.gated), "DX": 1}
    found += of_kernel("expert_gate_backward", s, streams, **small)
    return found + (gate_gradients(s) if s.gated or s.weighed else [])
