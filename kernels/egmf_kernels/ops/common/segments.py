"""Which segment a packed token belongs to, and softmax inside segments."""

from __future__ import annotations

import torch


def segment_ids(cu_segments: torch.Tensor, tokens: int) -> torch.Tensor:
    """``[T]`` int64: the segment of every packed token, from boundaries ``[S + 1]``."""
    lengths = cu_segments.diff()
    return torch.repeat_interleave(
        torch.arange(lengths.numel(), device=cu_segments.device), lengths.long(), output_size=tokens
    )


def segment_softmax(scores_TK: torch.Tensor, segment_T: torch.Tensor, segments: int) -> torch.Tensor:
    """Softmax over the tokens of each segment, per column: ``[T, K]``."""
    index_TK = segment_T[:, None].expand_as(scores_TK)
    # The maximum only keeps the exponentials finite; no gradient belongs to it.
    peak_SK = scores_TK.new_full((segments, scores_TK.shape[1]), float("-inf")).scatter_reduce(
        0, index_TK, scores_TK.detach(), "amax"
    )
    weight_TK = (scores_TK - peak_SK[segment_T]).exp()
    total_SK = weight_TK.new_zeros(peak_SK.shape).index_add(0, segment_T, weight_TK)
    return weight_TK / total_SK[segment_T]
