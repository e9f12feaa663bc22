"""Trackers: the programs in which teams look at their runs. One small class each, chosen by name in ``logging.to``.

:mod:`egmf_dist.run.tracking` opens them on rank 0, keeps training from waiting for them, and switches off the one that
fails; so nothing here catches what a server, a disk or a library may raise.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from egmf_dist.config import LoggingConfig
from egmf_dist.errors import EgmfError
from egmf_dist.registry import Registry
from egmf_dist.run.folder import Run

OPEN_S = 30
"""The longest that a start waits for a tracker, and a tracker for its server."""
_LONGEST, _AT_ONCE = 6000, 100
"""Letters of a setting that MLflow takes, and settings in one call."""


@dataclass(frozen=True)
class Opening:
    """What a tracker is opened with."""

    run: Run
    config: Mapping[str, Any]
    """All settings, ``{section: {setting: value}}``, and under ``run`` the run's folder."""
    project: str
    resumed_step: int = 0
    """Steps after this one are repeated; 0 where a run begins."""
    known: Mapping[str, str] = field(default_factory=dict)
    """Its :attr:`Tracker.known` of the run's start before; empty for none."""


class Tracker:
    """What ``logging.to`` names: a class of these methods, each of which is called by one thread alone.

    Whatever a method raises switches the tracker off; training goes on and says so once. Steps may be repeated: a run
    that was stopped goes on from its newest checkpoint.
    """

    package: ClassVar[str] = ""
    """What must be installed to open it; empty for nothing."""
    known: Mapping[str, str] = {}
    """How a later start, and ``egmf report``, find this run again; ``where``, among it, is for people to read. Kept in
    the run's folder; empty for nothing."""

    def __init__(self, opening: Opening) -> None:
        """Open it, a new run or the known one; never ask a person, never wait for a server without an end."""

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take numbers of a step, by names such as ``train/loss`` and ``valid/emotion/weighted_f1``."""

    def attach(self, files: Sequence[Path]) -> None:
        """Keep copies of files that lie in the run's folder: its settings, its report."""

    def close(self, finished: bool) -> None:
        """Write down what is left. ``finished``: training came to its end."""


class TensorBoard(Tracker):
    """Event files in ``RUN/tensorboard``; what a resumed run repeats is taken out of them."""

    def __init__(self, opening: Opening) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purged = opening.resumed_step + 1 if opening.resumed_step else None
        self.board = SummaryWriter(str(opening.run.tensorboard), purge_step=purged)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        for name, value in numbers.items():
            self.board.add_scalar(name, value, step)

    def close(self, finished: bool) -> None:
        """See :class:`Tracker`."""
        self.board.close()


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases, its files in ``RUN/wandb``; offline where no key is known, and as WANDB_MODE says."""

    package = "wandb"

    def __init__(self, opening: Opening) -> None:
        import wandb

        wandb.setup(wandb.Settings(silent=True))  # what it has to say is said by us, in one line
        # A run that began offline stays so: its parts belong together when they are sent.
        usual = "offline" if opening.known.get("mode") == "offline" else "online"
        mode: Any = os.environ.get("WANDB_MODE") or usual
        reason = ""
        if mode == "online" and not wandb.login(prompt=False):
            mode, reason = "offline", " (no API key: `wandb login`)"
        self.above = opening.run.folder.absolute().parent
        self.run = wandb.init(
            id=opening.known.get("id"),
            resume="allow",
            project=opening.project,
            name=opening.run.folder.absolute().name,
            dir=opening.run.wandb,
            config=dict(opening.config),
            allow_val_change=True,
            mode=mode,
            reinit="create_new",  # a run of the caller's own in this process is none of ours
            settings=wandb.Settings(silent=True, console="off", init_timeout=OPEN_S, finish_timeout=OPEN_S),
        )
        # By our step in place of its own, which may not go back: a resumed run repeats some.
        self.run.define_metric("*", step_metric="step")
        kept = f"offline{reason}; `wandb sync {opening.run.wandb / 'wandb' / 'offline-run-*'}` sends it"
        where = kept if self.run.offline else str(self.run.url or mode)
        self.known = {"id": self.run.id, "mode": mode, "where": where}

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        self.run.log({"step": step, **numbers})

    def attach(self, files: Sequence[Path]) -> None:
        """See :class:`Tracker`."""
        for file in files:  # below the run's name: wandb has a config.yaml of its own
            self.run.save(file.absolute(), base_path=self.above, policy="now", glob=False)

    def close(self, finished: bool) -> None:
        """See :class:`Tracker`."""
        self.run.finish(exit_code=0 if finished else 1)


class MLflow(Tracker):
    """A run of MLflow, on the server that MLFLOW_TRACKING_URI names, else in ``RUN/mlflow``."""

    package = "mlflow"

    def __init__(self, opening: Opening) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it tells of every table it makes
        # In a database: MLflow refuses stores of plain files since 3.13.
        folder = opening.run.mlflow.absolute()
        local = f"sqlite:///{folder / 'mlflow.db'}"
        known = opening.known.get("uri", local)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or known
        artifacts = (folder / "artifacts").as_uri() if uri == local else None
        if uri == local:
            folder.mkdir(exist_ok=True)
        self.folder, self.metric = opening.run.folder.absolute(), Metric
        self.client = client = MlflowClient(uri)
        if "id" in opening.known and known == without_password(uri):
            run = client.get_run(opening.known["id"])
            client.update_run(run.info.run_id, status="RUNNING")
        else:
            experiment = client.get_experiment_by_name(opening.project)
            number = experiment.experiment_id if experiment else client.create_experiment(opening.project, artifacts)
            run = client.create_run(number, run_name=self.folder.name)
        self.id = run.info.run_id
        # What it was once told of a setting MLflow keeps: a change on resume is in config.yaml, which is attached.
        told = run.data.params
        new = [Param(key, value[:_LONGEST]) for key, value in flat(opening.config).items() if key not in told]
        for first in range(0, len(new), _AT_ONCE):
            client.log_batch(self.id, params=new[first : first + _AT_ONCE])
        page = f"{without_password(uri)}/#/experiments/{run.info.experiment_id}/runs/{self.id}"
        where = page if uri.startswith("http") else without_password(uri)
        self.known = {"id": self.id, "where": where} | ({} if uri == local else {"uri": without_password(uri)})

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        now = int(time.time() * 1000)
        named = {re.sub(r"[^\w./ -]", "_", name): value for name, value in numbers.items()}
        self.client.log_batch(self.id, [self.metric(name, float(value), now, step) for name, value in named.items()])

    def attach(self, files: Sequence[Path]) -> None:
        """See :class:`Tracker`."""
        for file in files:
            inside = file.absolute().parent.relative_to(self.folder)
            self.client.log_artifact(self.id, str(file), str(inside) if inside.parts else None)

    def close(self, finished: bool) -> None:
        """See :class:`Tracker`."""
        self.client.set_terminated(self.id, "FINISHED" if finished else "FAILED")


def flat(config: Mapping[str, Any]) -> dict[str, str]:
    """Settings as ``section.key``, their values as text."""
    out: dict[str, str] = {}
    for name, part in config.items():
        if isinstance(part, Mapping):
            out |= {f"{name}.{key}": str(value) for key, value in part.items()}
        else:
            out[name] = str(part)
    return out


def without_password(uri: str) -> str:
    """``uri`` as it may be written down."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


TRACKERS: Registry[type[Tracker]] = Registry(
    "logging.to",
    {
        "tensorboard": f"{__name__}:TensorBoard",
        "wandb": f"{__name__}:WeightsAndBiases",
        "mlflow": f"{__name__}:MLflow",
    },
)


def check_trackers(config: LoggingConfig) -> None:
    """Refuse a tracker that no name leads to, or whose package is not installed; nothing of it is imported.

    Raises:
        EgmfError: says which there are, or what to install.
    """
    for name in config.to:
        package = getattr(TRACKERS.find(name), "package", "")
        # A folder of that name in the working folder, as wandb makes one, is found too, without a file of its own.
        if package and getattr(importlib.util.find_spec(package), "origin", None) is None:
            extra = f"'egmf-dist[{name}]'" if name in TRACKERS.known else package
            raise EgmfError(f"config: logging.to: {name} is not installed: pip install {extra}")
