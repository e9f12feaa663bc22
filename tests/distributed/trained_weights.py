"""One rank that loads an adapter into a model partitioned by ZeRO-3, and says how it went about it.

argv[1] holds ``{"folder": folder of the adapter, "group": numbers gathered at once}``; argv[2] gets ``saved`` (rank 0's
weights afterwards), ``read`` (names of the tensors each rank took from the file) and ``whole`` (the most numbers that
were whole on a rank at once).
"""

from __future__ import annotations

import os
import sys

import deepspeed
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import nn
from watched_file import Watched

from egmf_dist import distributed
from egmf_dist.model import trained

ZERO = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}


def main() -> None:
    job = torch.load(sys.argv[1], weights_only=False)
    with distributed.process_group():
        trained._GATHERED = job["group"]
        # No dtype is given: where the CPU has no fp16, DeepSpeed takes bf16 whatever is asked for; by ZERO it is fp32.
        with deepspeed.zero.Init(config_dict_or_path=ZERO):
            model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
        read, whole = [], [0]

        def note(name):
            read.append(name)
            whole[0] = max(whole[0], sum(p.numel() for p in model.parameters()))

        trained.safe_open = lambda *a, **k: Watched(safe_open(*a, **k), note)
        trained.load_trained(model, job["folder"])
        after = sum(p.numel() for p in model.parameters())
        every = [None] * distributed.world_size()
        dist.all_gather_object(every, read)
        saved = trained.gather_trained(model)
        if distributed.rank() == 0:
            result = {"saved": saved, "read": every, "whole": whole[0], "after": after}
            torch.save(result, sys.argv[2])


main()
os._exit(0)
