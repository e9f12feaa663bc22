"""Bytes of ``ms_dwconv``, kernel by kernel and argument by argument (:mod:`egmf_kernels.tools.formulas`)."""

from __future__ import annotations

from egmf_kernels.ops.common.bytes import INDEX, Direction, Sizes, Small, Term, blocks, of_kernel
from egmf_kernels.ops.ms_dwconv.runs import run_length


def _rows_asked(s: Sizes, length: int, runs: int, before: int, after: int) -> int:
    """Rows that runs of ``length`` tokens load, each with ``before`` and ``after`` more, where tokens are."""
    spans = ((run * length - before, (run + 1) * length + after) for run in range(runs))
    return sum(max(0, min(s.tokens, high) - max(0, low)) for low, high in spans)


def terms(s: Sizes, direction: Direction) -> list[Term]:
    """A run of ``length`` tokens loads its own rows and a halo of R rows (backward 2 R of x, R of dout) at each end."""
    tile = s.tile(f"ms_dwconv_{direction}")
    taps, scales, reach = sum(s.kernel_sizes), len(s.kernel_sizes), max(s.kernel_sizes) // 2
    length = run_length(tile, s.tokens, s.width, 0 if direction == "forward" else 2 * reach)
    programs, columns = blocks(s.tokens, length * tile["CHUNKS"]), blocks(s.width, tile["BC"])
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
        return of_kernel("ms_dwconv_forward", s, {"X": (1, rows * row), "OUT": 1}, **small)
    rows = _rows_asked(s, length, runs, 2 * reach, 2 * reach)
    partial = programs * (taps + 2 * scales) * s.width * s.accumulator
    small |= {"SEGMENT": (s.tokens * INDEX, rows * columns * INDEX), "PARTIAL": partial}
    dout = _rows_asked(s, length, runs, reach, reach) * row
    return of_kernel("ms_dwconv_backward", s, {"DOUT": (1, dout), "X": (1, rows * row), "DX": 1}, **small) + of_kernel(
        "sum", s, {}, PARTIAL=partial + weights + bias + mu
    )
