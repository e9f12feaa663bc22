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
from typing import Any

from egmf_kernels import tiles
from egmf_kernels.ops.common.bytes import Direction, Sizes, Term
from egmf_kernels.ops.gated_expert_mix import bytes as gated_expert_mix
from egmf_kernels.ops.gated_tri_proj import bytes as gated_tri_proj
from egmf_kernels.ops.hier_gate_mix_norm import bytes as hier_gate_mix_norm
from egmf_kernels.ops.ms_dwconv import bytes as ms_dwconv
from egmf_kernels.ops.ragged_pool_gate import bytes as ragged_pool_gate
from egmf_kernels.select import PROJECTION_WIDTH

DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
GELU, SLOPE = 10, 8
"""Operations of the tanh-GELU and of its derivative, counted in ``gelu_and_slope``; an exponential is one."""

TERMS: dict[str, Callable[[Sizes, Direction], list[Term]]] = {
    "ragged_pool_gate": ragged_pool_gate.terms,
    "hier_gate_mix_norm": hier_gate_mix_norm.terms,
    "norm": hier_gate_mix_norm.norm_terms,
    "ms_dwconv": ms_dwconv.terms,
    "gated_tri_proj": gated_tri_proj.terms,
    "gated_expert_mix": gated_expert_mix.terms,
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
