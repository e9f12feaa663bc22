"""One rank of gradient measurements: the whole path of a training step, then the full gradients on rank 0.

argv[1] holds ``{name: job}``, argv[2] gets ``{name: gradients and sums}``.

``branch`` makes the model choose a module by what its first sample holds: the mistake that ZeRO-3 turns into silent
mixing.
"""

from __future__ import annotations

import os
import sys

import torch
from torch import nn

from egmf_dist import distributed
from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.data.run_data import RunData
from egmf_dist.distributed import process_group
from egmf_dist.engine import deepspeed_settings, initialise, partitioned_loading
from egmf_dist.model.trained import trained_parameters
from egmf_dist.training.loop import train_step
from egmf_dist.training.schedule import parameter_groups
from egmf_shards import MicroBatch, partition


class BranchingEncoder(nn.Module):
    """Chooses an encoder by the batch's content, as a program written for one process might."""

    def __init__(self, encoders: nn.Module) -> None:
        super().__init__()
        self.encoders = encoders
        self.first = nn.Linear(encoders.width, encoders.width)
        self.second = nn.Linear(encoders.width, encoders.width)

    def forward(self, text, batch):
        packed = self.encoders(text, batch)
        lengths = batch.cu_segments.diff()
        return self.first(packed) if int(lengths[1]) > 0 else self.second(packed)


def main() -> None:
    jobs = torch.load(sys.argv[1], weights_only=False)
    with process_group():  # DeepSpeed keeps the first group for ever, so every job shares it
        results = {name: measure(job) for name, job in jobs.items()}
        if distributed.rank() == 0:
            torch.save(results, sys.argv[2])


def measure(job):
    """Gradients and sums of one step; everything that holds the process group is gone when this returns."""
    config, samples, tasks = job["config"], job["samples"], job["tasks"]
    rank, world = distributed.rank(), distributed.world_size()
    own = partition(len(samples), rank, world)
    pieces = -(-len(partition(len(samples), 0, world)) // config.training.micro_batch)
    cuts = [partition(len(own), i, pieces) for i in range(pieces)]
    micro = []
    for cut in cuts:
        part = [samples[own[i]] for i in cut]
        micro.append(MicroBatch(part or [samples[own[0]]], [], [1.0] * len(part) or [0.0], []))
    settings = deepspeed_settings(config, pieces)
    # Small parameters stay whole by default; partition every one, or nothing is tested.
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    settings["gradient_clipping"] = 0.0
    data = RunData(tasks, ["en", "zh"], job["streams"], {})
    capabilities, collator = read_backbone(config, data)
    collator.packed = job["packed"]
    with partitioned_loading(config, settings):
        model = build_egmf(config, capabilities, data)
    if job["branch"]:
        torch.manual_seed(1)
        model.encoders = BranchingEncoder(model.encoders)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in trained_parameters(model).items():
        if "lora_B" in name:
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    engine = initialise(model, torch.optim.AdamW(parameter_groups(model, config.training)), settings)
    gradients = {}

    def capture(*arguments, **options):
        from deepspeed.utils import safe_get_full_grad

        for name, parameter in trained_parameters(engine.module).items():
            gradients[name] = safe_get_full_grad(parameter).clone()

    engine.optimizer.step = capture
    batches = [collator(m.samples, m.weights) for m in micro]
    sums_3 = train_step(engine, batches, len(samples), distributed.device())
    distributed.sum_on_device(sums_3)
    tokens = sum(distributed.share_objects([batch.tokens for batch in batches if batch.weight_B.any()]))
    engine.destroy()
    return {"gradients": gradients, "sums": sums_3.tolist(), "tokens": tokens}


main()
# The result is on disk and the group is left. What follows would be the interpreter's teardown, in which gloo's threads
# abort a process now and then; it is not what is measured here.
os._exit(0)
