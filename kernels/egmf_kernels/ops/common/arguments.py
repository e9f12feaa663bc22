"""What the two operators with a gate are given of it, as one value."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Gate(NamedTuple):
    """The gate's part of an operator's arguments, in the order in which the registered operators take it.

    Symbols: B samples, M modalities, E experts, D width, T tokens.
    """

    weight_ED: torch.Tensor | None
    """The experts' gate vectors; None for equal weights."""
    context_BE: torch.Tensor | None
    """Logits per sample; None with ``weight_ED``."""
    beta_BM: torch.Tensor | None
    """The second level's weights where they act on the mix, else None."""
    segment_T: torch.Tensor
    """int32: the segment of each token."""
    cu_segments: torch.Tensor
    """``[B * M + 1]``: where segments begin."""
    modalities: int
    """M."""

    @property
    def gated(self) -> bool:
        """Whether experts weigh differently."""
        return self.weight_ED is not None

    @property
    def weighed(self) -> bool:
        """Whether modalities do, in the mix."""
        return self.beta_BM is not None

    def norm_alone(self) -> Gate:
        """The same tokens without any gate."""
        return self._replace(weight_ED=None, context_BE=None, beta_BM=None)
