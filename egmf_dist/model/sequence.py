"""Masks for the LLM's rows (:mod:`egmf_dist.data.rows`), and log-probabilities of what is asked about them.

Shape legend: R rows, C columns, N columns that are read, V vocabulary, E log-probabilities that are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from egmf_dist.data.rows import Rows
from egmf_dist.model.backbone import LayerKind

CHUNK = 2**25
"""The most logits that are widened to float32 at once: 128 MiB."""


def masks(rows: Rows, kinds: Sequence[LayerKind], dtype: torch.dtype, flex: bool = False) -> Any:
    """What the LLM is given as its attention mask.

    Where one sequence stands in a row: int64 ``[R, C]``, 1 where it is no padding. Else additive 4-D masks
    ``[R, 1, C, C]``: a column sees itself and what it follows, each as far back as the layer's window, or in its chunk,
    reaches. Distances are between positions, so a window is what it would be if the sequence stood alone. A padding
    column sees itself: a row of nothing would be NaN.

    FlexAttention gets the same as block masks, of which it skips the blocks that nobody sees.

    Args:
        rows: on the device.
        kinds: the LLM's kinds of layers.
        dtype: of the embeddings.
        flex: the LLM's attention is FlexAttention.

    Returns:
        One mask where there is one kind of layer, else one for each kind by name.
    """
    if not rows.packed:
        return (rows.end_RC > 0).long()
    if flex:
        return _one_or_all({kind.name: _block_mask(rows, kind) for kind in kinds})
    device, position = rows.end_RC.device, rows.position_RC
    column = torch.arange(rows.end_RC.shape[1], device=device)
    sees = (column[:, None] >= column[None, :]) & (column[None, :, None] < rows.end_RC[:, None, :])
    itself = torch.eye(len(column), dtype=torch.bool, device=device)
    nothing, hidden = (torch.full((), n, dtype=dtype, device=device) for n in (0.0, torch.finfo(dtype).min))
    made = {}
    for kind in kinds:
        reached = sees
        if kind.window is not None:
            reached = reached & (position[:, :, None] - position[:, None, :] < kind.window)
        if kind.chunk is not None:
            chunk = position // kind.chunk
            reached = reached & (chunk[:, :, None] == chunk[:, None, :])
        made[kind.name] = torch.where(reached | itself, nothing, hidden)[:, None]
    return _one_or_all(made)


def _one_or_all(made: dict[str, Any]) -> Any:
    return made if len(made) > 1 else next(iter(made.values()))


def _block_mask(rows: Rows, kind: LayerKind) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    end, position = rows.end_RC, rows.position_RC

    def sees(row: torch.Tensor, _: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        reached = (i >= j) & (i < end[row, j])
        if kind.window is not None:
            reached = reached & (position[row, i] - position[row, j] < kind.window)
        if kind.chunk is not None:
            reached = reached & (position[row, i] // kind.chunk == position[row, j] // kind.chunk)
        return reached | (i == j)

    count, columns = end.shape
    return create_block_mask(sees, count, None, columns, columns, device=end.device)


def log_probabilities(logits_NV: torch.Tensor, rows: Rows) -> torch.Tensor:
    """float32 ``[E]``: the log-probability of each token that is asked for.

    No second table of the logits' size is made, in the backward pass neither: log p = logit - logsumexp, which is taken
    a few rows at a time, and the gradient is written over the logits, so nothing else may need them.
    """
    found: torch.Tensor = _LogProbabilities.apply(logits_NV, rows.at_E, rows.token_E)
    return found


class _LogProbabilities(torch.autograd.Function):
    """``logits[at, token] - logsumexp(logits[at])``, float32."""

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, at_E: torch.Tensor, token_E: torch.Tensor) -> torch.Tensor:
        normal_N = torch.cat([part.float().logsumexp(-1) for part in logits_NV.split(_rows_at_once(logits_NV))])
        ctx.save_for_backward(logits_NV, normal_N, at_E, token_E)
        return logits_NV[at_E, token_E].float() - normal_N[at_E]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (grad_E,) = gradients
        logits_NV, normal_N, at_E, token_E = ctx.saved_tensors
        grad_N = torch.zeros_like(normal_N).index_add_(0, at_E, grad_E)
        step = _rows_at_once(logits_NV)
        for first in range(0, len(logits_NV), step):
            part = slice(first, first + step)
            p = (logits_NV[part].float() - normal_N[part, None]).exp_()
            logits_NV[part] = p.mul_(-grad_N[part, None])
        logits_NV.index_put_((at_E, token_E), grad_E.to(logits_NV.dtype), accumulate=True)
        return logits_NV, None, None


def _rows_at_once(logits_NV: torch.Tensor) -> int:
    return max(1, CHUNK // logits_NV.shape[-1])
