"""A training's state, and how it comes to be: data, model, engine, the checkpoint it goes on from, records."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from egmf_dist import distributed
from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.config import Config, without_effect
from egmf_dist.data.bad_samples import BadSamples
from egmf_dist.data.loader import Step, load, micro_batches_of
from egmf_dist.data.perturb import Augmentation
from egmf_dist.data.run_data import RunData, open_split, open_stream
from egmf_dist.engine import Engine, deepspeed_settings, initialise, partitioned_loading
from egmf_dist.errors import EgmfError
from egmf_dist.inference.scorer import Scorer
from egmf_dist.metrics.selection import check_selection, chosen_for_validation
from egmf_dist.objectives.numbers import reads_trees
from egmf_dist.run.checkpoints import Progress, find_checkpoint
from egmf_dist.run.folder import Run
from egmf_dist.run.identity import Identity
from egmf_dist.run.lock import check_held
from egmf_dist.run.manifest import read_standardisations, write_manifest
from egmf_dist.run.records import Records
from egmf_dist.run.trackers import check_trackers
from egmf_dist.training.checkpoint import begun_anew, load_checkpoint
from egmf_dist.training.compare import compare_modules
from egmf_dist.training.deterministic import deterministic
from egmf_dist.training.health import watching
from egmf_dist.training.hosts import check_shared
from egmf_dist.training.pace import Looking, Pace, looking, shared
from egmf_dist.training.reports import Clock, start_record, train_record
from egmf_dist.training.saver import Saver
from egmf_dist.training.schedule import learning_rate_factor, parameter_groups
from egmf_dist.training.stopping import Stopping, listening
from egmf_dist.training.supervision import Facts, Losses, Supervision, next_step, note_bad
from egmf_dist.training.validation import check_scoring
from egmf_shards import ShardSet


@dataclass(frozen=True)
class Start:
    """How a training begins."""

    resume: str = "never"
    """``auto`` (the newest sound checkpoint, or from the start where there is none), ``never``, or a checkpoint's
    step, name or path; see :func:`egmf_dist.run.checkpoints.find_checkpoint`."""
    launch: str | None = None
    """This launch's token, the same when its workers are started again; None outside of a launch."""
    changed: Mapping[str, Any] = field(default_factory=dict)
    """Settings that are not what the run had: ``{"training.steps": [old, new]}``."""
    console: bool = False
    """Rank 0 shows its records itself."""


@dataclass
class Trainer:
    """Everything that a step touches. ``progress`` is what a checkpoint holds of it."""

    config: Config
    run: Run
    data: RunData
    identity: Identity
    engine: Engine
    peaks: list[float]
    """Peak learning rate of each parameter group."""
    device: torch.device
    shards: ShardSet
    """The training split."""
    steps: Iterator[Step]
    """This rank's global batches, in order."""
    validation: ShardSet
    chosen: list[int]
    """Which of its samples are scored, the same every time."""
    scorer: Scorer
    progress: Progress
    records: Records
    saver: Saver
    stopping: Stopping
    supervision: Supervision
    bad_samples: BadSamples
    looking: Looking
    """How this rank spends its time."""
    pace: Pace
    clock: Clock = field(default_factory=Clock)

    @property
    def finished(self) -> bool:
        """All steps are done, or validation has not improved for too long."""
        training, progress = self.config.training, self.progress
        return progress.step >= training.steps or 0 < training.patience <= progress.without_improvement

    @property
    def owes_validation(self) -> bool:
        """The checkpoint it goes on from was made in place of the validation that belongs to its step."""
        step = self.progress.step
        return step > 0 and self.due(self.config.training.validate_every) and self.progress.validated < step

    @property
    def stopped_by(self) -> str:
        """What told it to stop, once all ranks know."""
        return self.stopping.by or "another rank's signal"

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now; the last step is always one of them."""
        return self.progress.step % every == 0 or self.progress.step == self.config.training.steps

    @property
    def learning_rate(self) -> float:
        """The factor on every peak in the step that comes next."""
        return learning_rate_factor(self.progress.step, self.config.training)

    def next_step(self) -> tuple[Step, Facts]:
        """This rank's part of the next global batch, and what all ranks know of the whole."""
        step, facts = next_step(self.steps, self.bad_samples, self.saver.written, self.stopping.by is not None)
        if self.saver.busy and facts.written == distributed.world_size():
            self.publish()
        if facts.stopping:  # this batch is not trained on, but by who goes on
            return step, facts
        note_bad(self.bad_samples.take(step, facts.bad), self.progress, self.records)
        factor = self.learning_rate
        for group, peak in zip(self.engine.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        return step, facts

    def count(self, step: Step, facts: Facts, sums_3: torch.Tensor) -> None:
        """Go on by a step that was done; its losses stay on the device until they are read."""
        progress = self.progress
        progress.step += 1
        progress.position += self.config.training.global_batch
        progress.prompts_cut += facts.prompts_cut
        progress.prompt_tokens_cut += facts.prompt_tokens_cut
        self.clock.add(facts.valid, facts.tokens)
        self.supervision.add(sums_3, self.engine.get_global_grad_norm(), step.batches[0].ids[0])

    def log(self, losses: Losses, facts: Facts, factor: float) -> None:
        """Write the line of a step; ``factor`` was its learning rate's."""
        rate = factor * self.peaks[0]
        self.records.write(train_record(self.progress, losses, facts, rate, len(self.shards), self.config, self.clock))
        for message in self.pace.add(shared(self.looking.read())):
            self.records.write({"kind": "warning", "step": self.progress.step, "message": message})

    def restart_clocks(self) -> None:
        """Leave out what was no training: samples/s and the ranks' shares are of training alone."""
        self.clock.restart()
        self.looking.restart()

    def save(self, wait: bool) -> None:
        """Take a checkpoint, which is written while training goes on.

        Args:
            wait: it must be there before this returns.

        Raises:
            EgmfError: another launch has taken the run over; or it is waited for and cannot be written.
        """
        if self.saver.busy:
            self.publish()
        if self.saver.holds(self.progress):  # told to stop right after it was saved
            return
        self.saver.begin(self.progress)
        if wait:
            self.publish(needed=True)

    def publish(self, needed: bool = False) -> None:
        """Have the checkpoint that was begun go into force.

        Args:
            needed: that it cannot be written is no matter of a warning.
        """
        saved = self.saver.publish()
        if saved.error is not None and needed:
            raise EgmfError(saved.error)
        if saved.error is not None:
            message = f"training goes on without a new checkpoint: {saved.error}"
            self.records.write({"kind": "warning", "step": saved.step, "message": message})
        else:
            figures = {"stall_s": saved.stall_s, "write_s": saved.write_s, "mib": saved.mib}
            self.records.write({"kind": "checkpoint", "step": saved.step, **figures})


@contextlib.contextmanager
def started(config: Config, run: Run, start: Start) -> Iterator[Trainer]:
    """A training ready for its next step; every rank must enter this with the same arguments.

    Args:
        config: the run's settings.
        run: the run, opened by :func:`egmf_dist.run.folder.open_run`; all ranks share its folder.
        start: how it begins.

    Raises:
        EgmfError: bad settings or data, or a checkpoint that does not fit. Nothing is written then.
    """
    training = config.training
    ranks, rank, device = distributed.world_size(), distributed.rank(), distributed.device()
    with distributed.failing_together():
        shards, validation = open_split(config, "train"), open_split(config, "valid")
    backbone = check_shared(run, config, shards)

    def look() -> dict[str, Any] | None:
        check_held(run, start.launch)  # Ray starts the workers of a launch that was given up again, too
        check_trackers(config.logging)  # whoever launched did so as well, on a machine that may have more
        return known_standardisations(run, start)

    known = distributed.on_rank_zero(look)
    data, other_statistics = RunData.of(shards, config.data).keeping(known)
    check_selection(training.select_by, data.tasks)
    stream = open_stream(config, shards, rank, ranks)
    capabilities, collator = read_backbone(config, data)
    if training.micro_tokens:
        # Known from settings alone, before there are weights; rows are packed where scoring reads trees as well.
        cuts = micro_batches_of(stream, collator, training.micro_tokens, reads_trees(config, capabilities))
        stream = open_stream(config, shards, rank, ranks, cuts)
    identity = Identity(ranks, shards.index_hash, training.seed, backbone, data.specifications)
    settings = deepspeed_settings(config, stream.micro_batches)
    progress = Progress()
    with contextlib.ExitStack() as stack:
        # A rank may hang in loading a model and in making its engine, too.
        stack.enter_context(watching(run, training.hang_seconds, lambda: progress.step))
        stack.enter_context(deterministic(training.deterministic))
        with partitioned_loading(config, settings):
            model = build_egmf(config, capabilities, data)
        kernels = model.describe_kernels(device)
        groups = parameter_groups(model, training)
        peaks = [float(group["lr"]) for group in groups]
        engine = initialise(model, torch.optim.AdamW(groups), settings)
        stack.callback(engine.destroy)
        if training.compare_modules:
            compare_modules(engine.module)
        # Dropout masks differ between ranks from here on; each rank's random state is part of the checkpoint.
        torch.manual_seed(training.seed * 1_000_003 + rank)

        resumed = load_checkpoint(engine, run, start.resume, identity, start.launch) or begun_anew(run)
        progress = resumed.progress
        # Before anything is written: what fails here must not use up the run's name.
        chosen = chosen_for_validation(validation.task_numbers, training.validation_samples)
        scorer, scoring = check_scoring(
            engine, validation, chosen, collator, capabilities, config.evaluation, progress.step > 0
        )
        if training.packing == "auto" and scorer.way == "tree":
            collator.packed = True
        distributed.on_rank_zero(lambda: check_held(run, start.launch))  # records and manifest may be another's by now
        with distributed.failing_together():
            records = Records(run, config, rank == 0, start.console, progress)
        stack.callback(records.close)
        hosts = distributed.share_objects([platform.node()])
        distributed.on_rank_zero(lambda: write_manifest(run, config, identity, hosts, data.statistics()))
        spoken = ", chat template" if collator.limits.chat else ""
        said = {"backbone": f"{capabilities.describe()}{spoken}", "scoring": scoring, "changed": dict(start.changed)}
        records.write(start_record(config, progress, ranks, model, kernels) | said)
        said_once = [*without_effect(config), *resumed.said, *shards.faults, *filter(None, [other_statistics])]
        for message in said_once:
            records.write({"kind": "warning", "step": progress.step, "message": message})
        saver = Saver(engine, run, identity, data.statistics(), training.keep_checkpoints, start.launch, progress.step)
        stack.callback(saver.close)
        stopping = Stopping(run, start.launch, looks=rank == 0)
        stack.enter_context(listening(stopping.note))
        looks = stack.enter_context(looking())
        by_length = training.micro_tokens > 0
        end = progress.position + (training.steps - progress.step) * training.global_batch
        yield Trainer(
            config=config,
            run=run,
            data=data,
            identity=identity,
            engine=engine,
            peaks=peaks,
            device=device,
            shards=shards,
            steps=load(
                stream,
                collator,
                range(progress.position, end, training.global_batch),
                config.data,
                by_length,
                Augmentation.of(config.data, training.seed),
            ),
            validation=validation,
            chosen=chosen,
            scorer=scorer,
            progress=progress,
            records=records,
            saver=saver,
            stopping=stopping,
            supervision=Supervision(progress, training.max_skipped_steps, records),
            bad_samples=BadSamples(config.data, run, len(shards), training.global_batch, progress),
            looking=looks,
            pace=Pace(hosts),
        )


def known_standardisations(run: Run, start: Start) -> dict[str, Any] | None:
    """By what statistics the steps that a start goes on from standardised features; None where there are none."""
    found = find_checkpoint(run, start.resume, start.launch, check=None)
    if found is not None and found.record.standardisations is not None:
        return found.record.standardisations
    return read_standardisations(run)  # checkpoints of before do not say
