"""``ragged_pool_gate``: K queries pool every (sample, modality) segment; the modality gate's softmax mixes them.

    a_tk = softmax_t(q_k . o_t / sqrt(D))   p_mk = sum_t a_tk o_t   beta_b = softmax_m(l_b / tau + log presence)
    P_bk = sum_m beta_bm p_mk

A segment is cut into chunks, so that a long one fills more than one multiprocessor; a chunk's program walks its tokens
with an online softmax, so each token is read once for all K queries: 1 pass forward. A second launch puts a segment's
chunks together in their order, computes the gate's softmax and mixes.

Inside a chunk each of ROWS lanes of tokens keeps a softmax of its own and the lanes meet once, at the chunk's end: a
token's row lies in one warp wherever it fits, so the loop has no barrier. Rows are cut into PIECES of BP columns
for that, because a layout spreads a wide row over warps. K is a constant: K scores of a row are K separate sums.

Backward reads o and writes do (2 passes): with g = dP and delta = g . p it needs no second look at the tokens,
``ds_t = beta a_t (g . o_t - delta)``, ``do_t = beta a_t g + ds_t q``, ``dq = sum_t ds_t o_t``, ``dbeta = sum_k delta``.
A segment of no tokens weighs 0 and gives zeros; a sample with no tokens at all gives zeros.

Which chunk a program has, it finds by itself: segment s begins at slot ``cu[s] // CHUNK + s``, which leaves every
segment room for its chunks. So the host need not know the lengths; slots that are not used end at once.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from egmf_kernels import tiles
from egmf_kernels.ops.common.blocks import put_block, row_block
from egmf_kernels.ops.common.launch import accumulate_in, launch
from egmf_kernels.ops.ragged_pool_gate.chunks import MIX_CHUNKS, MIX_COLUMNS, WAYS, chunking


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


_FLOOR: tl.constexpr = tl.constexpr(-3.0e38)
"""Where a lane's greatest score begins: finite, so that a lane without a token has no infinity to subtract."""


@triton.jit
def begun(CU, slot, first, last, stride, CHUNK, WAYS: tl.constexpr):
    """How many of the segments ``first, first + stride, ...`` before ``last`` begin at or before a slot."""
    s = first + tl.arange(0, WAYS) * stride
    begins = tl.load(CU + s, mask=s < last, other=0) // CHUNK + s
    return tl.sum(((begins <= slot) & (s < last)).to(tl.int32), 0)


@triton.jit
def chunk_of(CU, slot, S, CHUNK, WAYS: tl.constexpr):
    """Segment, first token and end of the chunk in a slot; where the slot is not used the end is not after the first.

    The segment is looked for among WAYS of them at once: every stride-th first, then those up to the next.
    """
    stride = tl.cdiv(S, WAYS)
    from_here = (begun(CU, slot, 0, S, stride, CHUNK, WAYS) - 1) * stride
    last = tl.minimum(from_here + stride, S)
    segment = from_here - 1
    for first in range(from_here, last, WAYS):
        segment += begun(CU, slot, first, last, 1, CHUNK, WAYS)
    begin = tl.load(CU + segment)
    low = begin + (slot - begin // CHUNK - segment) * CHUNK
    return segment, low, tl.minimum(low + CHUNK, tl.load(CU + segment + 1))


@triton.jit
def vectors(MATRIX, first_row, D, K: tl.constexpr, PIECES: tl.constexpr, BP: tl.constexpr):
    """K rows of a matrix in PIECES of BP columns each, as they are stored."""
    column = tl.arange(0, BP)
    found = ()
    for k in tl.static_range(K):
        for p in tl.static_range(PIECES):
            at = p * BP + column
            found = found + (tl.load(MATRIX + (first_row + k).to(tl.int64) * D + at, mask=at < D, other=0.0),)
    return found


@triton.jit
def token_rows(X, row, high, s_x, D, PIECES: tl.constexpr, BP: tl.constexpr, ACC: tl.constexpr):
    """Token rows in PIECES of BP columns, zeros from ``high`` on."""
    found = ()
    for p in tl.static_range(PIECES):
        column = p * BP + tl.arange(0, BP)
        found = found + (row_block(X, row, s_x, column, (row < high)[:, None] & (column < D)[None, :], ACC),)
    return found


@triton.jit
def dot_rows(x, vector, k: tl.constexpr, PIECES: tl.constexpr, ACC: tl.constexpr):
    """``x . vector_k`` of every row: one sum across lanes, whatever the number of pieces."""
    product = x[0] * vector[k * PIECES].to(ACC)[None, :]
    for p in tl.static_range(1, PIECES):
        product += x[p] * vector[k * PIECES + p].to(ACC)[None, :]
    return tl.sum(product, 1)


@triton.jit(do_not_specialize=["S", "CHUNK"])
def ragged_pool_gate_forward(X, Q, CU, PART, PEAK, TOTAL, S, D, CHUNK, scale, s_x,
                             WAYS: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
                             PIECES: tl.constexpr, BP: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    slot = tl.program_id(0)
    _, low, high = chunk_of(CU, slot, S, CHUNK, WAYS)
    if low < high:
        lane = tl.arange(0, ROWS)
        root = tl.cast(scale, ACC)
        q = vectors(Q, 0 * slot, D, K, PIECES, BP)
        peak, total, part = (), (), ()
        for k in tl.static_range(K):
            peak = peak + (tl.zeros((ROWS,), ACC) + _FLOOR,)
            total = total + (tl.zeros((ROWS,), ACC),)
            for p in tl.static_range(PIECES):
                part = part + (tl.zeros((ROWS, BP), ACC),)
        for first in range(low, high, ROWS * STEPS):
            x = ()
            for u in tl.static_range(STEPS):  # all loads first: they wait for memory together
                x = x + (token_rows(X, first + u * ROWS + lane, high, s_x, D, PIECES, BP, ACC),)
            peaks, totals, parts = (), (), ()
            for k in tl.static_range(K):
                scores = ()
                highest = peak[k]
                for u in tl.static_range(STEPS):
                    score = dot_rows(x[u], q, k, PIECES, ACC) * root
                    score = tl.where(first + u * ROWS + lane < high, score, float("-inf"))
                    scores = scores + (score,)
                    highest = tl.maximum(highest, score)
                shrink = tl.exp(peak[k] - highest)
                sum_k = total[k] * shrink
                sums = ()
                for p in tl.static_range(PIECES):
                    sums = sums + (part[k * PIECES + p] * shrink[:, None],)
                for u in tl.static_range(STEPS):
                    a = tl.exp(scores[u] - highest)
                    sum_k += a
                    added = ()
                    for p in tl.static_range(PIECES):
                        added = added + (sums[p] + a[:, None] * x[u][p],)
                    sums = added
                peaks, totals, parts = peaks + (highest,), totals + (sum_k,), parts + sums
            peak, total, part = peaks, totals, parts
        for k in tl.static_range(K):
            highest = tl.max(peak[k], 0)
            share = tl.exp(peak[k] - highest)
            tl.store(PEAK + slot * K + k, highest)
            tl.store(TOTAL + slot * K + k, tl.sum(share * total[k], 0))
            for p in tl.static_range(PIECES):
                column = p * BP + tl.arange(0, BP)
                merged = tl.sum(share[:, None] * part[k * PIECES + p], 0)
                tl.store(PART + (slot * K + k).to(tl.int64) * D + column, merged, mask=column < D)


@triton.jit(do_not_specialize=["CHUNK"])
def modality_mix_forward(LOGITS, CU, PART, PEAK, TOTAL, BETA, POOLED, LSE, P, D, M, CHUNK, inv_tau, K: tl.constexpr,
                         MP: tl.constexpr, NC: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Chunks to segments, NC at a time and in order, then the mix; a program has BC columns of one query's vector."""
    sample, k = tl.program_id(0), tl.program_id(2)
    column, modality = tl.program_id(1) * BC + tl.arange(0, BC), tl.arange(0, MP)
    column_ok = column < D
    beta = modality_weights(LOGITS, CU, sample, M, tl.cast(inv_tau, ACC), MP, ACC)
    if tl.program_id(1) + k == 0:
        tl.store(BETA + sample * M + modality, beta, mask=modality < M)
    mixed = tl.zeros((BC,), ACC)
    for m in range(0, M):
        segment = sample * M + m
        low, high = tl.load(CU + segment), tl.load(CU + segment + 1)
        slot, count = low // CHUNK + segment, tl.cdiv(high - low, CHUNK)
        peak = tl.zeros((1,), ACC) + _FLOOR
        total = tl.zeros((1,), ACC)
        part = tl.zeros((BC,), ACC)
        for first in range(0, count, NC):
            chunk = first + tl.arange(0, NC)
            row = (slot + chunk) * K + k
            ok = chunk < count
            block = row_block(PART, row, D, column, ok[:, None] & column_ok[None, :], ACC)
            peaks = tl.load(PEAK + row, mask=ok, other=_FLOOR)
            highest = tl.maximum(peak, tl.max(peaks, 0))
            shrink, share = tl.exp(peak - highest), tl.exp(peaks - highest)
            total = total * shrink + tl.sum(share * tl.load(TOTAL + row, mask=ok, other=0.0), 0)
            part = part * shrink + tl.sum(share[:, None] * block, 0)
            peak = highest
        part = part / tl.where(total > 0, total, 1.0)
        tl.store(POOLED + (segment * K + k).to(tl.int64) * D + column, part, mask=column_ok)
        logarithm = tl.where(total > 0, peak + tl.log(tl.where(total > 0, total, 1.0)), 0.0)
        if tl.program_id(1) == 0:
            tl.store(LSE + segment * K + k + tl.arange(0, 1), logarithm)
        mixed += tl.sum(tl.where(modality == m, beta, 0.0), 0) * part
    pointer = P + (sample * K + k).to(tl.int64) * D + column
    tl.store(pointer, mixed.to(P.dtype.element_ty), mask=column_ok)


@triton.jit
def modality_mix_backward(DP, POOLED, BETA, DELTA, DLOGITS, D, M, inv_tau,
                          K: tl.constexpr, MP: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """A sample's ``delta = g . p`` of each segment and query, and the gate's gradients from their sums."""
    sample = tl.program_id(0)
    column, modality = tl.arange(0, BD), tl.arange(0, MP)
    ok = modality < M
    block = ok[:, None] & (column < D)[None, :]
    dbeta = tl.zeros((MP,), ACC)
    for k in tl.static_range(K):
        g = tl.load(DP + (sample * K + k).to(tl.int64) * D + column, mask=column < D, other=0.0).to(ACC)
        delta = tl.sum(g[None, :] * row_block(POOLED, (sample * M + modality) * K + k, D, column, block, ACC), 1)
        tl.store(DELTA + (sample * M + modality) * K + k, delta, mask=ok)
        dbeta += delta
    beta = tl.load(BETA + sample * M + modality, mask=ok, other=0.0)
    dz = beta * (dbeta - tl.sum(beta * dbeta, 0)) * tl.cast(inv_tau, ACC)
    tl.store(DLOGITS + sample * M + modality, dz.to(DLOGITS.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["S", "CHUNK", "slots"])
def ragged_pool_gate_backward(DP, X, Q, CU, BETA, DELTA, LSE, DX, DQ, S, D, M, CHUNK, slots, scale, s_x,
                              WAYS: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
                              PIECES: tl.constexpr, BP: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    lane = tl.arange(0, ROWS)
    root = tl.cast(scale, ACC)
    q = vectors(Q, 0 * program, D, K, PIECES, BP)
    dq = ()
    for i in tl.static_range(K * PIECES):
        dq = dq + (tl.zeros((ROWS, BP), ACC),)
    for slot in range(program, slots, tl.num_programs(0)):
        segment, low, high = chunk_of(CU, slot, S, CHUNK, WAYS)
        if low < high:
            beta = tl.load(BETA + segment)
            g = vectors(DP, segment // M * K, D, K, PIECES, BP)
            lse, delta = (), ()
            for k in tl.static_range(K):
                lse = lse + (tl.load(LSE + segment * K + k),)
                delta = delta + (tl.load(DELTA + segment * K + k),)
            for first in range(low, high, ROWS * STEPS):
                x = ()
                for u in tl.static_range(STEPS):  # all loads first: they wait for memory together
                    x = x + (token_rows(X, first + u * ROWS + lane, high, s_x, D, PIECES, BP, ACC),)
                for u in tl.static_range(STEPS):
                    row = first + u * ROWS + lane
                    dx = ()
                    for p in tl.static_range(PIECES):
                        dx = dx + (tl.zeros((ROWS, BP), ACC),)
                    folded = ()
                    for k in tl.static_range(K):
                        a = tl.exp(dot_rows(x[u], q, k, PIECES, ACC) * root - lse[k]) * beta
                        a = tl.where(row < high, a, 0.0)
                        ds = a * (dot_rows(x[u], g, k, PIECES, ACC) - delta[k]) * root
                        spread = ()
                        for p in tl.static_range(PIECES):
                            g_p, q_p = g[k * PIECES + p].to(ACC)[None, :], q[k * PIECES + p].to(ACC)[None, :]
                            spread = spread + (dx[p] + a[:, None] * g_p + ds[:, None] * q_p,)
                            folded = folded + (dq[k * PIECES + p] + ds[:, None] * x[u][p],)
                        dx = spread
                    dq = folded
                    for p in tl.static_range(PIECES):
                        column = p * BP + tl.arange(0, BP)
                        put_block(DX, row, D, column, (row < high)[:, None] & (column < D)[None, :], dx[p])
    for k in tl.static_range(K):
        for p in tl.static_range(PIECES):
            column = p * BP + tl.arange(0, BP)
            pointer = DQ + (program * K + k).to(tl.int64) * D + column
            tl.store(pointer, tl.sum(dq[k * PIECES + p], 0), mask=column < D)


def forward(
    x_TD: torch.Tensor, queries_KD: torch.Tensor, logits_BM: torch.Tensor, cu_segments: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``P [B, K, D]``; ``beta [B, M]``, each segment's pooled ``[B M, K, D]`` and lse ``[B M, K]`` as accumulated."""
    tokens, width = x_TD.shape
    queries = queries_KD.shape[0]
    batch, modalities = logits_BM.shape
    segments = batch * modalities
    acc = accumulate_in(x_TD)
    kind = tiles.triton_dtype(acc)
    cut = chunking(tiles.lookup("ragged_pool_gate_forward", x_TD, width), tokens, width, segments, queries)
    part = x_TD.new_empty(cut.slots, queries, width, dtype=acc)
    peak, total = (x_TD.new_empty(cut.slots, queries, dtype=acc) for _ in range(2))
    launch(
        ragged_pool_gate_forward, (cut.slots if tokens else 0,),
        x_TD, queries_KD, cu_segments, part, peak, total, segments, width, cut.chunk, 1.0 / math.sqrt(width),
        x_TD.stride(0), WAYS=WAYS, K=queries, ACC=kind, **cut.compiled,
    )  # fmt: skip
    mixed = x_TD.new_empty(batch, queries, width)
    beta = x_TD.new_empty(batch, modalities, dtype=acc)
    pooled = x_TD.new_empty(segments, queries, width, dtype=acc)
    lse = x_TD.new_empty(segments, queries, dtype=acc)
    columns = min(MIX_COLUMNS, triton.next_power_of_2(width))
    launch(
        modality_mix_forward, (batch, triton.cdiv(width, columns), queries),
        logits_BM, cu_segments, part, peak, total, beta, pooled, lse, mixed, width, modalities, cut.chunk,
        1.0 / temperature,
        K=queries, MP=triton.next_power_of_2(modalities), NC=MIX_CHUNKS, BC=columns, ACC=kind, num_warps=4,
    )  # fmt: skip
    return mixed, beta, pooled, lse


def backward(
    dpooled_BKD: torch.Tensor,
    x_TD: torch.Tensor,
    queries_KD: torch.Tensor,
    logits_BM: torch.Tensor,
    cu_segments: torch.Tensor,
    beta_BM: torch.Tensor,
    pooled: torch.Tensor,
    lse: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the tokens, the queries and the modality logits."""
    tokens, width = x_TD.shape
    queries = queries_KD.shape[0]
    batch, modalities = logits_BM.shape
    segments = batch * modalities
    acc = accumulate_in(x_TD)
    kind = tiles.triton_dtype(acc)
    dpooled_BKD = dpooled_BKD.contiguous()
    delta = x_TD.new_empty(segments, queries, dtype=acc)
    dlogits = logits_BM.new_empty(batch, modalities)
    launch(
        modality_mix_backward, (batch,),
        dpooled_BKD, pooled, beta_BM, delta, dlogits, width, modalities, 1.0 / temperature,
        K=queries, MP=triton.next_power_of_2(modalities), BD=triton.next_power_of_2(width), ACC=kind,
        num_warps=4 if width <= 256 else 8,
    )  # fmt: skip
    tile = tiles.lookup("ragged_pool_gate_backward", x_TD, width)
    cut = chunking(tile, tokens, width, segments, queries)
    programs = min(tile["programs"], cut.slots) if tokens else 0
    dx = x_TD.new_empty(tokens, width)
    dq = x_TD.new_empty(programs, queries, width, dtype=acc)
    launch(
        ragged_pool_gate_backward, (programs,),
        dpooled_BKD, x_TD, queries_KD, cu_segments, beta_BM, delta, lse, dx, dq,
        segments, width, modalities, cut.chunk, cut.slots, 1.0 / math.sqrt(width), x_TD.stride(0),
        WAYS=WAYS, K=queries, ACC=kind, **cut.compiled,
    )  # fmt: skip
    return dx, dq.sum(0).to(queries_KD.dtype), dlogits
