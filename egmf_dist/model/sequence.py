"""What the LLM reads: columns, positions and masks, for training and for both ways of scoring, made here alone.

A row is ``[padding | start | K pseudo tokens | prompt | answer]``: **all padding stands left of everything**, so that a
sliding window, an attention bias by distance or a recurrent state meets no hole, and a sample's loss does not depend on
what shares its batch. Rows end together: the last columns of every row are its answer's. In tree scoring the answers'
prefix tree stands behind the prompt, under a 4-D mask that holds every kind of layer's window.

Shape legend: B rows, K pseudo tokens, L prompt columns, A answer columns, P columns up to the prompt's end, N tree
nodes, S = P + N.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from egmf_dist.data.answers import TreeBatch
from egmf_dist.model.backbone import LayerKind


class Columns(NamedTuple):
    """Rows for the LLM, before embedding."""

    ids: torch.Tensor
    """int64 ``[B, columns]``: token ids; 0 where padding or a pseudo token stands."""
    real: torch.Tensor
    """bool ``[B, columns]``: no padding; what models take as their 2-D mask."""
    position: torch.Tensor
    """int64 ``[B, columns]``: place in the row, its first real column being 0; 0 for padding."""
    pseudo_BK: torch.Tensor
    """int64: the columns of the pseudo tokens."""


def lay_out(
    start: torch.Tensor,
    pseudo_tokens: int,
    prompt_BL: torch.Tensor,
    prompt_mask_BL: torch.Tensor,
    answer_BA: torch.Tensor | None = None,
    answer_mask_BA: torch.Tensor | None = None,
) -> Columns:
    """Rows of ``[padding | start | pseudo tokens | prompt | answer]``.

    Args:
        start: int64 ``[ids]``, what the tokenizer puts before any text.
        pseudo_tokens: K.
        prompt_BL: int64 ids, padding anywhere.
        prompt_mask_BL: bool.
        answer_BA: int64 ids that follow the prompt, or None for none.
        answer_mask_BA: bool.
    """
    batch, before = len(prompt_BL), start.numel() + pseudo_tokens
    pseudo = prompt_BL.new_zeros(batch, pseudo_tokens)
    ids = [start.expand(batch, -1), pseudo, prompt_BL]
    real = [prompt_mask_BL.new_ones(batch, before), prompt_mask_BL]
    if answer_BA is not None and answer_mask_BA is not None:
        ids.append(answer_BA)
        real.append(answer_mask_BA)
    together, mask = torch.cat(ids, 1), torch.cat(real, 1)
    # A stable sort by "is real" moves the padding to the left and keeps the order of the rest.
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    mask = mask.gather(1, order)
    padding_B1 = (~mask).sum(1, keepdim=True)
    return Columns(
        ids=together.gather(1, order) * mask,
        real=mask,
        position=positions(mask),
        pseudo_BK=padding_B1 + torch.arange(start.numel(), before, device=mask.device),
    )


def positions(real: torch.Tensor) -> torch.Tensor:
    """int64: the place of each real column in its row, from 0; 0 for padding."""
    return (real.long().cumsum(1) - 1).clamp_min(0)


def tree_positions(prefix: Columns, tree: TreeBatch) -> torch.Tensor:
    """int64 ``[B, S]``: the prefix's positions, then each node's as if its path alone followed the prompt."""
    return torch.cat([prefix.position, prefix.position[:, -1:] + tree.depth_BN], 1)


def tree_masks(
    prefix: Columns, tree: TreeBatch, kinds: Sequence[LayerKind], dtype: torch.dtype
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Additive 4-D masks ``[B, 1, S, S]`` for a prefix and its answer tree.

    A prefix column sees the real columns up to itself; a node sees the whole prefix, its ancestors and itself; each as
    far back as the layer's window, or in its chunk, reaches. Distances are between positions, so a node's window is
    what it would be if its path stood alone. A padding column sees itself: a row of nothing would be NaN.

    Args:
        prefix: from :func:`lay_out`, without an answer.
        tree: one for each row.
        kinds: the LLM's kinds of layers.
        dtype: of the embeddings.

    Returns:
        One mask where there is one kind of layer, else one for each kind by name.
    """
    before, nodes = prefix.real.shape[1], tree.tokens_BN.shape[1]
    columns, device = before + nodes, prefix.real.device
    sees = torch.zeros(len(prefix.real), columns, columns, dtype=torch.bool, device=device)
    causal = torch.ones(before, before, dtype=torch.bool, device=device).tril()
    sees[:, :before, :before] = causal & prefix.real[:, None, :]
    sees[:, before:, :before] = prefix.real[:, None, :]
    sees[:, before:, before:] = tree.sees_BNN
    return _by_layer(sees, tree_positions(prefix, tree), kinds, dtype)


def causal_masks(
    columns: Columns, kinds: Sequence[LayerKind], dtype: torch.dtype
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Additive 4-D masks ``[B, 1, S, S]`` for rows of :func:`lay_out`, as :func:`tree_masks` gives them for a tree.

    Made once a batch, on its device: given a 2-D mask, transformers asks at every forward whether it hides anything,
    and on a GPU waits for the answer twice.
    """
    count = columns.real.shape[1]
    causal = torch.ones(count, count, dtype=torch.bool, device=columns.real.device).tril()
    return _by_layer(causal & columns.real[:, None, :], columns.position, kinds, dtype)


def _by_layer(
    sees: torch.Tensor, position: torch.Tensor, kinds: Sequence[LayerKind], dtype: torch.dtype
) -> torch.Tensor | dict[str, torch.Tensor]:
    """What a column sees, cut to each kind of layer's window or chunk; every column sees itself."""
    device = sees.device
    itself = torch.eye(sees.shape[-1], dtype=torch.bool, device=device)
    nothing, hidden = (torch.full((), n, dtype=dtype, device=device) for n in (0.0, torch.finfo(dtype).min))
    masks = {}
    for kind in kinds:
        reached = sees
        if kind.window is not None:
            reached = reached & (position[:, :, None] - position[:, None, :] < kind.window)
        if kind.chunk is not None:
            chunk = position // kind.chunk
            reached = reached & (chunk[:, :, None] == chunk[:, None, :])
        masks[kind.name] = torch.where(reached | itself, nothing, hidden)[:, None]
    return masks if len(masks) > 1 else next(iter(masks.values()))
