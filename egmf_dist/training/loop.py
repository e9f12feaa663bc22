"""Training, top to bottom: :func:`train` is what every rank runs.

The loss of a step is, over the global batch's valid samples, the mean of each sample's sum of -log p over answer and
end-of-sequence tokens (plus the weighted auxiliary loss). It does not depend on how the batch was cut: each micro-batch
gives a sum, the count of valid samples is all-reduced, and DeepSpeed's own division by ranks and by accumulation steps
is multiplied back.
"""

from __future__ import annotations

import math
import platform
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from egmf_dist import __version__, distributed
from egmf_dist.config import Config, TrainingConfig
from egmf_dist.data import Collator, RaggedBatch
from egmf_dist.data.bad_samples import BadSamples
from egmf_dist.data.loader import load
from egmf_dist.data.run_data import RunData, open_split, open_stream
from egmf_dist.errors import EgmfError
from egmf_dist.files import write_json
from egmf_dist.inference.score import evaluate_predictions, score_samples
from egmf_dist.inference.scorer import Choice, Scorer, choose_scorer, longest_sample
from egmf_dist.inference.selection import check_selection, chosen_for_validation, selection_score
from egmf_dist.model.backbone import Capabilities, backbone_identity
from egmf_dist.model.build import build_egmf, read_backbone, trained_parameters
from egmf_dist.training.checkpoint import Progress, load_checkpoint, save_best, save_checkpoint
from egmf_dist.training.engine import deepspeed_settings, initialise, learning_rate_factor, partitioned_loading
from egmf_dist.training.records import Records
from egmf_shards import BadSlot, ShardSet

MOST_NAMED = 10
"""Bad samples of one step that get a warning each."""


def train(config: Config, run: Path, resume: str, console: bool) -> dict[str, Any]:
    """Train; every rank of the process group must call this with the same arguments.

    Args:
        config: the run's settings.
        run: the run's folder, opened by :func:`egmf_dist.run_folder.open_run`, shared by all ranks.
        resume: ``auto`` (the newest checkpoint, or from the start where there is none), ``never``, or a checkpoint's
            path.
        console: rank 0 shows its records itself.

    Returns:
        Steps done, the best score and its step, and why training ended.

    Raises:
        EgmfError: bad settings or data, a checkpoint that does not fit, or too many non-finite steps in a row.
    """
    training = config.training
    ranks, rank, device = distributed.world_size(), distributed.rank(), distributed.device()
    shards, validation = open_split(config, "train"), open_split(config, "valid")
    run_data = RunData.of(shards, config.data)
    check_selection(training.select_by, run_data.tasks)
    stream = open_stream(config, shards, rank, ranks)
    capabilities, collator = read_backbone(config, run_data)
    settings = deepspeed_settings(config, stream.micro_batches)
    with partitioned_loading(config, settings):
        model = build_egmf(config, capabilities, run_data)
    kernels = model.describe_kernels(device)
    engine, peaks = initialise(config, model, settings)
    # Dropout masks differ between ranks from here on; each rank's random state is part of the checkpoint.
    torch.manual_seed(training.seed * 1_000_003 + rank)

    identity = {
        "world_size": ranks,
        "data": shards.index_hash,
        "seed": training.seed,
        "backbone": backbone_identity(config.backbone),
    }
    progress = load_checkpoint(engine, run, resume, identity) or Progress()
    records = Records(run, rank == 0, console, progress.step)
    write_manifest(run, config, identity)
    scorer, scoring = check_scoring(engine, validation, collator, capabilities, config)
    records.write(start_record(config, progress, ranks, model, kernels) | {"scoring": scoring})
    for fault in shards.faults:
        records.write({"kind": "warning", "step": progress.step, "message": fault})
    reason = "all steps done"
    clock = Clock()
    bad_samples = BadSamples(config.data, run, len(shards), training.global_batch, progress)
    end = progress.position + (training.steps - progress.step) * training.global_batch
    steps = load(stream, collator, range(progress.position, end, training.global_batch), config.data)
    try:
        while not finished(progress, training):
            factor = learning_rate_factor(progress.step, training)
            for group, peak in zip(engine.optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            with distributed.failing_together():
                step = next(steps)
            note_bad(bad_samples.take(step), progress, records)
            sums = train_step(engine, step.batches, device, ranks)
            progress.step += 1
            progress.position += training.global_batch
            clock.add(sums["valid"], sums["tokens"])
            grad_norm = float(engine.get_global_grad_norm() or 0.0)
            note_non_finite(progress, sums, grad_norm, step.batches[0].ids[0], training.max_skipped_steps, records)

            if progress.step % training.log_every == 0 or progress.step == training.steps:
                records.write(train_record(progress, sums, grad_norm, factor * peaks[0], len(shards), config, clock))
            if progress.step % training.validate_every == 0 or progress.step == training.steps:
                improved = validate(engine, validation, scorer, config, run_data, progress, run, records)
                clock.restart()
                progress.without_improvement = 0 if improved else progress.without_improvement + 1
            if progress.step % training.checkpoint_every == 0 or finished(progress, training):
                save_checkpoint(engine, run, progress, identity, training.keep_checkpoints)
                clock.restart()
        if progress.step < training.steps:
            reason = f"{progress.without_improvement} validations without a better score"
        records.write({"kind": "end", "step": progress.step, "reason": reason, "best_step": progress.best_step})
    finally:
        records.close()
        engine.destroy()
    return {
        "step": progress.step,
        "best_step": progress.best_step,
        "best_score": progress.best_score,
        "reason": reason,
    }


def check_scoring(
    engine: Any, validation: ShardSet, collator: Collator, capabilities: Capabilities, config: Config
) -> Choice:
    """Choose how answers are scored and score two batches: what would fail at the first validation fails before step 1.

    Raises:
        EgmfError: the backbone cannot be scored as asked, or its scores are not finite.
    """
    engine.eval()
    chosen = chosen_for_validation(validation.task_numbers, config.training.validation_samples)
    sample = longest_sample(validation, chosen)
    choice = choose_scorer(config.evaluation, engine.module, capabilities, collator, sample)
    batch_size = config.evaluation.batch_size
    first = chosen[: 2 * batch_size * distributed.world_size()]
    rows = score_samples(engine.module, validation, choice.scorer, batch_size, first)
    distributed.on_rank_zero(lambda: evaluate_predictions(rows, collator.tasks))
    return choice


def finished(progress: Progress, training: TrainingConfig) -> bool:
    """All steps are done, or validation has not improved for too long."""
    return progress.step >= training.steps or 0 < training.patience <= progress.without_improvement


def train_step(engine: Any, batches: list[RaggedBatch], device: torch.device, ranks: int) -> dict[str, float]:
    """One optimiser step over this rank's micro-batches.

    Returns:
        Global sums of the step: ``valid`` samples, ``tokens``, ``answer`` and ``auxiliary`` loss.
    """
    valid, tokens = distributed.sum_over_ranks(
        [float(sum(b.weight_B.sum() for b in batches)), float(sum(b.tokens for b in batches))]
    )
    answer = torch.zeros((), dtype=torch.float64, device=device)
    auxiliary = torch.zeros((), dtype=torch.float64, device=device)
    engine.train()
    for batch in batches:
        sums = engine(batch.to(device))
        # Without a valid sample the gradient is zero: the weights of all its samples are.
        engine.backward(sums.total * (ranks * len(batches) / max(valid, 1.0)))
        engine.step()
        answer += sums.answer
        auxiliary += sums.auxiliary
    totals = distributed.sum_over_ranks([float(answer), float(auxiliary)])
    return {"valid": valid, "tokens": tokens, "answer": totals[0], "auxiliary": totals[1]}


def note_bad(new: list[BadSlot], progress: Progress, records: Records) -> None:
    """Say which samples of the step could not be read."""
    for bad in new[:MOST_NAMED]:
        message = f"a sample could not be read and counts 0 ({progress.bad} so far): {bad.reason}"
        records.write({"kind": "warning", "step": progress.step + 1, "message": message})
    if len(new) > MOST_NAMED:
        message = f"{len(new) - MOST_NAMED} more samples of this step could not be read"
        records.write({"kind": "warning", "step": progress.step + 1, "message": message})


def note_non_finite(
    progress: Progress, sums: dict[str, float], grad_norm: float, first_sample: str, limit: int, records: Records
) -> None:
    """Count steps whose loss or gradient is not finite (DeepSpeed skips them), and stop when they do not end.

    Args:
        progress: after the step; its counts go up.
        sums: of :func:`train_step`.
        grad_norm: of the global batch; DeepSpeed says -1 where it is not finite.
        first_sample: id of this rank's first sample, to find the batch by.
        limit: how many in a row are too many.
        records: gets a warning.

    Raises:
        EgmfError: ``limit`` of them in a row.
    """
    finite = (
        math.isfinite(sums["answer"])
        and math.isfinite(sums["auxiliary"])
        and math.isfinite(grad_norm)
        and grad_norm >= 0
    )
    if finite:
        progress.skipped_in_a_row = 0
        return
    progress.skipped += 1
    progress.skipped_in_a_row += 1
    message = (
        f"step {progress.step} was skipped: its loss or gradient is not finite ({progress.skipped} so far); "
        f"its global batch ends at position {progress.position}, rank 0's part begins with sample {first_sample}"
    )
    records.write({"kind": "warning", "step": progress.step, "message": message})
    if progress.skipped_in_a_row >= limit:
        raise EgmfError(
            f"training: {limit} steps in a row up to step {progress.step} had a non-finite loss or gradient; "
            "lower training.learning_rate, or look for non-finite features with: egmf shards info DIR"
        )


def validate(
    engine: Any,
    validation: ShardSet,
    scorer: Scorer,
    config: Config,
    run_data: RunData,
    progress: Progress,
    run: Path,
    records: Records,
) -> bool:
    """Score the validation split, keep the adapter if it is the best so far, say if answers have collapsed."""
    engine.eval()
    chosen = chosen_for_validation(validation.task_numbers, config.training.validation_samples)
    rows = score_samples(engine.module, validation, scorer, config.evaluation.batch_size, chosen)

    def judge() -> dict[str, Any]:
        return evaluate_predictions(rows, run_data.tasks)

    results = distributed.on_rank_zero(judge)
    score = selection_score(results, config.training.select_by)
    improved = progress.best_score is None or score > progress.best_score
    selected_by = f"valid {config.training.select_by or 'mean of weighted_f1 and corr over tasks'}"
    if improved:
        progress.best_score, progress.best_step = score, progress.step
        description = {
            "step": progress.step,
            "score": score,
            "selected_by": selected_by,
            "config": asdict(config),
            "data": run_data.to_json(),
            "backbone": backbone_identity(config.backbone),
        }
        save_best(engine.module, run, progress.step, description)
    records.write(
        {
            "kind": "valid",
            "step": progress.step,
            "score": score,
            "selected_by": selected_by,
            "best": improved,
            "samples": len(chosen),
            "tasks": {name: {"metrics": r["metrics"], "collapsed": r["collapsed"]} for name, r in results.items()},
        }
    )
    for result in results.values():
        if result["collapsed"]:
            records.write({"kind": "warning", "step": progress.step, "message": result["collapsed"]})
    return improved


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
    sums: dict[str, float],
    grad_norm: float,
    lr: float,
    epoch_samples: int,
    config: Config,
    clock: Clock,
) -> dict[str, Any]:
    """The metrics line of a step; losses are means over the global batch's valid samples."""
    valid = max(sums["valid"], 1.0)
    answer, auxiliary = sums["answer"] / valid, sums["auxiliary"] / valid
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
        "loss": answer + config.model.auxiliary_weight * auxiliary,
        "loss_answer": answer,
        "loss_auxiliary": auxiliary,
        "grad_norm": grad_norm,
        "lr": lr,
        "samples_per_s": samples_per_s,
        "tokens_per_s": tokens_per_s,
        "mem_mib": memory,
        "skipped": progress.skipped,
        "bad_samples": progress.bad,
    }


def start_record(config: Config, progress: Progress, ranks: int, model: nn.Module, kernels: str) -> dict[str, Any]:
    """The first line of a run, and of each continuation."""
    trained = trained_parameters(model)
    return {
        "kind": "start",
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


def write_manifest(run: Path, config: Config, identity: dict[str, Any]) -> None:
    """Write ``manifest.json``: versions, seeds, data and base model identity, hosts."""
    hosts = distributed.gather_objects(platform.node())

    def write() -> None:
        packages = ("torch", "deepspeed", "transformers", "peft", "ray", "webdataset", "triton")
        write_json(
            run / "manifest.json",
            {
                "egmf_dist": __version__,
                "python": platform.python_version(),
                "versions": {p: version(p) for p in packages},
                "identity": identity,
                "data": config.data.shards,
                "hosts": hosts,
            },
        )

    distributed.on_rank_zero(write)
