"""``gated_tri_proj``: the gate's softmax, the experts' output projections and the residual as one matrix product.

    alpha_t = softmax_e((<g_e, x_t> + c_be) / tau)     w_te = alpha_te * beta_b,m(t)
    y_t     = x_t + sum_e w_te (W_e a_te + b_e)

The K axis of the product is the experts one after the other; each expert's accumulator is scaled by its gate weight in
fp32 and added, so no expert's output is ever written to memory, forward or backward. With P_e = dy W_e:

    da_e = w_e P_e    dw_e = rowsum(P_e * a_e) + <dy, b_e>    dW_e = dy^T (w_e a_e)    db_e = sum_t w_te dy_t

A small kernel writes alpha before the product (gates inside it spilled registers), and one after it turns dw into the
gradients of gate, context and x, and sums the bias's. dW is split over T into a number of programs that depends on T
alone. FLAT runs the loop over experts and the one over their columns as one, so that the pipeline is filled once.
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
from egmf_kernels.ops.hier_gate_mix_norm.kernels import _or, gate_gradients, gate_weights, rows_of


@triton.jit(do_not_specialize=["T"])
def expert_gate_forward(X, GATE, CONTEXT, BETA, SEGMENT, ALPHA, WEIGHT, T, D, M, inv_tau, s_x,
                        E: tl.constexpr, EP: tl.constexpr, GATED: tl.constexpr, WEIGHED: tl.constexpr,
                        BT: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """``alpha [T, E]``, and ``w [E, T]`` as the products read it: of one expert, token after token."""
    column, expert = tl.arange(0, BD), tl.arange(0, EP)
    column_ok = column < D
    gate = ()
    if GATED:
        gate = rows_of(GATE, column, column_ok, D, E)
    tau = tl.cast(inv_tau, ACC)
    for tile in range(tl.program_id(0), tl.cdiv(T, BT), tl.num_programs(0)):
        row = tile * BT + tl.arange(0, BT)
        row_ok = row < T
        x = tl.zeros((BT, BD), ACC)
        if GATED:
            x = row_block(X, row, s_x, column, row_ok[:, None] & column_ok[None, :], ACC)
        segment = tl.load(SEGMENT + row, mask=row_ok, other=0)
        alpha = gate_weights(x, gate, CONTEXT, segment // M, row_ok, tau, E, EP, GATED, ACC)
        narrow = row_ok[:, None] & (expert < E)[None, :]
        put_block(ALPHA, row, E, expert, narrow, alpha)
        if WEIGHED:
            alpha = alpha * tl.load(BETA + segment, mask=row_ok, other=0.0).to(ACC)[:, None]
        tl.store(WEIGHT + expert[None, :] * T + row[:, None], alpha, mask=narrow)


@triton.jit
def tile_of(program, rows, columns, GROUP: tl.constexpr):
    """Tile indices in an order that walks GROUP row tiles together, so that their operands meet in L2."""
    in_group = GROUP * columns
    first = (program // in_group) * GROUP
    size = tl.minimum(rows - first, GROUP)
    return first + (program % in_group) % size, (program % in_group) // size


@triton.jit
def expert_of(tensors, strides, e, E: tl.constexpr):
    """Pointer and row stride of expert ``e``, known only when running: a loop over experts stays one loop."""
    base, stride = tensors[0], strides[0]
    for i in tl.static_range(1, E):
        if e == i:
            base, stride = tensors[i], strides[i]
    return base, stride


@triton.jit(do_not_specialize=["T"])
def gated_tri_proj_forward(X, A, W, BIAS, WEIGHT, Y, T, D, s_x, s_a,
                           E: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr,
                           BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, FLAT: tl.constexpr,
                           ACC: tl.constexpr):  # fmt: skip
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(T, BM), tl.cdiv(D, BN), GROUP)
    row = tile_m * BM + tl.arange(0, BM)
    column = tile_n * BN + tl.arange(0, BN)
    row_ok, column_ok = row < T, column < D
    # Rows past the end read the last row and are masked at the store: unmasked loads keep the pipeline simple.
    near = tl.minimum(row, T - 1).to(tl.int64)
    inner = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), ACC)
    for e in tl.range(0, E, flatten=FLAT):
        base, stride = expert_of(A, s_a, e, E)
        a_pointer = base + near[:, None] * stride + inner[None, :]
        w_pointer = W + (e * D + column[None, :]) * D + inner[:, None]
        part = tl.zeros((BM, BN), ACC)
        for k in range(0, D, BK):
            if EVEN:
                a = tl.load(a_pointer)
                w = tl.load(w_pointer)
            else:
                k_ok = k + inner < D
                a = tl.load(a_pointer, mask=k_ok[None, :], other=0.0)
                w = tl.load(w_pointer, mask=k_ok[:, None] & column_ok[None, :], other=0.0)
            a_pointer += BK
            w_pointer += BK
            part = tl.dot(a, w, part, input_precision="ieee", out_dtype=ACC)
        bias = tl.load(BIAS + e * D + column, mask=column_ok, other=0.0).to(ACC)
        w_e = tl.load(WEIGHT + e * T + row, mask=row_ok, other=0.0)
        acc += w_e[:, None] * (part + bias[None, :])
    mask = row_ok[:, None] & column_ok[None, :]
    acc += row_block(X, row, s_x, column, mask, ACC)
    put_block(Y, row, D, column, mask, acc)


@triton.jit(do_not_specialize=["T"])
def gated_tri_proj_backward_a(DY, A, W, WEIGHT, DA, PDOT, T, D, s_a,
                              E: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr,
                              BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, FLAT: tl.constexpr,
                              ACC: tl.constexpr):  # fmt: skip
    """da_e and this column tile's share of rowsum(P_e * a_e), ``PDOT [tiles, T, E]``."""
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(T, BM), tl.cdiv(D, BN), GROUP)
    row = tile_m * BM + tl.arange(0, BM)
    column = tile_n * BN + tl.arange(0, BN)
    row_ok, column_ok = row < T, column < D
    near = tl.minimum(row, T - 1).to(tl.int64)
    inner = tl.arange(0, BK)
    mask = row_ok[:, None] & column_ok[None, :]
    for e in tl.range(0, E, flatten=FLAT):
        base, stride = expert_of(A, s_a, e, E)
        target, _ = expert_of(DA, s_a, e, E)
        d_pointer = DY + near[:, None] * D + inner[None, :]
        w_pointer = W + (e * D + inner[:, None]) * D + column[None, :]
        part = tl.zeros((BM, BN), ACC)
        for k in range(0, D, BK):
            if EVEN:
                d = tl.load(d_pointer)
                w = tl.load(w_pointer)
            else:
                k_ok = k + inner < D
                d = tl.load(d_pointer, mask=k_ok[None, :], other=0.0)
                w = tl.load(w_pointer, mask=k_ok[:, None] & column_ok[None, :], other=0.0)
            d_pointer += BK
            w_pointer += BK * D
            part = tl.dot(d, w, part, input_precision="ieee", out_dtype=ACC)
        a = row_block(base, row, stride, column, mask, ACC)
        pointer = PDOT + (tile_n * T + row.to(tl.int64)) * E + e
        tl.store(pointer, tl.sum(part * a, 1), mask=row_ok)
        w_e = tl.load(WEIGHT + e * T + row, mask=row_ok, other=0.0)
        put_block(target, row, D, column, mask, w_e[:, None] * part)


@triton.jit(do_not_specialize=["T", "span"])
def gated_tri_proj_backward_w(DY, A, WEIGHT, PW, T, D, span, s_a,
                              E: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                              BK: tl.constexpr, FLAT: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """``dW_e`` over this split's tokens: a BM (out) x BN (in) tile, tokens BK at a time.

    dy is loaded as it is multiplied, out x tokens: scaled in registers, it is the product's first operand there.
    """
    tiles_n = tl.cdiv(D, BN)
    tile_m, tile_n = tl.program_id(0) // tiles_n, tl.program_id(0) % tiles_n
    split = tl.program_id(1)
    out = tile_m * BM + tl.arange(0, BM)
    column = tile_n * BN + tl.arange(0, BN)
    out_ok, column_ok = out < D, column < D
    low = split * span
    high = tl.minimum(low + span, T)
    for e in tl.range(0, E, flatten=FLAT):
        base, stride = expert_of(A, s_a, e, E)
        part = tl.zeros((BM, BN), ACC)
        for start in range(low, high, BK):
            row = start + tl.arange(0, BK)
            row_ok = row < high
            wide = row.to(tl.int64)
            d = tl.load(DY + wide[None, :] * D + out[:, None], mask=row_ok[None, :] & out_ok[:, None], other=0.0)
            a = tl.load(base + wide[:, None] * stride + column[None, :], mask=row_ok[:, None] & column_ok[None, :],
                        other=0.0)  # fmt: skip
            w_e = tl.load(WEIGHT + e * T + row, mask=row_ok, other=0.0)
            scaled = (d.to(ACC) * w_e[None, :]).to(d.dtype)
            part = tl.dot(scaled, a, part, input_precision="ieee", out_dtype=ACC)
        put_block(PW, (split * E + e) * D + out, D, column, out_ok[:, None] & column_ok[None, :], part)


@triton.jit(do_not_specialize=["T"])
def expert_gate_backward(DY, X, BIAS, GATE, ALPHA, BETA, SEGMENT, PDOT, DX, DZ, PGATE, PBIAS, T, D, pieces, inv_tau,
                         s_x, E: tl.constexpr, EP: tl.constexpr, GATED: tl.constexpr, WEIGHED: tl.constexpr,
                         BT: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Gradients of gate, context, x and bias. Sums over tokens stay apart by row until the program's end."""
    program = tl.program_id(0)
    column, expert = tl.arange(0, BD), tl.arange(0, EP)
    column_ok, expert_ok = column < D, expert < E
    tau = tl.cast(inv_tau, ACC)
    bias = rows_of(BIAS, column, column_ok, D, E)
    gate, dgate, dbias = (), (), ()
    if GATED:
        gate = rows_of(GATE, column, column_ok, D, E)
    for e in tl.static_range(E):
        dgate = dgate + (tl.zeros((BT, BD), ACC),)
        dbias = dbias + (tl.zeros((BT, BD), ACC),)
    for tile in range(program, tl.cdiv(T, BT), tl.num_programs(0)):
        row = tile * BT + tl.arange(0, BT)
        row_ok = row < T
        ok = row_ok[:, None] & column_ok[None, :]
        narrow = row_ok[:, None] & expert_ok[None, :]
        dy = row_block(DY, row, D, column, ok, ACC)
        alpha = row_block(ALPHA, row, E, expert, narrow, ACC)
        delta = tl.zeros((BT, EP), ACC)
        for piece in range(0, pieces):
            delta += row_block(PDOT, piece * T + row, E, expert, narrow, ACC)
        for e in tl.static_range(E):
            b = tl.sum(dy * bias[e].to(ACC)[None, :], 1)
            delta += tl.where((expert == e)[None, :], b[:, None], 0.0)
        dbeta = tl.sum(alpha * delta, 1)
        weight = alpha
        if WEIGHED:
            segment = tl.load(SEGMENT + row, mask=row_ok, other=0)
            beta = tl.load(BETA + segment, mask=row_ok, other=0.0).to(ACC)[:, None]
            delta, weight = delta * beta, alpha * beta
        folded = ()
        for e in tl.static_range(E):
            folded = folded + (dbias[e] + column_of(weight, e, expert)[:, None] * dy,)
        dbias = folded
        dz = alpha * (delta - tl.sum(alpha * delta, 1)[:, None]) * tau
        put_block(DZ, row, E + 1, expert, narrow, dz)
        tl.store(DZ + row.to(tl.int64) * (E + 1) + E, dbeta, mask=row_ok)
        dx = dy
        if GATED:
            x = row_block(X, row, s_x, column, ok, ACC)
            folded = ()
            for e in tl.static_range(E):
                dz_e = column_of(dz, e, expert)
                dx += dz_e[:, None] * gate[e].to(ACC)[None, :]
                folded = folded + (dgate[e] + dz_e[:, None] * x,)
            dgate = folded
        put_block(DX, row, D, column, ok, dx)
    for e in tl.static_range(E):
        tl.store(PBIAS + (program * E + e) * D + column, tl.sum(dbias[e], 0), mask=column_ok)
        if GATED:
            tl.store(PGATE + (program * E + e) * D + column, tl.sum(dgate[e], 0), mask=column_ok)


def forward(
    x_TD: torch.Tensor,
    experts: Sequence[torch.Tensor],
    weight_EDD: torch.Tensor,
    bias_ED: torch.Tensor,
    gate: Gate,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``y [T, D]``, ``alpha [T, E]`` and ``w [E, T]`` (the last two in the accumulator's dtype)."""
    tokens, width = x_TD.shape
    count = len(experts)
    acc = accumulate_in(x_TD)
    y = x_TD.new_empty(tokens, width)
    alpha, weight_ET = x_TD.new_empty(tokens, count, dtype=acc), x_TD.new_empty(count, tokens, dtype=acc)
    tile = dict(tiles.lookup("expert_gate_forward", x_TD, width))
    programs = min(tile.pop("programs"), triton.cdiv(tokens, tile["BT"]))
    launch(
        expert_gate_forward, (programs,),
        x_TD, _or(gate.weight_ED, x_TD), _or(gate.context_BE, x_TD), _or(gate.beta_BM, x_TD), gate.segment_T, alpha,
        weight_ET, tokens, width, gate.modalities, 1.0 / temperature, x_TD.stride(0),
        E=count, EP=triton.next_power_of_2(count), GATED=gate.gated, WEIGHED=gate.weighed,
        BD=triton.next_power_of_2(width), ACC=tiles.triton_dtype(acc), **tile,
    )  # fmt: skip
    tile = tiles.lookup("gated_tri_proj_forward", x_TD, width)
    launch(
        gated_tri_proj_forward, (triton.cdiv(tokens, tile["BM"]) * triton.cdiv(width, tile["BN"]),),
        x_TD, tuple(experts), weight_EDD, bias_ED, weight_ET, y, tokens, width,
        x_TD.stride(0), tuple(a.stride(0) for a in experts),
        E=count, EVEN=width % tile["BK"] == 0 and width % tile["BN"] == 0,
        ACC=tiles.triton_dtype(acc), **tile,
    )  # fmt: skip
    return y, alpha, weight_ET


def backward(
    dy_TD: torch.Tensor,
    x_TD: torch.Tensor,
    experts: Sequence[torch.Tensor],
    weight_EDD: torch.Tensor,
    bias_ED: torch.Tensor,
    gate: Gate,
    alpha_TE: torch.Tensor,
    weight_ET: torch.Tensor,
    temperature: float,
) -> tuple[
    torch.Tensor, list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None,
    torch.Tensor | None,
]:  # fmt: skip
    """Gradients of x, the experts, weight, bias, gate, context and beta (None where the argument was None)."""
    tokens, width = x_TD.shape
    count = len(experts)
    acc = accumulate_in(x_TD)
    kind = tiles.triton_dtype(acc)
    dy_TD = dy_TD.contiguous()
    strides = tuple(a.stride(0) for a in experts)

    tile = tiles.lookup("gated_tri_proj_backward_a", x_TD, width)
    pieces = triton.cdiv(width, tile["BN"])
    dexperts = [x_TD.new_empty(tokens, width) for _ in experts]
    pdot = x_TD.new_empty(pieces, tokens, count, dtype=acc)
    launch(
        gated_tri_proj_backward_a, (triton.cdiv(tokens, tile["BM"]) * pieces,),
        dy_TD, tuple(experts), weight_EDD, weight_ET, tuple(dexperts), pdot, tokens, width, strides,
        E=count, EVEN=width % tile["BK"] == 0 and width % tile["BN"] == 0, ACC=kind, **tile,
    )  # fmt: skip

    tile = dict(tiles.lookup("gated_tri_proj_backward_w", x_TD, width))
    span = triton.cdiv(triton.cdiv(tokens, tile.pop("splits")), tile["BK"]) * tile["BK"]
    splits = triton.cdiv(tokens, span) if tokens else 0
    pweight = x_TD.new_empty(splits, count, width, width, dtype=acc)
    launch(
        gated_tri_proj_backward_w, (triton.cdiv(width, tile["BM"]) * triton.cdiv(width, tile["BN"]), splits),
        dy_TD, tuple(experts), weight_ET, pweight, tokens, width, span, strides,
        E=count, ACC=kind, **tile,
    )  # fmt: skip
    dweight = pweight.sum(0).to(weight_EDD.dtype)

    tile = dict(tiles.lookup("expert_gate_backward", x_TD, width))
    programs = min(tile.pop("programs"), triton.cdiv(tokens, tile["BT"]))
    dx = x_TD.new_empty(tokens, width)
    dz = x_TD.new_empty(tokens, count + 1, dtype=acc)
    pbias = x_TD.new_empty(programs, count, width, dtype=acc)
    pgate = x_TD.new_empty(programs if gate.gated else 0, count, width, dtype=acc)
    launch(
        expert_gate_backward, (programs,),
        dy_TD, x_TD, bias_ED, _or(gate.weight_ED, x_TD), alpha_TE, _or(gate.beta_BM, x_TD), gate.segment_T, pdot,
        dx, dz, pgate, pbias, tokens, width, pieces, 1.0 / temperature, x_TD.stride(0),
        E=count, EP=triton.next_power_of_2(count), GATED=gate.gated, WEIGHED=gate.weighed,
        BD=triton.next_power_of_2(width), ACC=kind, **tile,
    )  # fmt: skip
    dbias = pbias.sum(0).to(bias_ED.dtype)
    dgate = pgate.sum(0).to(gate.weight_ED.dtype) if gate.weight_ED is not None else None
    dcontext, dbeta = gate_gradients(dz, gate)
    return dx, dexperts, dweight, dbias, dgate, dcontext, dbeta
