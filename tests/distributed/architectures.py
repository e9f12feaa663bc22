"""One rank that trains, resumes and evaluates a tiny run on each of several backbones, one after another.

argv[1] holds ``{"families": {name: folder}, "data": folder, "runs": folder}``, argv[2] gets each family's evaluation.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from egmf_dist import distributed, jobs
from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.distributed import process_group
from egmf_dist.jobs import EvaluateJob, TrainJob
from egmf_dist.run.folder import Run, open_run
from egmf_dist.run.records import read_records


def main() -> None:
    job = torch.load(sys.argv[1], weights_only=False)
    with process_group():  # DeepSpeed keeps the first group for ever, so every job shares it
        results = run_all(job)
    if os.environ["RANK"] == "0":
        torch.save(results, sys.argv[2])


def run_all(job):
    results = {}
    for name, folder in job["families"].items():
        config = Config(
            data=DataConfig(shards=[job["data"]], context_turns=1, max_text_tokens=24),
            backbone=BackboneConfig(path=folder, lora_rank=4, lora_dropout=0.0),
            model=ModelConfig(width=32, heads=2, pseudo_tokens=2),
            training=TrainingConfig(
                steps=4, global_batch=4, micro_batch=4, precision="fp32", validate_every=2, validation_samples=6,
                checkpoint_every=2, log_every=1,
            ),
        )  # fmt: skip
        run = Path(job["runs"]) / name
        train(config, run, "never")
        losses = [r["loss"] for r in read_records(run / "metrics.jsonl") if r["kind"] == "train"]
        train(config, run, str(run / "checkpoints" / "step-0000002"))
        results[name] = jobs.do(EvaluateJob(run), console=False) | {"losses": losses}
    return results


def train(config: Config, run: Path, resume: str) -> None:
    distributed.on_rank_zero(lambda: open_run(config, Run(run), resume) and None)
    jobs.do(TrainJob(run, config, resume), console=False)


main()
# The result is on disk and the group is left. What follows would be the interpreter's teardown, in which gloo's threads
# abort a process now and then; it is not what is measured here.
os._exit(0)
