"""``ms_dwconv``: depthwise convolutions of several sizes inside segments, GELU each, mixed.

    pre_s[t] = b_s + sum_j w_s[j] x[t + j - k_s // 2]   (0 outside the token's own segment)
    out[t]   = sum_s mu_s gelu(pre_s[t])

A program slides over ``CHUNKS`` runs of ``length`` consecutive tokens at once, for BC channels. It keeps a window of
2 R + 1 rows in registers (R = largest k // 2), so each row is loaded once per run instead of once per tap: requested
bytes are (length + 2 R) / length of one pass, where taps loaded one by one would ask for 7.

Backward slides the same way and recomputes ``pre``; the window of dx is filled from the centre outwards (each centre
adds to its 2 R + 1 neighbours), so x and dout are read and dx is written once: 3 passes. Parameter gradients stay in
registers over a program's runs and leave as fp32 partials, from a number of programs that depends on T alone.

GELU is the tanh form: exact GELU's erf costs twice the instructions, and on this kernel instructions are the bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from egmf_kernels import tiles
from egmf_kernels.ops.common.launch import accumulate_in, launch
from egmf_kernels.ops.ms_dwconv.runs import run_length

# z = 2 sqrt(2 / pi) (x + 0.044715 x^3) times log2(e), so that one exp2 does; the slope's share is without log2(e).
_LINEAR: tl.constexpr = tl.constexpr(1.5957691216057308 * 1.4426950408889634)
_CUBIC: tl.constexpr = tl.constexpr(1.5957691216057308 * 1.4426950408889634 * 0.044715)
_SLOPE: tl.constexpr = tl.constexpr(1.5957691216057308)
_SLOPE_SQUARE: tl.constexpr = tl.constexpr(1.5957691216057308 * 0.134145)


@triton.jit
def gelu(x):
    """tanh-GELU as ``x sigmoid(2 u)``; where the exponential overflows the quotient is 0, as it must be."""
    return x / (1.0 + tl.exp2(-x * (_LINEAR + _CUBIC * (x * x))))


@triton.jit
def gelu_and_slope(x):
    """tanh-GELU and its derivative.

    The exponential is of -|2 u|: it cannot overflow, and ``s (1 - s) = t / (1 + t)^2`` loses no digits near s = 1.
    """
    square = x * x
    z = x * (_LINEAR + _CUBIC * square)
    t = tl.exp2(-tl.abs(z))
    inverse = 1.0 / (1.0 + t)
    s = tl.where(z >= 0.0, 1.0, t) * inverse
    return x * s, s + x * (t * inverse * inverse) * (_SLOPE + _SLOPE_SQUARE * square)


@triton.jit
def load_row(X, SEGMENT, row, T, s_x, channel, channel_ok, ACC: tl.constexpr):
    """One token row a run ``[CHUNKS, BC]`` and its segment ``[CHUNKS]`` (-1 outside the tokens)."""
    ok = (row >= 0) & (row < T)
    pointer = X + row.to(tl.int64)[:, None] * s_x + channel[None, :]
    x = tl.load(pointer, mask=ok[:, None] & channel_ok[None, :], other=0.0).to(ACC)
    return x, tl.load(SEGMENT + row, mask=ok, other=-1)


@triton.jit
def load_taps(W, BIAS, MU, channel, channel_ok, D, SIZES: tl.constexpr, SCALES: tl.constexpr,
              R: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Every tap of every scale as a ``[1, BC]`` row, then biases, then the scales' weights."""
    taps, bias, mu = (), (), ()
    for s in tl.static_range(SCALES):
        for i in tl.static_range(2 * R + 1):
            if (i >= R - SIZES[s] // 2) and (i <= R + SIZES[s] // 2):
                w = tl.load(W[s] + channel * SIZES[s] + i - R + SIZES[s] // 2, mask=channel_ok, other=0.0).to(ACC)
                taps = taps + (w[None, :],)
        bias = bias + (tl.load(BIAS + s * D + channel, mask=channel_ok, other=0.0).to(ACC)[None, :],)
        mu = mu + (tl.load(MU + s).to(ACC),)
    return taps, bias, mu


@triton.jit
def inside_window(window, segments, first: tl.constexpr, R: tl.constexpr):
    """The 2 R + 1 rows from ``first`` on, with those of another segment than the middle one's zeroed."""
    inside = ()
    for i in tl.static_range(2 * R + 1):
        same = segments[first + i] == segments[first + R]
        inside = inside + (tl.where(same[:, None], window[first + i], 0.0),)
    return inside


@triton.jit
def before_gelu(near, taps, bias, s: tl.constexpr, SIZES: tl.constexpr, OFFSETS: tl.constexpr, R: tl.constexpr):
    """``pre_s`` of one row a run."""
    pre = bias[s] + near[R] * taps[OFFSETS[s] + SIZES[s] // 2]
    for i in tl.static_range(2 * R + 1):
        if (i >= R - SIZES[s] // 2) and (i <= R + SIZES[s] // 2) and (i != R):
            pre += near[i] * taps[OFFSETS[s] + i - R + SIZES[s] // 2]
    return pre


@triton.jit(do_not_specialize=["T", "length"])
def ms_dwconv_forward(X, W, BIAS, MU, SEGMENT, OUT, T, D, length, s_x,
                      SIZES: tl.constexpr, OFFSETS: tl.constexpr, SCALES: tl.constexpr, R: tl.constexpr,
                      CHUNKS: tl.constexpr, BC: tl.constexpr, STEPS: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    start = (tl.program_id(0) * CHUNKS + tl.arange(0, CHUNKS)) * length
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    channel_ok = channel < D
    taps, bias, mu = load_taps(W, BIAS, MU, channel, channel_ok, D, SIZES, SCALES, R, ACC)
    window, segments = (), ()
    for i in tl.static_range(2 * R):
        x, segment = load_row(X, SEGMENT, start + i - R, T, s_x, channel, channel_ok, ACC)
        window, segments = window + (x,), segments + (segment,)
    for step in range(0, length, STEPS):
        for u in tl.static_range(STEPS):  # all loads first: they wait for memory together
            x, segment = load_row(X, SEGMENT, start + step + u + R, T, s_x, channel, channel_ok, ACC)
            window, segments = window + (x,), segments + (segment,)
        for u in tl.static_range(STEPS):
            near = inside_window(window, segments, u, R)
            out = tl.zeros((CHUNKS, BC), ACC)
            for s in tl.static_range(SCALES):
                out += mu[s] * gelu(before_gelu(near, taps, bias, s, SIZES, OFFSETS, R))
            row = start + step + u
            pointer = OUT + row.to(tl.int64)[:, None] * D + channel[None, :]
            tl.store(pointer, out.to(OUT.dtype.element_ty), mask=(row < T)[:, None] & channel_ok[None, :])
        window, segments = window[STEPS:], segments[STEPS:]


@triton.jit(do_not_specialize=["T", "length"])
def ms_dwconv_backward(DOUT, X, W, BIAS, MU, SEGMENT, DX, PARTIAL, T, D, length, s_x,
                       SIZES: tl.constexpr, OFFSETS: tl.constexpr, SCALES: tl.constexpr, TAPS: tl.constexpr,
                       R: tl.constexpr, CHUNKS: tl.constexpr, BC: tl.constexpr, STEPS: tl.constexpr,
                       ACC: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    start = (program * CHUNKS + tl.arange(0, CHUNKS)) * length
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    channel_ok = channel < D
    taps, bias, mu = load_taps(W, BIAS, MU, channel, channel_ok, D, SIZES, SCALES, R, ACC)
    window, segments, dwindow = (), (), ()
    for i in tl.static_range(2 * R):
        x, segment = load_row(X, SEGMENT, start + i - 2 * R, T, s_x, channel, channel_ok, ACC)
        window, segments = window + (x,), segments + (segment,)
        dwindow = dwindow + (tl.zeros((CHUNKS, BC), ACC),)
    total = ()  # d taps, then d bias, then d mu (per channel)
    for i in tl.static_range(TAPS + 2 * SCALES):
        total = total + (tl.zeros((CHUNKS, BC), ACC),)
    for first in range(-R, length + R, STEPS):
        douts = ()
        for u in tl.static_range(STEPS):  # all loads first: they wait for memory together
            centre = start + first + u
            x, segment = load_row(X, SEGMENT, centre + R, T, s_x, channel, channel_ok, ACC)
            window, segments = window + (x,), segments + (segment,)
            dout_ok = ((centre >= 0) & (centre < T))[:, None] & channel_ok[None, :]
            pointer = DOUT + centre.to(tl.int64)[:, None] * D + channel[None, :]
            douts = douts + (tl.load(pointer, mask=dout_ok, other=0.0).to(ACC),)
        for u in tl.static_range(STEPS):
            step = first + u
            near = inside_window(window, segments, u, R)
            # Halo centres only send gradient into this run's rows; their parameter gradients belong to the next run.
            own = tl.cast((step >= 0) & (step < length), ACC)
            dwindow = dwindow + (tl.zeros((CHUNKS, BC), ACC),)
            spread = ()
            for i in tl.static_range(2 * R + 1):
                spread = spread + (tl.zeros((CHUNKS, BC), ACC),)
            new, dbias, dmu = (), (), ()
            for s in tl.static_range(SCALES):
                value, slope = gelu_and_slope(before_gelu(near, taps, bias, s, SIZES, OFFSETS, R))
                dpre = douts[u] * mu[s] * slope
                mine = dpre * own
                widened = ()
                for i in tl.static_range(2 * R + 1):
                    if (i >= R - SIZES[s] // 2) and (i <= R + SIZES[s] // 2):
                        new = new + (total[OFFSETS[s] + i - R + SIZES[s] // 2] + mine * near[i],)
                        widened = widened + (spread[i] + dpre * taps[OFFSETS[s] + i - R + SIZES[s] // 2],)
                    else:
                        widened = widened + (spread[i],)
                spread = widened
                dbias = dbias + (total[TAPS + s] + mine,)
                dmu = dmu + (total[TAPS + SCALES + s] + douts[u] * value * own,)
            total = new + dbias + dmu
            filled = ()
            for i in tl.static_range(2 * R + 1):
                same = segments[u + i] == segments[u + R]
                filled = filled + (dwindow[i] + tl.where(same[:, None], spread[i], 0.0),)
            done = start + step - R
            mask = ((done >= start) & (done < T))[:, None] & channel_ok[None, :]
            pointer = DX + done.to(tl.int64)[:, None] * D + channel[None, :]
            tl.store(pointer, filled[0].to(DX.dtype.element_ty), mask=mask)
            dwindow = filled[1:]
        window, segments = window[STEPS:], segments[STEPS:]
    for i in tl.static_range(TAPS + 2 * SCALES):
        pointer = PARTIAL + (program * (TAPS + 2 * SCALES) + i) * D + channel
        tl.store(pointer, tl.sum(total[i], 0), mask=channel_ok)


def _shape(sizes: tuple[int, ...]) -> dict[str, Any]:
    """Compile-time shape of the scales: kernel sizes, where each scale's taps begin among all, how many, the reach."""
    offsets = tuple(sum(sizes[:s]) for s in range(len(sizes)))
    return {"SIZES": sizes, "OFFSETS": offsets, "SCALES": len(sizes), "R": max(sizes) // 2}


def _compiled(tile: Mapping[str, int]) -> dict[str, int]:
    """The part of a tile that the compiler is told."""
    return {name: value for name, value in tile.items() if name not in ("length", "fill", "programs")}


def forward(
    x_TD: torch.Tensor,
    weights: Sequence[torch.Tensor],
    bias_SD: torch.Tensor,
    mu_S: torch.Tensor,
    segment_T: torch.Tensor,
) -> torch.Tensor:
    """``[T, D]`` in the dtype of x."""
    tokens, width = x_TD.shape
    out = x_TD.new_empty(tokens, width)
    tile = tiles.lookup("ms_dwconv_forward", x_TD, width)
    length = run_length(tile, tokens, width, 0)
    sizes = tuple(w.shape[1] for w in weights)
    grid = (triton.cdiv(tokens, length * tile["CHUNKS"]), triton.cdiv(width, tile["BC"]))
    launch(
        ms_dwconv_forward, grid,
        x_TD, tuple(weights), bias_SD, mu_S, segment_T, out, tokens, width, length, x_TD.stride(0),
        **_shape(sizes), ACC=tiles.triton_dtype(accumulate_in(x_TD)), **_compiled(tile),
    )  # fmt: skip
    return out


def backward(
    dout_TD: torch.Tensor,
    x_TD: torch.Tensor,
    weights: Sequence[torch.Tensor],
    bias_SD: torch.Tensor,
    mu_S: torch.Tensor,
    segment_T: torch.Tensor,
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Gradients of x, the weights, the biases and mu."""
    tokens, width = x_TD.shape
    dout_TD = dout_TD.contiguous()
    acc = accumulate_in(x_TD)
    dx = x_TD.new_empty(tokens, width)
    tile = tiles.lookup("ms_dwconv_backward", x_TD, width)
    sizes = tuple(w.shape[1] for w in weights)
    length = run_length(tile, tokens, width, max(sizes) // 2 * 2)
    programs = triton.cdiv(tokens, length * tile["CHUNKS"])
    partial = x_TD.new_empty(programs, sum(sizes) + 2 * len(sizes), width, dtype=acc)
    launch(
        ms_dwconv_backward, (programs, triton.cdiv(width, tile["BC"])),
        dout_TD, x_TD, tuple(weights), bias_SD, mu_S, segment_T, dx, partial, tokens, width, length, x_TD.stride(0),
        **_shape(sizes), TAPS=sum(sizes), ACC=tiles.triton_dtype(acc), **_compiled(tile),
    )  # fmt: skip
    *dtaps, dbias, dmu = partial.sum(0).split([*sizes, len(sizes), len(sizes)])
    dweights = [d.t().to(w.dtype).contiguous() for d, w in zip(dtaps, weights, strict=True)]
    return dx, dweights, dbias.to(bias_SD.dtype), dmu.sum(1).to(mu_S.dtype)
