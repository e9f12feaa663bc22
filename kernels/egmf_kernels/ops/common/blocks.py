"""Pieces that several kernels share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_block(base, row, stride, column, mask, ACC: tl.constexpr):
    """``[rows, columns]`` of a row-major matrix in ACC; 64-bit row offsets, 0 where masked."""
    pointer = base + row.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(pointer, mask=mask, other=0.0).to(ACC)


@triton.jit
def put_block(base, row, stride, column, mask, value):
    """Store ``[rows, columns]`` in the matrix's own dtype."""
    pointer = base + row.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(pointer, value.to(base.dtype.element_ty), mask=mask)


@triton.jit
def column_of(matrix, index, columns):
    """Column ``index`` of a small ``[rows, C]`` tile (``columns`` is ``arange(C)``)."""
    return tl.sum(tl.where(columns[None, :] == index, matrix, 0.0), 1)
