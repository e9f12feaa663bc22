"""How many bytes and operations each operator needs, derived from the kernels as written, and the roofline over them.

Two counts of bytes, kernel by kernel and argument by argument:

* compulsory: every byte that a kernel reads or writes, once. This is what the roofline divides by the memory's rate.
  The large part is whole passes over a ``[T, D]`` stream; parameters, saved statistics, segment numbers and the fp32
  partials that a fixed number of programs leaves behind are the rest.
* requested: every byte that the programs ask for. It is larger where programs ask for the same bytes again (parameters
  once a program, the convolution's halo, a matrix product's operands once a tile); caches serve the difference.

``tests/kernels/test_traffic.py`` counts both sides in Triton's interpreter: requested is equal to these formulas, term
by term. Passes over one ``T x D`` stream (:func:`stream_passes`), E experts:

    ragged_pool_gate    forward  1      o                          backward  2       o, do
    hier_gate_mix_norm  forward  E + 2  x, h_e, o                  backward  2 E + 3 do, x, h_e, dx, dh_e
    norm                forward  2      y, o                       backward  3       do, y, dy
    ms_dwconv           forward  2      x, out                     backward  3       dout, x, dx
    gated_tri_proj      forward  E + 3  x (gate), a_e, x, y        backward  3 E + 5 dy, a_e, da_e; dy, a_e; dy, x, dx
    gated_expert_mix    width <= 512: gated_tri_proj and norm; above: the projections by cuBLAS, then hier_gate_mix_norm

Symbols: T packed tokens, D width, B samples, M modalities, E experts, K queries, S scales of the convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from egmf_kernels import tiles
from egmf_kernels.select import PROJECTION_WIDTH

Direction = Literal["forward", "backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
INDEX = 4
"""Bytes of a segment number and of a boundary (int32)."""
GELU, SLOPE = 10, 8
"""Operations of the tanh-GELU and of its derivative, counted in ``gelu_and_slope``; an exponential is one."""


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


def _kernel(name: str, sizes: Sizes, streams: dict[str, int | tuple[int, int]], **small: Small) -> list[Term]:
    """``streams``: argument -> passes, or (passes, requested bytes)."""
    found = []
    for argument, given in streams.items():
        passes, asked = given if isinstance(given, tuple) else (given, given * sizes.stream)
        found.append(Term(name, argument, passes, passes * sizes.stream, asked))
    for argument, size in small.items():
        once, asked = size if isinstance(size, tuple) else (size, size)
        found.append(Term(name, argument, 0, once, asked))
    return [term for term in found if term.requested or term.compulsory]


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


def _pool(s: Sizes, direction: Direction) -> list[Term]:
    """A segment's program reads its two boundaries, a sample's program those of its segments."""
    e, acc = s.element, s.accumulator
    queries, parts, lse = s.queries * s.width, s.segments * s.queries * s.width, s.segments * s.queries
    boundaries = (INDEX * (s.segments + 1), INDEX * 2 * s.segments)
    beta, pooled = s.segments * acc, s.batch * queries * e
    if direction == "forward":
        return _kernel(
            "ragged_pool_gate_forward", s, {"X": 1},
            Q=(queries * e, s.segments * queries * e), CU=boundaries, PART=parts * acc, LSE=lse * acc,
        ) + _kernel(
            "modality_mix_forward", s, {},
            LOGITS=s.segments * e, CU=boundaries, PART=parts * acc, BETA=beta, P=pooled,
        )  # fmt: skip
    programs = min(s.tile("ragged_pool_gate_backward")["programs"], s.segments)
    partial = programs * queries * acc
    found = _kernel(
        "ragged_pool_gate_backward", s, {"X": 1, "DX": 1},
        DP=(pooled, s.modalities * pooled), Q=(queries * e, programs * queries * e), CU=boundaries, BETA=beta,
        PART=parts * acc, LSE=lse * acc, DQ=partial, DBETA=beta,
    )  # fmt: skip
    found += _kernel("modality_gate_backward", s, {}, BETA=beta, DBETA=beta, DLOGITS=s.segments * e)
    return found + _kernel("sum", s, {}, DQ=partial + queries * e)


def _mix(s: Sizes, direction: Direction) -> list[Term]:
    """Each program asks for the gate's weights and the gain once; rows ask for their context."""
    e, experts = s.element, s.experts
    gate, gain, alpha = experts * s.width * e, s.width * e, s.tokens * experts * s.accumulator
    name = f"{'mix_norm' if experts else 'norm'}_{direction}"
    tile = s.tile(name)
    blocks = _blocks(s.tokens, tile["BT"])
    segment, beta = s.tokens * INDEX, (s.segments * e, s.tokens * e)
    rstd = s.tokens * s.accumulator
    programs = min(tile["programs"], blocks)
    if direction == "forward":
        small: dict[str, Small] = {"GAMMA": (gain, programs * gain), "RSTD": rstd}
        if experts:
            small |= {"SEGMENT": segment, "ALPHA": alpha}
        if experts and s.gated:
            small |= {"GATE": (gate, programs * gate), "CONTEXT": (s.batch * experts * e, s.tokens * experts * e)}
        if experts and s.weighed:
            small["BETA"] = beta
        return _kernel("mix_norm_forward", s, {"X": 1, "H": experts, "O": 1}, **small)
    partial = programs * s.width * s.accumulator
    small = {"GAMMA": (gain, programs * gain), "RSTD": rstd, "ALPHA": alpha, "PGAMMA": partial}
    sums = _kernel("sum", s, {}, PGAMMA=partial + gain)
    if experts and s.weighed:
        small |= {"SEGMENT": segment, "BETA": beta}
    if experts and s.gated:
        small |= {"GATE": (gate, programs * gate), "PGATE": experts * partial}
        sums += _kernel("sum", s, {}, PGATE=experts * partial + gate)
    if experts and (s.gated or s.weighed):
        small["DZ"] = s.tokens * (experts + 1) * s.accumulator
        sums += _gate_gradients(s)
    return _kernel("mix_norm_backward", s, {"DO": 1, "X": 1, "H": experts, "DX": 1, "DH": experts}, **small) + sums


def _gate_gradients(s: Sizes) -> list[Term]:
    """Per-token gradients of the gate's logits and the modality weight, summed by segment, then by sample."""
    columns = s.experts + 1
    sums = s.segments * columns * s.accumulator
    results = s.batch * s.experts * s.element * s.gated + s.segments * s.element * s.weighed
    return _kernel(
        "segment_sum_kernel", s, {},
        V=s.tokens * columns * s.accumulator, CU=((s.segments + 1) * INDEX, 2 * s.segments * INDEX), OUT=sums,
    ) + _kernel("sum", s, {}, OUT=sums + results)  # fmt: skip


def _rows_asked(s: Sizes, length: int, runs: int, before: int, after: int) -> int:
    """Rows that runs of ``length`` tokens load, each with ``before`` and ``after`` more, where tokens are."""
    spans = ((run * length - before, (run + 1) * length + after) for run in range(runs))
    return sum(max(0, min(s.tokens, high) - max(0, low)) for low, high in spans)


def _dwconv(s: Sizes, direction: Direction) -> list[Term]:
    """A run of ``length`` tokens loads its own rows and a halo of R rows (backward 2 R of x, R of dout) at each end."""
    tile = s.tile(f"ms_dwconv_{direction}")
    taps, scales, reach = sum(s.kernel_sizes), len(s.kernel_sizes), max(s.kernel_sizes) // 2
    length = tile["length"]
    if direction == "backward":
        length = max(length, _blocks(s.tokens, tile["programs"] * tile["CHUNKS"]))
    programs, columns = _blocks(s.tokens, length * tile["CHUNKS"]), _blocks(s.width, tile["BC"])
    runs, row = programs * tile["CHUNKS"], s.width * s.element
    weights, bias, mu = taps * row, scales * row, scales * s.element
    small: dict[str, Small] = {
        "W": (weights, programs * weights),
        "BIAS": (bias, programs * bias),
        "MU": (mu, programs * columns * mu),
    }
    if direction == "forward":
        rows = _rows_asked(s, length, runs, reach, reach)
        small["SEGMENT"] = (s.tokens * INDEX, rows * columns * INDEX)
        return _kernel("ms_dwconv_forward", s, {"X": (1, rows * row), "OUT": 1}, **small)
    rows = _rows_asked(s, length, runs, 2 * reach, 2 * reach)
    partial = programs * (taps + 2 * scales) * s.width * s.accumulator
    small |= {"SEGMENT": (s.tokens * INDEX, rows * columns * INDEX), "PARTIAL": partial}
    dout = _rows_asked(s, length, runs, reach, reach) * row
    return _kernel("ms_dwconv_backward", s, {"DOUT": (1, dout), "X": (1, rows * row), "DX": 1}, **small) + _kernel(
        "sum", s, {}, PARTIAL=partial + weights + bias + mu
    )


def _tri_proj(s: Sizes, direction: Direction) -> list[Term]:
    return _tri_proj_forward(s) if direction == "forward" else _tri_proj_backward(s)


def _per_row(s: Sizes, times: int) -> dict[str, Small]:
    """What a product needs a row and expert: alpha and, where weighed, the row's segment and its modality weight."""
    alpha = s.tokens * s.experts * s.accumulator
    small: dict[str, Small] = {"ALPHA": (alpha, times * alpha)}
    if s.weighed:
        asked = times * s.tokens * s.experts
        small |= {"SEGMENT": (s.tokens * INDEX, asked * INDEX), "BETA": (s.segments * s.element, asked * s.element)}
    return small


def _tri_proj_forward(s: Sizes) -> list[Term]:
    """The product asks for a_e once a column tile (in whole row tiles) and for W_e once a row tile."""
    e, experts = s.element, s.experts
    tile = s.tile("expert_gate_forward")
    programs = min(tile["programs"], _blocks(s.tokens, tile["BT"]))
    gate = experts * s.width * e
    small: dict[str, Small] = {"SEGMENT": s.tokens * INDEX, "ALPHA": s.tokens * experts * s.accumulator}
    if s.gated:
        small |= {"GATE": (gate, programs * gate), "CONTEXT": (s.batch * experts * e, s.tokens * experts * e)}
    found = _kernel("expert_gate_forward", s, {"X": 1} if s.gated else {}, **small)
    tile = s.tile("gated_tri_proj_forward")
    rows, columns = _blocks(s.tokens, tile["BM"]), _blocks(s.width, tile["BN"])
    weights = experts * s.width * s.width * e
    operand = experts * rows * tile["BM"] * s.width * e * columns
    return found + _kernel(
        "gated_tri_proj_forward", s, {"A": (experts, operand), "X": 1, "Y": 1},
        W=(weights, rows * weights), BIAS=(gate, rows * gate), **_per_row(s, columns),
    )  # fmt: skip


def _tri_proj_backward(s: Sizes) -> list[Term]:
    """Three kernels: da_e and the rows' dots (dy once an expert and column tile), dW_e and db_e in splits of the
    tokens, then the gate, context and x."""
    e, acc, experts = s.element, s.accumulator, s.experts
    weights, bias = experts * s.width * s.width, experts * s.width
    tile = s.tile("gated_tri_proj_backward_a")
    rows, columns = _blocks(s.tokens, tile["BM"]), _blocks(s.width, tile["BN"])
    dots = columns * s.tokens * experts * acc
    operand = experts * columns * rows * tile["BM"] * s.width * e
    found = _kernel(
        "gated_tri_proj_backward_a", s, {"DY": (1, operand), "A": experts, "DA": experts},
        W=(weights * e, rows * weights * e), PDOT=dots, **_per_row(s, columns),
    )  # fmt: skip
    tile = s.tile("gated_tri_proj_backward_w")
    span = _blocks(_blocks(s.tokens, tile["splits"]), tile["BK"]) * tile["BK"]
    splits = _blocks(s.tokens, span)
    out, into = _blocks(s.width, tile["BM"]), _blocks(s.width, tile["BN"])
    partials = {"PW": splits * weights * acc, "PB": splits * bias * acc}
    found += _kernel(
        "gated_tri_proj_backward_w", s,
        {"DY": (1, experts * into * s.stream), "A": (experts, experts * out * s.stream)},
        **partials, **_per_row(s, out * into),
    )  # fmt: skip
    found += _kernel("sum", s, {}, PW=partials["PW"] + weights * e, PB=partials["PB"] + bias * e)
    if not s.gated and not s.weighed:
        return found + _kernel("sum", s, {"DY": 1, "DX": 1})
    tile = s.tile("expert_gate_backward")
    programs = min(tile["programs"], _blocks(s.tokens, tile["BT"]))
    partial = programs * bias * acc
    small: dict[str, Small] = {
        "ALPHA": s.tokens * experts * acc,
        "PDOT": dots,
        "BIAS": (bias * e, programs * bias * e),
        "DZ": s.tokens * (experts + 1) * acc,
    }
    if s.weighed:
        small |= {"SEGMENT": s.tokens * INDEX, "BETA": (s.segments * e, s.tokens * e)}
    if s.gated:
        small |= {"GATE": (bias * e, programs * bias * e), "PGATE": partial}
        found += _kernel("sum", s, {}, PGATE=partial + bias * e)
    streams: dict[str, int | tuple[int, int]] = {"DY": 1, "X": int(s.gated), "DX": 1}
    return found + _kernel("expert_gate_backward", s, streams, **small) + _gate_gradients(s)


def _projections(s: Sizes, direction: Direction) -> list[Term]:
    """Three products a_e -> W_e a_e + b_e that cuBLAS computes: forward reads a_e and writes the stream; backward
    reads dh_e for da_e, dh_e and a_e for dW_e, dh_e for db_e, and writes da_e."""
    weights = s.experts * s.width * (s.width + 1) * s.element
    if direction == "forward":
        return _kernel("cublas", s, {"A": s.experts, "H": s.experts}, W=weights)
    return _kernel("cublas", s, {"DH": 3 * s.experts, "A": s.experts, "DA": s.experts}, W=weights, DW=weights)


def _norm(s: Sizes, direction: Direction) -> list[Term]:
    return _mix(Sizes(**(vars(s) | {"experts": 0})), direction)


def _expert_mix(s: Sizes, direction: Direction) -> list[Term]:
    if s.width <= PROJECTION_WIDTH:
        return _tri_proj(s, direction) + _norm(s, direction)
    return _projections(s, direction) + _mix(s, direction)


TERMS: dict[str, Callable[[Sizes, Direction], list[Term]]] = {
    "ragged_pool_gate": _pool,
    "hier_gate_mix_norm": _mix,
    "norm": _norm,
    "ms_dwconv": _dwconv,
    "gated_tri_proj": _tri_proj,
    "gated_expert_mix": _expert_mix,
}
"""Operator -> its terms."""
OPERATORS = tuple(TERMS)


def sizes_of(
    *, tokens: int, width: int, element: int, batch: int, table: dict[str, Any] | None = None, **more: Any
) -> Sizes:
    """Sizes from keywords (the fields of :class:`Sizes`); ``table`` is the newest architecture's where not given."""
    table = tiles.load(f"sm_{tiles.architectures()[-1]}") if table is None else table
    return Sizes(tokens, width, element, batch, table, **more)


def terms(operator: str, direction: Direction, sizes: Sizes) -> list[Term]:
    """What each kernel of an operator moves through each argument.

    Raises:
        ValueError: the operator or the direction is unknown.
    """
    for name, value, known in (("operator", operator, OPERATORS), ("direction", direction, DIRECTIONS)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}")
    return TERMS[operator](sizes, direction) if sizes.tokens else []


def bytes_moved(operator: str, direction: Direction, **sizes: Any) -> int:
    """Compulsory bytes, those of torch's sums of partials included. Keywords: :func:`sizes_of`."""
    return sum(term.compulsory for term in terms(operator, direction, sizes_of(**sizes)))


def bytes_requested(operator: str, direction: Direction, **sizes: Any) -> int:
    """Bytes that the programs ask for with the tiles of the table. Keywords: :func:`sizes_of`."""
    return sum(term.requested for term in terms(operator, direction, sizes_of(**sizes)))


def stream_passes(operator: str, direction: Direction, **sizes: Any) -> int:
    """Compulsory passes over one ``T x D`` stream, small terms left out. Keywords: :func:`sizes_of`."""
    return sum(term.passes for term in terms(operator, direction, sizes_of(**sizes)))


@dataclass(frozen=True)
class Operations:
    """Floating point operations, a multiply-add counted as two."""

    matrix: int
    """In matrix products, which tensor cores compute."""
    vector: int
    """All others, in fp32."""

    @property
    def total(self) -> int:
        return self.matrix + self.vector

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.matrix + other.matrix, self.vector + other.vector)


def operations(operator: str, direction: Direction, **sizes: Any) -> Operations:
    """What the equations in the kernels' files need, recomputed values included, halos and padding not.

    Only what grows with ``T x D`` is counted: softmaxes and sums over experts, queries and segments are left out.
    Keywords: :func:`sizes_of`.

    Raises:
        ValueError: the operator or the direction is unknown.
    """
    s = sizes_of(**sizes)
    terms(operator, direction, s)
    forward, numbers, e = direction == "forward", s.tokens * s.width, s.experts
    product = Operations(2 * e * numbers * s.width * (1 if forward else 2), 0)
    norm = Operations(0, numbers * (4 if forward else 9))  # y^2 and two gains; backward 2 dots, dgamma, 5 gains
    gate = Operations(0, numbers * e * (2 if forward else 4) * s.gated)  # logits; backward dW_g and dx
    if operator == "ragged_pool_gate":  # scores and sum; backward scores, g.o, two parts of do, dq
        return Operations(0, numbers * s.queries * (4 if forward else 10))
    if operator == "norm":
        return norm
    if operator == "hier_gate_mix_norm":  # mix; backward mix, delta, dh
        return norm + gate + Operations(0, numbers * e * (2 if forward else 5))
    if operator == "ms_dwconv":  # convolution, GELU, mix; backward also slope, dpre, db, dmu and two more convolutions
        taps, scales = sum(s.kernel_sizes), len(s.kernel_sizes)
        one = 2 * taps + (GELU + 2) * scales if forward else 6 * taps + (GELU + SLOPE + 5) * scales
        return Operations(0, numbers * one)
    if operator == "gated_tri_proj":  # bias, gate weight, sum; backward rowsum, gate weight twice, <dy, b>, db
        return product + gate + Operations(0, numbers * e * (3 if forward else 7))
    if s.width <= PROJECTION_WIDTH:
        return operations("gated_tri_proj", direction, **sizes) + norm
    return product + operations("hier_gate_mix_norm", direction, **sizes)


@dataclass(frozen=True)
class Ceilings:
    """What a device can do at best."""

    name: str
    bytes_per_s: float
    matrix_per_s: float
    """Operations a second of matrix products in the dtype at hand."""
    vector_per_s: float
    """fp32 operations a second outside of matrix products."""
    source: str = ""


def bound_seconds(bytes_count: float, done: Operations, ceilings: Ceilings) -> float:
    """The roofline: no kernel that moves these bytes and does these operations takes less time."""
    return max(
        bytes_count / ceilings.bytes_per_s,
        done.matrix / ceilings.matrix_per_s,
        done.vector / ceilings.vector_per_s,
    )
