"""One rank of many without the others and without numbers: a process group and tensors that are only said to be there.

DeepSpeed's own code runs in it, so that what it does need not be written down a second time. A process that has entered
this is spoiled for anything else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


class NoNumbers(FakeTensorMode):
    """Fake tensors whose values, where a program asks for one, are 1.0, 0 and False.

    DeepSpeed asks for gradient norms and whether one is infinite (a byte), AdamW for its count of steps.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator on shapes."""
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return 1.0 if dtype.is_floating_point else (False if dtype == torch.bool else 0)
        return super().dispatch(func, types, args, kwargs)


@contextlib.contextmanager
def one_of(ranks: int, rank: int = 0) -> Iterator[None]:
    """Inside, this process is one of ``ranks`` ranks, whose collectives return at once."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    own = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    with mock.patch.dict(os.environ, {name: str(value) for name, value in own.items()}):
        dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        import deepspeed

        deepspeed.init_distributed(dist_backend="fake", auto_mpi_discovery=False, verbose=False)
        try:
            yield
        finally:
            dist.destroy_process_group()


@contextlib.contextmanager
def without_numbers() -> Iterator[None]:
    """Inside, tensors are fake, and what cannot be asked of fake ones is not asked."""
    from deepspeed.runtime.zero import partitioned_param_coordinator as coordinator

    with contextlib.ExitStack() as stack:
        # Other ranks' numbers are whatever lies there.
        stack.enter_context(mock.patch.object(coordinator, "assert_ints_same_as_other_ranks"))
        # The usual one swaps tensors, which DeepSpeed's weak references to parameters forbid.
        stack.enter_context(mock.patch.object(nn.Module, "_apply", _apply))
        stack.enter_context(NoNumbers())
        yield


def _apply(module: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    if recurse:
        for child in module.children():
            _apply(child, fn)
    for parameter in module._parameters.values():
        if parameter is not None:
            moved = fn(parameter.data)
            if (moved.dtype, moved.device) != (parameter.dtype, parameter.device):
                parameter.data = moved
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = fn(buffer)
    return module
