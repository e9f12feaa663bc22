"""What a way of tuning the backbone is.

It puts into a frozen backbone what shall be trained and marks it by ``requires_grad``. Everything else follows from
the mark: DeepSpeed's optimiser and checkpoints, the adapter that is saved and loaded by parameter name, and the frozen
rest, which is named by its hash and never copied.
"""

from __future__ import annotations

from typing import Protocol

from transformers import PreTrainedModel

from egmf_dist.config import BackboneConfig
from egmf_dist.registry import Registry


class Tuning(Protocol):
    """A function of this signature, chosen by ``backbone.tuning``."""

    def __call__(self, backbone: PreTrainedModel, config: BackboneConfig) -> PreTrainedModel:
        """Make what shall be trained of a backbone whose every parameter is frozen.

        Args:
            backbone: in place; under ZeRO-3 its parameters are partitioned.
            config: the settings.

        Returns:
            The backbone, or a module around it that is called as it is.

        Raises:
            EgmfError: the settings do not fit this backbone.
        """
        ...


TUNINGS: Registry[Tuning] = Registry(
    "backbone.tuning",
    {
        "lora": "egmf_dist.model.tuning.lora:lora",
        "frozen": "egmf_dist.model.tuning.whole:frozen",
        "full": "egmf_dist.model.tuning.whole:full",
    },
)
