"""What a training writes down: the record of a start, and of a logged step."""

from __future__ import annotations

import datetime
import time
from typing import Any

import psutil
import torch
from torch import nn

from egmf_dist.config import Config
from egmf_dist.model.trained import trained_parameters
from egmf_dist.run.checkpoints import Progress
from egmf_dist.training.supervision import Facts, Losses


class Clock:
    """Samples and tokens per second since the last reading, validations and checkpoints left out."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin a new window."""
        self.since, self.samples, self.tokens = time.perf_counter(), 0.0, 0.0

    def add(self, samples: float, tokens: float) -> None:
        """Count a step."""
        self.samples += samples
        self.tokens += tokens

    def read(self) -> tuple[float, float]:
        """Samples and tokens per second; begins a new window."""
        seconds = max(time.perf_counter() - self.since, 1e-9)
        rates = self.samples / seconds, self.tokens / seconds
        self.restart()
        return rates


def train_record(
    progress: Progress,
    losses: Losses,
    facts: Facts,
    lr: float,
    epoch_samples: int,
    config: Config,
    clock: Clock,
) -> dict[str, Any]:
    """The metrics line of a step; losses are means over the global batch's valid samples."""
    valid = max(facts.valid, 1.0)
    answer, auxiliary = losses.answer / valid, losses.auxiliary / valid
    samples_per_s, tokens_per_s = clock.read()
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated() / 2**20
    else:
        memory = psutil.Process().memory_info().rss / 2**20
    return {
        "kind": "train",
        "step": progress.step,
        "epoch": progress.position / epoch_samples,
        "position": progress.position,
        "loss": losses.total / valid,
        "loss_answer": answer,
        "loss_auxiliary": auxiliary,
        "grad_norm": losses.grad_norm,
        "lr": lr,
        "samples_per_s": samples_per_s,
        "tokens_per_s": tokens_per_s,
        "mem_mib": memory,
        "skipped": progress.skipped,
        "bad_samples": progress.bad,
        "prompts_cut": progress.prompts_cut,
        "prompt_tokens_cut": progress.prompt_tokens_cut,
    }


def start_record(config: Config, progress: Progress, ranks: int, model: nn.Module, kernels: str) -> dict[str, Any]:
    """The first line of a run, and of each continuation."""
    trained = trained_parameters(model)
    return {
        "kind": "start",
        "time": datetime.datetime.now().astimezone().isoformat(),
        "steps": config.training.steps,
        "step": progress.step,
        "position": progress.position,
        "global_batch": config.training.global_batch,
        "ranks": ranks,
        "zero_stage": config.training.zero_stage,
        "precision": config.training.precision,
        "kernels": kernels,
        "trained_parameters": sum(getattr(p, "ds_numel", p.numel()) for p in trained.values()),
        "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters()),
    }
