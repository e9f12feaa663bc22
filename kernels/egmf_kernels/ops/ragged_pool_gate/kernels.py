"""``ragged_pool_gate``: K queries pool every (sample, modality) segment; the modality gate's softmax mixes them.

    a_tk = softmax_t(q_k . o_t / sqrt(D))   p_mk = sum_t a_tk o_t   beta_b = softmax_m(l_b / tau + log presence)
    P_bk = sum_m beta_bm p_mk

One program a segment walks its tokens with an online softmax, so each token is read once for all K queries: 1 pass
forward. (One program a sample could also weigh and add, in a single launch, but a batch has fewer samples than a GPU
has multiprocessors; backward needs every p_mk anyway, so writing it costs nothing.) A second launch computes the
gate's softmax and mixes.

Backward reads o and writes do (2 passes): with g = dP and delta = g . p it needs no second look at the tokens,
``ds_t = beta a_t (g . o_t - delta)``, ``do_t = beta a_t g + ds_t q``, ``dq = sum_t ds_t o_t``, ``dbeta = sum_k delta``.
A segment of no tokens weighs 0 and gives zeros; a sample with no tokens at all gives zeros.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from egmf_kernels import tiles
from egmf_kernels.ops.common.blocks import put_block, row_block
from egmf_kernels.ops.common.launch import accumulate_in, launch


@triton.jit
def modality_weights(LOGITS, CU, sample, M, inv_tau, MP: tl.constexpr, ACC: tl.constexpr):
    """Presence-masked softmax over a sample's modalities, ``[MP]``; zeros where nothing is present."""
    modality = tl.arange(0, MP)
    ok = modality < M
    low = tl.load(CU + sample * M + modality, mask=ok, other=0)
    high = tl.load(CU + sample * M + modality + 1, mask=ok, other=0)
    present = ok & (high > low)
    z = tl.load(LOGITS + sample * M + modality, mask=ok, other=0.0).to(ACC) * inv_tau
    top = tl.max(tl.where(present, z, float("-inf")), 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    p = tl.where(present, tl.exp(z - top), 0.0)
    total = tl.sum(p, 0)
    return p / tl.where(total > 0, total, 1.0)


@triton.jit
def ragged_pool_gate_forward(X, Q, CU, PART, LSE, D, K, scale, s_x,
                             KP: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    segment = tl.program_id(0)
    column, query = tl.arange(0, BD), tl.arange(0, KP)
    column_ok, query_ok = column < D, query < K
    block = query_ok[:, None] & column_ok[None, :]
    q = row_block(Q, query, D, column, block, ACC) * tl.cast(scale, ACC)
    low, high = tl.load(CU + segment), tl.load(CU + segment + 1)
    peak = tl.full((KP,), float("-inf"), ACC)
    total = tl.zeros((KP,), ACC)
    part = tl.zeros((KP, BD), ACC)
    for start in range(low, high, BT):
        row = start + tl.arange(0, BT)
        row_ok = row < high
        x = row_block(X, row, s_x, column, row_ok[:, None] & column_ok[None, :], ACC)
        s = tl.sum(x[:, None, :] * q[None, :, :], 2)
        s = tl.where(row_ok[:, None], s, float("-inf"))
        higher = tl.maximum(peak, tl.max(s, 0))
        shrink = tl.exp(peak - higher)
        a = tl.exp(s - higher[None, :])
        part = part * shrink[:, None] + tl.sum(a[:, :, None] * x[:, None, :], 0)
        total = total * shrink + tl.sum(a, 0)
        peak = higher
    safe = tl.where(total > 0, total, 1.0)
    put_block(PART, segment * K + query, D, column, block, part / safe[:, None])
    tl.store(LSE + segment * K + query, tl.where(total > 0, peak + tl.log(safe), 0.0), mask=query_ok)


@triton.jit
def modality_mix_forward(LOGITS, CU, PART, BETA, P, D, K, M, inv_tau,
                         KP: tl.constexpr, MP: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    sample = tl.program_id(0)
    column, query, modality = tl.arange(0, BD), tl.arange(0, KP), tl.arange(0, MP)
    block = (query < K)[:, None] & (column < D)[None, :]
    beta = modality_weights(LOGITS, CU, sample, M, tl.cast(inv_tau, ACC), MP, ACC)
    tl.store(BETA + sample * M + modality, beta, mask=modality < M)
    pooled = tl.zeros((KP, BD), ACC)
    for m in range(0, M):
        weight = tl.sum(tl.where(modality == m, beta, 0.0), 0)
        pooled += weight * row_block(PART, (sample * M + m) * K + query, D, column, block, ACC)
    put_block(P, sample * K + query, D, column, block, pooled)


@triton.jit(do_not_specialize=["S"])
def ragged_pool_gate_backward(DP, X, Q, CU, BETA, PART, LSE, DX, DQ, DBETA, S, D, K, M, scale, s_x,
                              KP: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    column, query = tl.arange(0, BD), tl.arange(0, KP)
    column_ok, query_ok = column < D, query < K
    block = query_ok[:, None] & column_ok[None, :]
    root = tl.cast(scale, ACC)
    q = row_block(Q, query, D, column, block, ACC) * root
    dq = tl.zeros((KP, BD), ACC)
    for segment in range(program, S, tl.num_programs(0)):
        low, high = tl.load(CU + segment), tl.load(CU + segment + 1)
        beta = tl.load(BETA + segment)
        g = row_block(DP, (segment // M) * K + query, D, column, block, ACC)
        delta = tl.sum(g * row_block(PART, segment * K + query, D, column, block, ACC), 1)
        tl.store(DBETA + segment, tl.sum(delta, 0))
        lse = tl.load(LSE + segment * K + query, mask=query_ok, other=0.0)
        for start in range(low, high, BT):
            row = start + tl.arange(0, BT)
            row_ok = row < high
            mask = row_ok[:, None] & column_ok[None, :]
            x = row_block(X, row, s_x, column, mask, ACC)
            s = tl.sum(x[:, None, :] * q[None, :, :], 2)
            a = tl.where(row_ok[:, None] & query_ok[None, :], tl.exp(s - lse[None, :]), 0.0) * beta
            ds = a * (tl.sum(x[:, None, :] * g[None, :, :], 2) - delta[None, :])
            dx = tl.sum(a[:, :, None] * g[None, :, :] + ds[:, :, None] * q[None, :, :], 1)
            put_block(DX, row, D, column, mask, dx)
            dq += tl.sum(ds[:, :, None] * x[:, None, :], 0)
    put_block(DQ, program * K + query, D, column, block, dq * root)


@triton.jit(do_not_specialize=["B"])
def modality_gate_backward(BETA, DBETA, DLOGITS, B, M, inv_tau,
                           MP: tl.constexpr, BB: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    sample, modality = tl.program_id(0) * BB + tl.arange(0, BB), tl.arange(0, MP)
    ok = (sample < B)[:, None] & (modality < M)[None, :]
    beta = row_block(BETA, sample, M, modality, ok, ACC)
    dbeta = row_block(DBETA, sample, M, modality, ok, ACC)
    dz = beta * (dbeta - tl.sum(beta * dbeta, 1)[:, None]) * tl.cast(inv_tau, ACC)
    put_block(DLOGITS, sample, M, modality, ok, dz)


def _queries_tile(tile: dict[str, int], padded: int) -> dict[str, int]:
    """The table's tile is for up to 4 queries; more queries take fewer rows and, at one row, more warps."""
    if padded <= 4:
        return dict(tile)
    rows = max(1, tile["BT"] * 4 // padded)
    wider = {"num_warps": min(16, tile["num_warps"] * 2)} if rows == 1 and "num_warps" in tile else {}
    return tile | {"BT": rows} | wider


def forward(
    x_TD: torch.Tensor, queries_KD: torch.Tensor, logits_BM: torch.Tensor, cu_segments: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``P [B, K, D]``; ``beta [B, M]``, each segment's pooled ``[B M, K, D]`` and lse ``[B M, K]`` as accumulated."""
    width, queries = x_TD.shape[1], queries_KD.shape[0]
    batch, modalities = logits_BM.shape
    acc = accumulate_in(x_TD)
    kind = tiles.triton_dtype(acc)
    pooled = x_TD.new_empty(batch, queries, width)
    beta = x_TD.new_empty(batch, modalities, dtype=acc)
    part = x_TD.new_empty(batch * modalities, queries, width, dtype=acc)
    lse = x_TD.new_empty(batch * modalities, queries, dtype=acc)
    padded, columns = triton.next_power_of_2(queries), triton.next_power_of_2(width)
    tile = _queries_tile(tiles.lookup("ragged_pool_gate_forward", x_TD, width), padded)
    launch(
        ragged_pool_gate_forward, (batch * modalities,),
        x_TD, queries_KD, cu_segments, part, lse, width, queries, 1.0 / math.sqrt(width), x_TD.stride(0),
        KP=padded, BD=columns, ACC=kind, **tile,
    )  # fmt: skip
    launch(
        modality_mix_forward, (batch,),
        logits_BM, cu_segments, part, beta, pooled, width, queries, modalities, 1.0 / temperature,
        KP=padded, MP=triton.next_power_of_2(modalities), BD=columns, ACC=kind, num_warps=8 if width > 512 else 4,
    )  # fmt: skip
    return pooled, beta, part, lse


def backward(
    dpooled_BKD: torch.Tensor,
    x_TD: torch.Tensor,
    queries_KD: torch.Tensor,
    logits_BM: torch.Tensor,
    cu_segments: torch.Tensor,
    beta_BM: torch.Tensor,
    part: torch.Tensor,
    lse: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the tokens, the queries and the modality logits."""
    tokens, width = x_TD.shape
    queries = queries_KD.shape[0]
    batch, modalities = logits_BM.shape
    acc = accumulate_in(x_TD)
    kind = tiles.triton_dtype(acc)
    padded = triton.next_power_of_2(queries)
    tile = _queries_tile(tiles.lookup("ragged_pool_gate_backward", x_TD, width), padded)
    programs = min(tile.pop("programs"), batch * modalities)
    dx = x_TD.new_empty(tokens, width)
    dq = x_TD.new_empty(programs, queries, width, dtype=acc)
    dbeta = x_TD.new_empty(batch, modalities, dtype=acc)
    dlogits = logits_BM.new_empty(batch, modalities)
    launch(
        ragged_pool_gate_backward, (programs,),
        dpooled_BKD.contiguous(), x_TD, queries_KD, cu_segments, beta_BM, part, lse, dx, dq, dbeta,
        batch * modalities, width, queries, modalities, 1.0 / math.sqrt(width), x_TD.stride(0),
        KP=padded, BD=triton.next_power_of_2(width), ACC=kind, **tile,
    )  # fmt: skip
    launch(
        modality_gate_backward, (triton.cdiv(batch, 64),),
        beta_BM, dbeta, dlogits, batch, modalities, 1.0 / temperature,
        MP=triton.next_power_of_2(modalities), BB=64, ACC=kind, num_warps=4,
    )  # fmt: skip
    return dx, dq.sum(0).to(queries_KD.dtype), dlogits
