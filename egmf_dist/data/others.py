"""Which tokens a token's sample has of other modalities, as attention over packed tokens needs to know it.

Shape legend: B samples, M modalities, T packed tokens (sample-major, modality-minor), R rows of the keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch


def boundaries(lengths: Iterable[int]) -> torch.Tensor:
    """int32 ``[segments + 1]``: where segments of these lengths begin, and where the last ends."""
    return torch.from_numpy(np.concatenate([[0], np.cumsum(list(lengths))]).astype(np.int32))


class OtherModalities(NamedTuple):
    """For each (sample, modality) segment with tokens, its sample's tokens of all other modalities, in their order.

    A sample's only modality has its own tokens there, and is marked: no sequence of queries is without keys, which is
    nothing that attention kernels promise a result for.
    """

    row_R: torch.Tensor
    """int64: which packed token each row is."""
    place_TN: torch.Tensor
    """int64 ``[T, max(M - 1, 1)]``: the rows that each token became; R where it became fewer."""
    cu_segments: torch.Tensor
    """int32 ``[B * M + 1]``: where each segment's rows begin."""
    alone_S: torch.Tensor
    """bool ``[B * M]``: the segment's sample has no other modality."""
    longest: int
    """The most rows of a segment."""

    @classmethod
    def of(cls, lengths_BM: np.ndarray) -> OtherModalities:
        """From the tokens of each segment."""
        batch, modalities = lengths_BM.shape
        end_BM = lengths_BM.reshape(-1).cumsum().reshape(batch, modalities)
        alone_BM = (lengths_BM > 0) & (lengths_BM.sum(1, keepdims=True) == lengths_BM)
        rows = []
        for b in range(batch):
            tokens = [np.arange(end - n, end) for end, n in zip(end_BM[b], lengths_BM[b], strict=True)]
            for m in range(modalities):
                seen = [tokens[other] for other in range(modalities) if other != m]
                if alone_BM[b, m]:
                    seen = [tokens[m]]
                elif not lengths_BM[b, m]:  # asks nothing, and needs nothing to look at
                    seen = []
                rows.append(np.concatenate([np.zeros(0, dtype=np.int64), *seen]))
        row_R = np.concatenate([np.zeros(0, dtype=np.int64), *rows]).astype(np.int64)
        place_TN = np.full((int(lengths_BM.sum()), max(modalities - 1, 1)), len(row_R), dtype=np.int64)
        # A stable sort brings a token's rows together in their order; its first is its 0th, and so on.
        order = row_R.argsort(kind="stable")
        first = np.searchsorted(row_R[order], row_R[order])
        place_TN[row_R[order], np.arange(len(row_R)) - first] = order
        counts = [len(own) for own in rows]
        return cls(
            torch.from_numpy(row_R),
            torch.from_numpy(place_TN),
            boundaries(counts),
            torch.from_numpy(alone_BM.reshape(-1)),
            max(counts, default=0),
        )

    def to(self, device: torch.device) -> OtherModalities:
        """The same on ``device``."""
        tensors = (self.row_R, self.place_TN, self.cu_segments, self.alone_S)
        row_R, place_TN, cu_segments, alone_S = (t.to(device, non_blocking=True) for t in tensors)
        return OtherModalities(row_R, place_TN, cu_segments, alone_S, self.longest)
