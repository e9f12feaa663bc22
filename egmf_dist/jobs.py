"""What every rank of a started world does: one job, the same on every rank.

A job is a value that is called in each rank. It travels to other machines pickled, by reference to its class, so a
class of one's own serves as well as those here where it can be imported on every host.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from egmf_dist.config import Config
from egmf_dist.run.folder import Run


class Job(Protocol):
    """What is done, and what the process that starts the ranks must know of it."""

    verb: ClassVar[str]
    """Names the files of a launch."""

    @property
    def run(self) -> Path:
        """The run's folder, which every rank sees under this path."""
        ...

    @property
    def launch(self) -> str | None:
        """This launch's token, the same when its workers are started again; None outside of a launch."""
        ...

    @property
    def steps(self) -> int | None:
        """How many steps its progress has, where it writes records to follow; else None."""
        ...

    def __call__(self, console: bool) -> dict[str, Any]:
        """Do it in this rank, with all others.

        Args:
            console: this rank shows progress.

        Returns:
            The result, the same on every rank.
        """
        ...


@dataclass(frozen=True)
class TrainJob:
    """Train a run (:func:`egmf_dist.training.loop.train`)."""

    verb: ClassVar[str] = "train"
    run: Path
    config: Config
    resume: str = "never"
    """``auto``, ``never``, or a checkpoint's step, name or path."""
    launch: str | None = None
    changed: Mapping[str, Any] = field(default_factory=dict)
    """Settings that are not what the run had."""

    @property
    def steps(self) -> int | None:
        """See :class:`Job`."""
        return self.config.training.steps

    def __call__(self, console: bool) -> dict[str, Any]:
        """See :class:`Job`."""
        from egmf_dist.training.loop import train
        from egmf_dist.training.trainer import Start

        return train(self.config, Run(self.run), Start(self.resume, self.launch, self.changed, console))


@dataclass(frozen=True)
class EvaluateJob:
    """Score a split of a run (:func:`egmf_dist.inference.evaluate.evaluate`)."""

    verb: ClassVar[str] = "evaluate"
    run: Path
    split: str = "test"
    remove: Sequence[str] = ()
    remove_each: bool = False
    launch: str | None = None
    shards: Sequence[str] | None = None
    backbone: str | None = None
    """Where data and backbone lie now; None: as the run says."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """Settings of that section instead of the run's."""
    decode: bool = False
    """Also generate every answer freely."""
    robustness: bool = False
    """Also score it damaged in many ways."""

    @property
    def steps(self) -> int | None:
        """See :class:`Job`."""
        return None

    def __call__(self, console: bool) -> dict[str, Any]:
        """See :class:`Job`."""
        from egmf_dist.inference.evaluate import evaluate
        from egmf_dist.inference.opened import open_run
        from egmf_dist.inference.robustness import robustness
        from egmf_dist.run.places import Places

        places = Places(None if self.shards is None else list(self.shards), self.backbone)
        opened = open_run(Run(self.run), self.split, self.remove, places, self.evaluation, console)
        result = evaluate(opened, self.remove, self.remove_each, self.decode)
        return result | ({"robustness": robustness(opened)} if self.robustness else {})


@dataclass(frozen=True)
class PredictJob:
    """Answer a file of utterances or a split of shards (:func:`egmf_dist.inference.predict.predict_file`)."""

    verb: ClassVar[str] = "predict"
    model: Path
    source: Path
    out: Path
    split: str = "test"
    tasks: Sequence[str] | None = None
    backbone: str | None = None
    launch: str | None = None
    explain: Path | None = None
    """Folder for an explanation of each answer."""
    trust_code: bool = False
    """Code that the model's folder names may run."""

    @property
    def run(self) -> Path:
        """See :class:`Job`: beside the output lie the launch's own files."""
        return self.out.absolute().parent

    @property
    def steps(self) -> int | None:
        """See :class:`Job`."""
        return None

    def __call__(self, console: bool) -> dict[str, Any]:
        """See :class:`Job`."""
        from egmf_dist.inference.answer_file import answer_file

        return answer_file(self, console)


def do(job: Job, console: bool) -> dict[str, Any]:
    """Do a job in this rank. RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT must be set.

    Where ranks were started by somebody else each has made its own job; rank 0 has looked at the run's folder and
    taken its lock, so its job is done by all.

    Raises:
        EgmfError, ShardError: bad input, on every rank.
    """
    from egmf_dist.distributed import broadcast_object, process_group

    # DeepSpeed calls collectives that torch 2.13 has renamed, and says so at every call.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|transformers|deepspeed")
    with process_group():
        theirs: Job = broadcast_object(job)
        return theirs(console)
