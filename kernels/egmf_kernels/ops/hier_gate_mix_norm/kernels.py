"""``hier_gate_mix_norm``: both gate levels, the mix of the expert streams, the residual and RMSNorm in one pass.

    z_te  = (<g_e, x_t> + c_be) / tau            alpha_t = softmax_e(z_t)       w_te = alpha_te * beta_b,m(t)
    y_t   = x_t + sum_e w_te h_te                o_t = y_t * rsqrt(mean(y_t^2) + eps) * gamma

A program holds whole rows, so x and each h_e are read once and o is written once: E + 2 passes forward; gate and gamma
stay in its registers from row to row. Backward keeps alpha and 1/rms, recomputes y, and moves 2 E + 3 passes. With no
streams (E = 0) the same kernels are a plain RMSNorm, which is how gated_tri_proj's output is normed.

Parameter gradients are summed by a number of programs that depends on T alone, into fp32 partials that one sum folds:
no atomics, the same bits on every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from egmf_kernels import tiles
from egmf_kernels.ops.common.arguments import Gate
from egmf_kernels.ops.common.blocks import column_of, put_block, row_block
from egmf_kernels.ops.common.launch import accumulate_in, launch


@triton.jit
def rows_of(MATRIX, column, column_ok, D, E: tl.constexpr):
    """The E rows of a small matrix as they are stored, to stay in registers over a program's tokens."""
    rows = ()
    for e in tl.static_range(E):
        rows = rows + (tl.load(MATRIX + e * D + column, mask=column_ok, other=0.0),)
    return rows


@triton.jit
def gate_weights(x, gate, CONTEXT, sample, row_ok, inv_tau,
                 E: tl.constexpr, EP: tl.constexpr, GATED: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """``alpha [rows, EP]`` for rows x and the gate's vectors in registers; columns past E are 0."""
    expert = tl.arange(0, EP)
    z = tl.where((expert < E)[None, :], tl.zeros((x.shape[0], EP), ACC), float("-inf"))
    if GATED:
        for e in tl.static_range(E):
            g = gate[e].to(ACC)
            c = tl.load(CONTEXT + sample * E + e, mask=row_ok, other=0.0).to(ACC)
            z = tl.where((expert == e)[None, :], ((tl.sum(x * g[None, :], 1) + c) * inv_tau)[:, None], z)
    p = tl.exp(z - tl.max(z, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]


# Sums over a program's rows. A row of 1024 columns and more takes all warps, and its rows are summed inside a thread;
# a narrower row takes one or two, so that summing in the loop would be a barrier a step: there rows stay apart.


@triton.jit
def no_rows(BT: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr):
    if BD >= 1024:
        return tl.zeros((BD,), ACC)
    else:
        return tl.zeros((BT, BD), ACC)


@triton.jit
def with_rows(total, rows, BD: tl.constexpr):
    if BD >= 1024:
        return total + tl.sum(rows, 0)
    else:
        return total + rows


@triton.jit
def sum_of_rows(total, BD: tl.constexpr):
    if BD >= 1024:
        return total
    else:
        return tl.sum(total, 0)


@triton.jit(do_not_specialize=["T"])
def mix_norm_forward(X, H, GATE, CONTEXT, BETA, SEGMENT, GAMMA, O, ALPHA, RSTD, T, D, M, inv_tau, eps, s_x, s_h,
                     E: tl.constexpr, EP: tl.constexpr, GATED: tl.constexpr, WEIGHED: tl.constexpr,
                     BT: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    column, expert = tl.arange(0, BD), tl.arange(0, EP)
    column_ok = column < D
    gamma = tl.load(GAMMA + column, mask=column_ok, other=0.0)
    gate = ()
    if GATED:
        gate = rows_of(GATE, column, column_ok, D, E)
    tau, small = tl.cast(inv_tau, ACC), tl.cast(eps, ACC)
    for tile in range(tl.program_id(0), tl.cdiv(T, BT), tl.num_programs(0)):
        row = tile * BT + tl.arange(0, BT)
        row_ok = row < T
        ok = row_ok[:, None] & column_ok[None, :]
        y = row_block(X, row, s_x, column, ok, ACC)
        if E > 0:
            segment = tl.load(SEGMENT + row, mask=row_ok, other=0)
            alpha = gate_weights(y, gate, CONTEXT, segment // M, row_ok, tau, E, EP, GATED, ACC)
            put_block(ALPHA, row, E, expert, row_ok[:, None] & (expert < E)[None, :], alpha)
            if WEIGHED:
                alpha = alpha * tl.load(BETA + segment, mask=row_ok, other=0.0).to(ACC)[:, None]
            for e in tl.static_range(E):
                h = row_block(H[e], row, s_h[e], column, ok, ACC)
                y += column_of(alpha, e, expert)[:, None] * h
        rstd = tl.rsqrt(tl.sum(y * y, 1) / D + small)
        put_block(O, row, D, column, ok, y * rstd[:, None] * gamma.to(ACC)[None, :])
        tl.store(RSTD + row, rstd, mask=row_ok)


@triton.jit(do_not_specialize=["T"])
def mix_norm_backward(DO, X, H, GATE, BETA, SEGMENT, GAMMA, ALPHA, RSTD, DX, DH, DZ, PGATE, PGAMMA, T, D, inv_tau,
                      s_x, s_h, E: tl.constexpr, EP: tl.constexpr, GATED: tl.constexpr, WEIGHED: tl.constexpr,
                      BT: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    column = tl.arange(0, BD)
    column_ok = column < D
    expert = tl.arange(0, EP)
    gamma = tl.load(GAMMA + column, mask=column_ok, other=0.0).to(ACC)
    tau = tl.cast(inv_tau, ACC)
    dgamma = no_rows(BT, BD, ACC)
    gate, dgate = (), ()
    if GATED:
        gate = rows_of(GATE, column, column_ok, D, E)
    for e in tl.static_range(E):
        dgate = dgate + (no_rows(BT, BD, ACC),)
    for tile in range(program, tl.cdiv(T, BT), tl.num_programs(0)):
        row = tile * BT + tl.arange(0, BT)
        row_ok = row < T
        ok = row_ok[:, None] & column_ok[None, :]
        x = row_block(X, row, s_x, column, ok, ACC)
        do = row_block(DO, row, D, column, ok, ACC)
        rstd = tl.load(RSTD + row, mask=row_ok, other=0.0)
        y = x
        h = ()
        if E > 0:
            alpha = row_block(ALPHA, row, E, expert, row_ok[:, None] & (expert < E)[None, :], ACC)
            weight = alpha
            if WEIGHED:
                segment = tl.load(SEGMENT + row, mask=row_ok, other=0)
                beta = tl.load(BETA + segment, mask=row_ok, other=0.0).to(ACC)
                weight = alpha * beta[:, None]
            for e in tl.static_range(E):
                h = h + (row_block(H[e], row, s_h[e], column, ok, ACC),)
                y += column_of(weight, e, expert)[:, None] * h[e]
        unit = y * rstd[:, None]
        dgamma = with_rows(dgamma, do * unit, BD)
        do = do * gamma[None, :]
        dy = (do - unit * (tl.sum(do * unit, 1) / D)[:, None]) * rstd[:, None]
        dx = dy
        if E > 0:
            delta = tl.zeros((BT, EP), ACC)  # dL/dw, one column an expert
            for e in tl.static_range(E):
                delta = tl.where((expert == e)[None, :], tl.sum(dy * h[e], 1)[:, None], delta)
                put_block(DH[e], row, D, column, ok, column_of(weight, e, expert)[:, None] * dy)
            dbeta = tl.sum(alpha * delta, 1)
            if WEIGHED:
                delta = delta * beta[:, None]
            dz = alpha * (delta - tl.sum(alpha * delta, 1)[:, None]) * tau
            if GATED:
                folded = ()
                for e in tl.static_range(E):
                    dz_e = column_of(dz, e, expert)
                    dx += dz_e[:, None] * gate[e].to(ACC)[None, :]
                    folded = folded + (with_rows(dgate[e], dz_e[:, None] * x, BD),)
                dgate = folded
            if GATED or WEIGHED:
                put_block(DZ, row, E + 1, expert, row_ok[:, None] & (expert < E)[None, :], dz)
                tl.store(DZ + row.to(tl.int64) * (E + 1) + E, dbeta, mask=row_ok)
        put_block(DX, row, D, column, ok, dx)
    tl.store(PGAMMA + program * D + column, sum_of_rows(dgamma, BD), mask=column_ok)
    if GATED:
        for e in tl.static_range(E):
            tl.store(PGATE + (program * E + e) * D + column, sum_of_rows(dgate[e], BD), mask=column_ok)


@triton.jit
def segment_sum_kernel(V, CU, OUT, C, CP: tl.constexpr, BT: tl.constexpr, ACC: tl.constexpr):
    segment = tl.program_id(0)
    column = tl.arange(0, CP)
    low, high = tl.load(CU + segment), tl.load(CU + segment + 1)
    total = tl.zeros((CP,), ACC)
    for start in range(low, high, BT):
        row = start + tl.arange(0, BT)
        total += tl.sum(row_block(V, row, C, column, (row < high)[:, None] & (column < C)[None, :], ACC), 0)
    tl.store(OUT + segment * C + column, total, mask=column < C)


def segment_sum(values_TC: torch.Tensor, cu_segments: torch.Tensor) -> torch.Tensor:
    """Sum of each segment's rows ``[S, C]`` (C small), in a fixed order."""
    segments, columns = cu_segments.numel() - 1, values_TC.shape[1]
    out = values_TC.new_empty(segments, columns)
    launch(
        segment_sum_kernel, (segments,), values_TC, cu_segments.contiguous(), out, columns,
        CP=triton.next_power_of_2(columns), BT=64, ACC=tiles.triton_dtype(values_TC.dtype), num_warps=4,
    )  # fmt: skip
    return out


def gate_gradients(dz_TE1: torch.Tensor, gate: Gate) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Fold per-token gate gradients ``[T, E + 1]`` (experts' logits, modality weight) to ``d context``, ``d beta``."""
    context_BE, beta_BM = gate.context_BE, gate.beta_BM
    if context_BE is None and beta_BM is None:
        return None, None
    sums = segment_sum(dz_TE1, gate.cu_segments).view(-1, gate.modalities, dz_TE1.shape[1])
    dcontext = sums[:, :, :-1].sum(1).to(context_BE.dtype) if context_BE is not None else None
    dbeta = sums[:, :, -1].to(beta_BM.dtype).contiguous() if beta_BM is not None else None
    return dcontext, dbeta


def forward(
    x_TD: torch.Tensor,
    streams: Sequence[torch.Tensor],
    gate: Gate,
    gamma_D: torch.Tensor,
    temperature: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``o [T, D]``, ``alpha [T, E]`` and ``1/rms [T]`` (the last two in the accumulator's dtype)."""
    tokens, width = x_TD.shape
    experts = len(streams)
    acc = accumulate_in(x_TD)
    out = x_TD.new_empty(tokens, width)
    alpha = x_TD.new_empty(tokens, experts, dtype=acc)
    rstd = x_TD.new_empty(tokens, dtype=acc)
    tile = dict(tiles.lookup("mix_norm_forward" if experts else "norm_forward", x_TD, width))
    programs = min(tile.pop("programs"), triton.cdiv(tokens, tile["BT"]))
    launch(
        mix_norm_forward, (programs,),
        x_TD, tuple(streams) or (x_TD,), _or(gate.weight_ED, x_TD), _or(gate.context_BE, x_TD), _or(gate.beta_BM, x_TD),
        gate.segment_T, gamma_D, out, alpha, rstd, tokens, width, gate.modalities, 1.0 / temperature, eps,
        x_TD.stride(0), tuple(s.stride(0) for s in streams) or (0,),
        E=experts, EP=triton.next_power_of_2(max(experts, 1)), GATED=gate.gated, WEIGHED=gate.weighed,
        BD=triton.next_power_of_2(width), ACC=tiles.triton_dtype(acc), **tile,
    )  # fmt: skip
    return out, alpha, rstd


def backward(
    dout_TD: torch.Tensor,
    x_TD: torch.Tensor,
    streams: Sequence[torch.Tensor],
    gate: Gate,
    gamma_D: torch.Tensor,
    alpha_TE: torch.Tensor,
    rstd_T: torch.Tensor,
    temperature: float,
) -> tuple[
    torch.Tensor, list[torch.Tensor], torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor
]:
    """Gradients of x, the streams, gate, context, beta and gamma (None where the argument was None)."""
    tokens, width = x_TD.shape
    experts = len(streams)
    acc = accumulate_in(x_TD)
    dout_TD = dout_TD.contiguous()
    dx = x_TD.new_empty(tokens, width)
    dstreams = [x_TD.new_empty(tokens, width) for _ in streams]
    tile = dict(tiles.lookup("mix_norm_backward" if experts else "norm_backward", x_TD, width))
    programs = min(tile.pop("programs"), triton.cdiv(tokens, tile["BT"]))
    small = experts > 0 and (gate.gated or gate.weighed)
    dz = x_TD.new_empty(tokens if small else 0, experts + 1, dtype=acc)
    pgate = x_TD.new_empty(programs if gate.gated else 0, experts, width, dtype=acc)
    pgamma = x_TD.new_empty(programs, width, dtype=acc)
    launch(
        mix_norm_backward, (programs,),
        dout_TD, x_TD, tuple(streams) or (x_TD,), _or(gate.weight_ED, x_TD), _or(gate.beta_BM, x_TD), gate.segment_T,
        gamma_D, alpha_TE, rstd_T, dx, tuple(dstreams) or (dx,), dz, pgate, pgamma, tokens, width, 1.0 / temperature,
        x_TD.stride(0), tuple(s.stride(0) for s in streams) or (0,),
        E=experts, EP=triton.next_power_of_2(max(experts, 1)), GATED=gate.gated, WEIGHED=gate.weighed,
        BD=triton.next_power_of_2(width), ACC=tiles.triton_dtype(acc), **tile,
    )  # fmt: skip
    dgate = pgate.sum(0).to(gate.weight_ED.dtype) if gate.weight_ED is not None else None
    dcontext, dbeta = gate_gradients(dz, gate)
    return dx, dstreams, dgate, dcontext, dbeta, pgamma.sum(0).to(gamma_D.dtype)


def _or(tensor: torch.Tensor | None, stand_in: torch.Tensor) -> torch.Tensor:
    """A pointer for an argument that the kernel was compiled not to read."""
    return stand_in if tensor is None else tensor
