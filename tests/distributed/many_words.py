"""One rank's loss with its gradient, and scores, of 64 samples at a vocabulary of Gemma's size: what they take at most.

argv[1] holds ``{"backbone": folder, "tasks": [Task]}``, argv[2] gets in GiB above the model ``loss``, ``score`` and
``longer``, the loss again with prompts of twice the length; and the number of ``columns`` of both.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch

from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.data.run_data import RunData
from egmf_dist.inference.scorer import TreeScorer
from egmf_shards import Sample, Turn


def kib(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def peak_of(action) -> float:
    """GiB by which the process grows while something is done."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again here
    before = kib("VmRSS")
    action()
    return (kib("VmHWM") - before) / 2**20


def main() -> None:
    job = torch.load(sys.argv[1], weights_only=False)
    tasks = {task.name: task for task in job["tasks"]}
    config = Config(
        data=DataConfig(context_turns=12),
        backbone=BackboneConfig(path=job["backbone"], lora_rank=4, lora_dropout=0.0),
        model=ModelConfig(width=32, heads=2),
        training=TrainingConfig(precision="fp32"),
    )
    data = RunData(tasks, ["en"], {}, {})
    capabilities, collator = read_backbone(config, data)
    collator.packed = True
    model = build_egmf(config, capabilities, data)

    def samples(words: int) -> list[Sample]:
        context = (Turn("A", "i am glad " * words),) * 4
        made = []
        for i in range(64):
            task = list(tasks.values())[i % len(tasks)]
            target = {"label": task.labels[0]} if task.labels else {"value": 0.3}
            text = f"{i} no wait"
            made.append(Sample(f"s-{i}", text, "en", task.name, "toy", "test", ("text",), context=context, **target))
        return made

    short, long = samples(10), [replace(s, text=f"{s.id} {s.text}") for s in samples(20)]
    batches = {"loss": collator(short, [1.0] * 64), "longer": collator(long, [1.0] * 64)}
    found = {"columns": [int((batch.rows.end_RC > 0).sum()) for batch in batches.values()]}
    for name, batch in batches.items():
        found[name] = peak_of(lambda batch=batch: model(batch).total.backward())
    scorer = TreeScorer(collator, capabilities, 64)
    with torch.no_grad():
        batch = scorer.prepare(short, [1.0] * 64)
        found["score"] = peak_of(lambda: model(batch, scorer))
    torch.save(found, sys.argv[2])


main()
os._exit(0)
