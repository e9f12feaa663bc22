"""What a fusion is: packed tokens of every modality in, K pooled vectors a sample out.

Our own is :mod:`egmf_dist.model.fusion.expert_guided`. Another one is a class of this protocol, chosen by
``model.fusion``; nothing else in the program knows what is inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch

from egmf_dist.config import ModelConfig
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.registry import Registry


class Fused(NamedTuple):
    """What a fusion gives."""

    pooled_BKD: torch.Tensor
    """The fused representation."""
    diagnostics: dict[str, torch.Tensor]
    """What a person may want to see of each sample, by name: float32 ``[B, columns]``, detached. Predictions and
    reports show whatever is here, under the names of :attr:`Fusion.diagnostics`. Training looks at none: in training
    mode it may be empty."""
    tokens: Mapping[str, torch.Tensor] = {}
    """The same of each packed token, ``[T, columns]``, detached, under the same names; for whatever of them a token has
    of its own. An explanation shows them."""


class Fusion(Protocol):
    """A ``torch.nn.Module`` made by ``Fusion(config, modalities, tasks, languages)``.

    Of the run it is told the names of its modalities, text first, and how many tasks and languages there are.

    Every rank must run every submodule whatever its samples hold, and a sample's result must not depend on what
    shares its batch.
    """

    diagnostics: Mapping[str, Sequence[str]]
    """For each diagnostic the names of its columns."""

    def __init__(self, config: ModelConfig, modalities: Sequence[str], tasks: int, languages: int) -> None: ...

    def __call__(self, x_TD: torch.Tensor, batch: RaggedBatch) -> Fused:
        """Fuse packed tokens ``[T, D]``, sample-major; ``batch`` says where segments begin, and of which task and
        language a sample is."""
        ...

    def describe(self, device: torch.device) -> str:
        """One line for the log: what computes it on ``device``.

        Raises:
            ValueError: what the settings ask for cannot run there.
        """
        ...


FUSIONS: Registry[type[Fusion]] = Registry(
    "model.fusion", {"experts": "egmf_dist.model.fusion.expert_guided:ExpertGuidedFusion"}
)
