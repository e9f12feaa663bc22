"""Training, top to bottom: :func:`train` is what every rank runs.

The loss of a step is, over the global batch's valid samples, the mean of each sample's sum of -log p over answer and
end-of-sequence tokens, or of a number's distance (plus the weighted auxiliary loss). It does not depend on how the
batch was cut: each micro-batch gives a sum, the count of valid samples is all-reduced, and DeepSpeed's own division by
ranks and by accumulation steps is multiplied back.
"""

from __future__ import annotations

from typing import Any

import torch

from egmf_dist import distributed
from egmf_dist.config import Config
from egmf_dist.data import RaggedBatch
from egmf_dist.engine import Engine
from egmf_dist.run.folder import Run
from egmf_dist.run.records import TOLD_TO_STOP
from egmf_dist.training.profile import Profiler
from egmf_dist.training.trainer import Start, started
from egmf_dist.training.validation import validate


def train(config: Config, run: Run, start: Start) -> dict[str, Any]:
    """Train; every rank of the process group must call this with the same arguments.

    Args:
        config: the run's settings.
        run: the run, opened by :func:`egmf_dist.run.folder.open_run`; all ranks share its folder.
        start: how it begins.

    Returns:
        Steps done, the best score and its step, why training ended, and ``stopped``: by what it was told to, or None.

    Raises:
        EgmfError: bad settings or data, a checkpoint that does not fit, or too many non-finite steps in a row.
    """
    training = config.training
    with started(config, run, start) as trainer, Profiler(trainer) as profiler:
        progress = trainer.progress
        first, stopped = progress.step, None
        if trainer.owes_validation:  # it was broken off
            if not validate(trainer):
                stopped = trainer.stopped_by
            elif trainer.finished:
                trainer.save(wait=True)
        while stopped is None and not trainer.finished:
            factor = trainer.learning_rate
            with profiler.step():
                step, facts = trainer.next_step()
                if facts.stopping:
                    stopped = trainer.stopped_by
                    break
                sums_3 = train_step(trainer.engine, step.batches, facts.valid, trainer.device)
                trainer.count(step, facts, sums_3)

            logs, validates = trainer.due(training.log_every), trainer.due(training.validate_every)
            saves = trainer.due(training.checkpoint_every)
            if logs or validates or saves or trainer.supervision.full:
                losses = trainer.supervision.read()
            if logs:
                trainer.log(losses, facts, factor)
            if validates and not validate(trainer):
                stopped = trainer.stopped_by
                break
            if saves or trainer.finished:
                trainer.save(wait=trainer.finished)
            if validates or saves:
                trainer.restart_clocks()
        reason = "all steps done"
        if stopped is not None:
            reason = f"{TOLD_TO_STOP}{stopped}"
            if progress.step > first:  # else there is nothing that a checkpoint does not hold already
                trainer.supervision.read()  # a checkpoint counts what was skipped
                trainer.save(wait=True)
        elif progress.step < training.steps:
            reason = f"{progress.without_improvement} validations without a better score"
        end = {"step": progress.step, "reason": reason, "best_step": progress.best_step}
        trainer.records.write({"kind": "end", **end})
    return end | {"best_score": progress.best_score, "stopped": stopped}


def train_step(engine: Engine, batches: list[RaggedBatch], valid: float, device: torch.device) -> torch.Tensor:
    """One optimiser step over this rank's micro-batches; the host waits for nothing in it.

    Args:
        engine: DeepSpeed's.
        batches: this rank's micro-batches.
        valid: samples of the global batch that count.
        device: where they go.

    Returns:
        This rank's sums of answer loss, auxiliary loss and what is minimised, float64 ``[3]``, on the device.
    """
    ranks = distributed.world_size()
    sums_3 = torch.zeros(3, dtype=torch.float64, device=device)
    engine.train()
    for batch in batches:
        sums = engine(batch.to(device))
        # Without a valid sample the gradient is zero: the weights of all its samples are.
        engine.backward(sums.total * (ranks * len(batches) / max(valid, 1.0)))
        engine.step()
        sums_3 += torch.stack([sums.answer, sums.auxiliary, sums.total.detach()])
    return sums_3
