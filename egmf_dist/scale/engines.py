"""What an engine of DeepSpeed's holds between two steps, by what it is: the same count for one that trains and one on
fake tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from egmf_dist.engine import Engine
from egmf_dist.training.pieces import flats


class Held(NamedTuple):
    """Bytes of one rank, numbers of the whole model."""

    frozen_numbers: int
    trained_numbers: int
    frozen_bytes: int
    trained_bytes: int
    optimizer_bytes: int
    width: int
    """Bytes of one number of the weights that compute."""

    @property
    def fields(self) -> dict[str, Any]:
        """All but the width."""
        return {name: value for name, value in self._asdict().items() if name != "width"}


def engine_bytes(engine: Engine) -> Held:
    """Count an engine's weights and what its optimiser keeps.

    Weights count by their numbers: in stage 3 what this rank's partition holds, its padding included, in stages 1 and 2
    all of them. The optimiser's are the tensors of AdamW: fp32 copies, which ZeRO partitions in every stage, and the
    moments.
    """
    sums = {False: [0, 0], True: [0, 0]}
    width = 4
    for parameter in engine.module.parameters():
        held: Any = getattr(parameter, "ds_tensor", parameter)
        sums[parameter.requires_grad][0] += int(getattr(parameter, "ds_numel", parameter.numel()))
        sums[parameter.requires_grad][1] += held.numel() * held.element_size()
        width = held.element_size()
    optimizer: Any = engine.basic_optimizer
    kept: list[torch.Tensor] = []
    for group in flats(engine):
        kept.append(group)
        kept += [value for name, value in optimizer.state.get(group, {}).items() if name != "step"]
    size = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    return Held(sums[False][0], sums[True][0], sums[False][1], sums[True][1], size, width)
