"""DeepSpeed's engine: what we do for it before a model is given to it."""

import torch
from torch import nn

from egmf_dist.engine import place_buffers


def test_buffers_go_to_the_device_and_parameters_stay():
    """ZeRO-3 moves the parameters itself; a tensor left on the host ended every run on a GPU in its first scoring."""
    inner = nn.Module()
    inner.register_buffer("start", torch.arange(3), persistent=False)
    inner.register_buffer("empty", None)
    model = nn.Sequential(inner, nn.BatchNorm1d(2))

    place_buffers(model, torch.device("meta"))

    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert inner.empty is None
    assert not any("start" in name for name in model.state_dict())
