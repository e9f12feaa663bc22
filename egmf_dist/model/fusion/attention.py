"""Both attention experts' attention, over padded joint sequences (the reference) and over packed tokens.

The packed way is torch's variable-length kernel, which needs a GPU and 16 bits. It is taken only where it was seen, on
this very device, to give what the reference gives.

Shape legend: B samples, M modalities, T packed tokens, J longest joint sequence, R rows of keys, H heads, C channels of
a head. ``heads`` are ``[T, kinds, 3, H, C]``: for each expert queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

import egmf_kernels
from egmf_dist.data.others import OtherModalities, boundaries

try:  # torch 2.10 and newer
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # pragma: no cover
    varlen_attn: Callable[..., Any] | None = None  # type: ignore[no-redef]

AGREEMENT = 2e-2
"""How far outputs and gradients of the two ways may differ in 16 bits, as a ratio of norms."""
_PROBE = np.array([[3, 5, 2], [0, 4, 0], [2, 0, 3], [0, 0, 0], [1, 1, 1], [70, 0, 130]])


class Joint(Protocol):
    """What attention must know of a batch (:class:`egmf_dist.data.batch.RaggedBatch`)."""

    @property
    def cu_segments(self) -> torch.Tensor: ...

    @property
    def modalities(self) -> int: ...

    @property
    def joint_length(self) -> int: ...

    @property
    def others(self) -> OtherModalities: ...


def packs(heads: torch.Tensor) -> bool:
    """Whether such heads are attended packed."""
    count, width = heads.shape[-2:]
    fits = heads.is_cuda and heads.element_size() == 2 and width % 8 == 0 and width <= 256
    return varlen_attn is not None and fits and agrees(heads.device, heads.dtype, count, width)


@cache
def agrees(device: torch.device, dtype: torch.dtype, count: int, width: int) -> bool:
    """Whether, on a small batch with all that a batch may lack, the packed way gives what the padded one gives.

    Outputs and the gradient of queries, keys and values; looked at once a process. Leaves torch's random state alone.
    """
    cu = boundaries(_PROBE.flat).to(device)
    others = OtherModalities.of(_PROBE).to(device)
    batch: Any = SimpleNamespace(
        cu_segments=cu, modalities=_PROBE.shape[1], joint_length=int(_PROBE.sum(1).max()), others=others
    )
    tokens, kinds = int(_PROBE.sum()), ("semantic", "global")
    segment_T = egmf_kernels.segment_ids(cu, tokens)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(tokens, 2, 3, count, width, generator=generator).to(device, dtype)
    weight = torch.randn(2, tokens, count, width, generator=generator).to(device, dtype)
    found = []
    for way in (packed, padded):
        heads = start.clone().requires_grad_()
        try:
            with torch.enable_grad():
                out = torch.stack(way(heads, kinds, segment_T, batch))
                (gradient,) = torch.autograd.grad(out, heads, weight)
        except RuntimeError:  # this build of torch has no such kernel for the device
            return False
        found.append([out.detach().float(), gradient.float()])
    return all(bool((a - b).norm() <= AGREEMENT * b.norm()) for a, b in zip(*found, strict=True))


def padded(heads: torch.Tensor, kinds: Sequence[str], segment_T: torch.Tensor, batch: Joint) -> list[torch.Tensor]:
    """Under masks ``[B, J, J]``: padding is kept out, and the result is packed again."""
    modalities, longest = batch.modalities, batch.joint_length
    samples = (batch.cu_segments.numel() - 1) // modalities
    sample_T = segment_T // modalities
    sample_start_B = batch.cu_segments[:-1].long()[::modalities]
    column_T = torch.arange(len(heads), device=heads.device) - sample_start_B[sample_T]
    # -1 marks padding, which is of no modality.
    kind_BJ = torch.full((samples, longest), -1, device=heads.device, dtype=torch.long)
    kind_BJ = kind_BJ.index_put((sample_T, column_T), (segment_T % modalities).long())
    real_BJ = kind_BJ >= 0
    joint = heads.new_zeros(samples, longest, *heads.shape[1:]).index_put((sample_T, column_T), heads)
    streams = []
    for i, kind in enumerate(kinds):
        query, key, value = (joint[:, :, i, j].transpose(1, 2) for j in range(3))
        sees_BJJ = real_BJ[:, None, :].expand(-1, longest, -1)
        if kind == "semantic":
            sees_BJJ = sees_BJJ & (kind_BJ[:, None, :] != kind_BJ[:, :, None])
        # A row that sees nothing would be NaN, forward and backward: let it see everything, then zero it.
        blind_BJ = ~sees_BJJ.any(-1)
        mask = (sees_BJJ | blind_BJ[:, :, None])[:, None]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
        streams.append(out.masked_fill(blind_BJ[:, :, None, None], 0.0)[sample_T, column_T])
    return streams


def packed(heads: torch.Tensor, kinds: Sequence[str], segment_T: torch.Tensor, batch: Joint) -> list[torch.Tensor]:
    """Without padding: a global sequence is a sample, a semantic one a segment over its sample's other modalities."""
    assert varlen_attn is not None
    others, streams = batch.others, []
    for i, kind in enumerate(kinds):
        query, key_value = heads[:, i, 0], heads[:, i, 1:]
        cu_query = cu_key = batch.cu_segments[:: batch.modalities].contiguous()
        longest = batch.joint_length
        if kind == "semantic":
            key_value = KeyRows.apply(key_value, others.row_R, others.place_TN)
            cu_query, cu_key, longest = batch.cu_segments, others.cu_segments, others.longest
        key, value = key_value.unbind(1)
        out = varlen_attn(query, key, value, cu_query, cu_key, batch.joint_length, longest)
        assert isinstance(out, torch.Tensor)
        if kind == "semantic":
            out = out.masked_fill(others.alone_S[segment_T.long()][:, None, None], 0.0)
        streams.append(out)
    return streams


class KeyRows(torch.autograd.Function):
    """Packed tokens as rows of keys, each as often as it is looked at.

    Backward adds a token's rows in a fixed order; indexing's own backward sorts, or adds atomically.
    """

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, row_R: torch.Tensor, place_TN: torch.Tensor) -> torch.Tensor:
        """``[R, ...]``."""
        ctx.save_for_backward(place_TN)
        return tokens[row_R]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """The gradient of the tokens."""
        (place_TN,) = ctx.saved_tensors
        gradient = gradients[0]
        with_zero = torch.cat([gradient, gradient.new_zeros(1, *gradient.shape[1:])])
        total = with_zero[place_TN[:, 0]]
        for n in range(1, place_TN.shape[1]):
            total = total + with_zero[place_TN[:, n]]
        return total, None, None
