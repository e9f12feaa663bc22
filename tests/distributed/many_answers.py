"""One rank that scores 501 numbers on four samples by the tree, and says how much memory the process took at most.

argv[1] holds ``{"backbone": folder, "task": Task}``, argv[2] gets ``answers``, ``peak_gib`` and ``apart``: how far the
tree's score of some answers is from a forward of each alone.
"""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import replace

import torch

from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.config import BackboneConfig, Config, ModelConfig, TrainingConfig
from egmf_dist.data.run_data import RunData
from egmf_dist.inference.scorer import TreeScorer
from egmf_shards import Sample


def main() -> None:
    job = torch.load(sys.argv[1], weights_only=False)
    task = job["task"]
    config = Config(
        backbone=BackboneConfig(path=job["backbone"], lora_rank=4, lora_dropout=0.0),
        model=ModelConfig(width=32, heads=2),
        training=TrainingConfig(precision="fp32"),
    )
    data = RunData({task.name: task}, ["en"], {}, {})
    capabilities, collator = read_backbone(config, data)
    model = build_egmf(config, capabilities, data).eval()
    scorer = TreeScorer(collator, capabilities, config.evaluation.batch_size)
    samples = [
        Sample(f"s-{i}", "i am glad " * (i + 1), "en", task.name, "toy", "test", ("text",), value=0.0) for i in range(4)
    ]
    with torch.no_grad():
        scores = model(scorer.prepare(samples, [1.0] * 4), scorer).log_p_BC
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        apart = 0.0
        for index in (0, 137, 250, 500):
            alone = model(collator([replace(samples[3], value=task.values[index])], [1.0])).answer
            apart = max(apart, abs(float(scores[3, index] + alone)))
    torch.save({"answers": scores.shape[1], "peak_gib": peak, "apart": apart}, sys.argv[2])


main()
os._exit(0)
