"""Training, top to bottom: :func:`train` is what every rank runs.

The loss of a step is, over the global batch's valid samples, the mean of each sample's sum of -log p over answer and
end-of-sequence tokens (plus the weighted auxiliary loss). It does not depend on how the batch was cut: each micro-batch
gives a sum, the count of valid samples is all-reduced, and DeepSpeed's own division by ranks and by accumulation steps
is multiplied back.
"""

from __future__ import annotations

import contextlib
import datetime
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil
import torch
from torch import nn

from egmf_dist import distributed
from egmf_dist.config import Config, TrainingConfig
from egmf_dist.data import Collator, RaggedBatch
from egmf_dist.data.bad_samples import BadSamples
from egmf_dist.data.loader import load
from egmf_dist.data.run_data import RunData, open_split, open_stream
from egmf_dist.inference.score import evaluate_predictions, score_samples
from egmf_dist.inference.scorer import Choice, Scorer, check_samples, choose_scorer
from egmf_dist.inference.selection import check_selection, chosen_for_validation, selection_score
from egmf_dist.model.backbone import Capabilities
from egmf_dist.model.build import build_egmf, read_backbone, trained_parameters
from egmf_dist.run.folder import Run
from egmf_dist.run.identity import Identity, backbone_identity
from egmf_dist.run.manifest import read_standardisations, write_manifest
from egmf_dist.run.records import Records
from egmf_dist.training.best import save_best
from egmf_dist.training.checkpoint import Progress, Resumed, find_checkpoint, load_checkpoint, save_checkpoint
from egmf_dist.training.engine import deepspeed_settings, initialise, learning_rate_factor, partitioned_loading
from egmf_dist.training.supervision import Facts, Losses, Supervision, next_step, note_bad
from egmf_shards import ShardSet


@dataclass(frozen=True)
class Start:
    """How a training begins."""

    resume: str = "never"
    """``auto`` (the newest sound checkpoint, or from the start where there is none), ``never``, or a checkpoint's
    step, name or path; see :func:`egmf_dist.training.checkpoint.find_checkpoint`."""
    launch: str | None = None
    """This launch's token, the same when its workers are started again; None outside of a launch."""
    changed: Mapping[str, Any] = field(default_factory=dict)
    """Settings that are not what the run had: ``{"training.steps": [old, new]}``."""
    console: bool = False
    """Rank 0 shows its records itself."""


@dataclass(frozen=True)
class Training:
    """What a training is, from its first step to its last."""

    config: Config
    run: Run
    data: RunData
    identity: Identity
    launch: str | None


def train(config: Config, run: Run, start: Start) -> dict[str, Any]:
    """Train; every rank of the process group must call this with the same arguments.

    Args:
        config: the run's settings.
        run: the run, opened by :func:`egmf_dist.run.folder.open_run`; all ranks share its folder.
        start: how it begins.

    Returns:
        Steps done, the best score and its step, and why training ended.

    Raises:
        EgmfError: bad settings or data, a checkpoint that does not fit, or too many non-finite steps in a row.
    """
    training = config.training
    ranks, rank, device = distributed.world_size(), distributed.rank(), distributed.device()
    shards, validation = open_split(config, "train"), open_split(config, "valid")
    known = distributed.on_rank_zero(lambda: known_standardisations(run, start))
    run_data, other_statistics = RunData.of(shards, config.data).keeping(known)
    check_selection(training.select_by, run_data.tasks)
    stream = open_stream(config, shards, rank, ranks)
    capabilities, collator = read_backbone(config, run_data)
    identity = Identity(ranks, shards.index_hash, training.seed, backbone_identity(config.backbone))
    whole = Training(config, run, run_data, identity, start.launch)
    settings = deepspeed_settings(config, stream.micro_batches)
    with contextlib.ExitStack() as stack:
        with partitioned_loading(config, settings):
            model = build_egmf(config, capabilities, run_data)
        kernels = model.describe_kernels(device)
        engine, peaks = initialise(config, model, settings)
        stack.callback(engine.destroy)
        # Dropout masks differ between ranks from here on; each rank's random state is part of the checkpoint.
        torch.manual_seed(training.seed * 1_000_003 + rank)

        resumed = load_checkpoint(engine, run, start.resume, identity, start.launch) or Resumed(Progress(), [])
        progress = resumed.progress
        # Before anything is written: what fails here must not use up the run's name.
        scorer, scoring = check_scoring(engine, validation, collator, capabilities, config, progress.step > 0)
        records = Records(run, rank == 0, start.console, progress.step)
        stack.callback(records.close)
        hosts = distributed.gather_objects(platform.node())
        standardisations = run_data.to_json()["standardisations"]
        distributed.on_rank_zero(lambda: write_manifest(run, config, identity, hosts or [], standardisations))
        said = {"backbone": capabilities.describe(), "scoring": scoring, "changed": dict(start.changed)}
        records.write(start_record(config, progress, ranks, model, kernels) | said)
        for message in [*resumed.skipped, *shards.faults, *filter(None, [other_statistics])]:
            records.write({"kind": "warning", "step": progress.step, "message": message})
        reason = "all steps done"
        clock = Clock()
        supervision = Supervision(progress, training.max_skipped_steps, records)
        bad_samples = BadSamples(config.data, run, len(shards), training.global_batch, progress)
        end = progress.position + (training.steps - progress.step) * training.global_batch
        steps = load(stream, collator, range(progress.position, end, training.global_batch), config.data)
        while not finished(progress, training):
            factor = learning_rate_factor(progress.step, training)
            for group, peak in zip(engine.optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            step, facts = next_step(steps, bad_samples)
            note_bad(bad_samples.take(step, facts.bad), progress, records)
            sums = train_step(engine, step.batches, facts.valid, device, ranks)
            progress.step += 1
            progress.position += training.global_batch
            progress.prompts_cut += facts.prompts_cut
            progress.prompt_tokens_cut += facts.prompt_tokens_cut
            clock.add(facts.valid, facts.tokens)
            supervision.add(sums, engine.get_global_grad_norm(), step.batches[0].ids[0])

            last = progress.step == training.steps
            logs, validates, saves = (
                last or progress.step % every == 0
                for every in (training.log_every, training.validate_every, training.checkpoint_every)
            )
            if logs or validates or saves or supervision.full:
                losses = supervision.read()
            if logs:
                records.write(train_record(progress, losses, facts, factor * peaks[0], len(shards), config, clock))
            if validates:
                improved = validate(engine, validation, scorer, whole, progress, records)
                clock.restart()
                progress.without_improvement = 0 if improved else progress.without_improvement + 1
            if saves or finished(progress, training):
                keep = training.keep_checkpoints
                save_checkpoint(engine, run, progress, identity, standardisations, keep, start.launch)
                clock.restart()
        if progress.step < training.steps:
            reason = f"{progress.without_improvement} validations without a better score"
        records.write({"kind": "end", "step": progress.step, "reason": reason, "best_step": progress.best_step})
    return {
        "step": progress.step,
        "best_step": progress.best_step,
        "best_score": progress.best_score,
        "reason": reason,
    }


def known_standardisations(run: Run, start: Start) -> dict[str, Any] | None:
    """By what statistics the steps that a start goes on from standardised features; None where there are none."""
    found = find_checkpoint(run, start.resume, start.launch, hashes=False)
    if found is not None and found.record.standardisations is not None:
        return found.record.standardisations
    return read_standardisations(run)  # checkpoints of before do not say


def check_scoring(
    engine: Any, validation: ShardSet, collator: Collator, capabilities: Capabilities, config: Config, trained: bool
) -> Choice:
    """Choose how answers are scored and score two batches: what would fail at the first validation fails before step 1.

    Raises:
        EgmfError: the backbone cannot be scored as asked, or its scores are not finite.
    """
    engine.eval()
    chosen = chosen_for_validation(validation.task_numbers, config.training.validation_samples)
    samples = check_samples(validation, chosen, collator)
    choice = choose_scorer(config.evaluation, engine.module, capabilities, collator, samples, trained)
    batch_size = config.evaluation.batch_size
    first = chosen[: 2 * batch_size * distributed.world_size()]
    rows = score_samples(engine.module, validation, choice.scorer, batch_size, first)
    distributed.on_rank_zero(lambda: evaluate_predictions(rows, collator.tasks))
    return choice


def finished(progress: Progress, training: TrainingConfig) -> bool:
    """All steps are done, or validation has not improved for too long."""
    return progress.step >= training.steps or 0 < training.patience <= progress.without_improvement


def train_step(engine: Any, batches: list[RaggedBatch], valid: float, device: torch.device, ranks: int) -> torch.Tensor:
    """One optimiser step over this rank's micro-batches; the host waits for nothing in it.

    Args:
        engine: DeepSpeed's.
        batches: this rank's micro-batches.
        valid: samples of the global batch that count.
        device: where they go.
        ranks: how many there are.

    Returns:
        This rank's sums of answer and auxiliary loss, float64 ``[2]``, on the device.
    """
    sums_2 = torch.zeros(2, dtype=torch.float64, device=device)
    engine.train()
    for batch in batches:
        sums = engine(batch.to(device))
        # Without a valid sample the gradient is zero: the weights of all its samples are.
        engine.backward(sums.total * (ranks * len(batches) / max(valid, 1.0)))
        engine.step()
        sums_2 += torch.stack([sums.answer, sums.auxiliary])
    return sums_2


def validate(
    engine: Any,
    validation: ShardSet,
    scorer: Scorer,
    training: Training,
    progress: Progress,
    records: Records,
) -> bool:
    """Score the validation split, keep the adapter if it is the best so far, say if answers have collapsed."""
    config, run_data = training.config, training.data
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
            "identity": training.identity.to_json(),
        }
        save_best(engine.module, training.run, progress.step, description, training.launch)
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
        "loss": answer + config.model.auxiliary_weight * auxiliary,
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
