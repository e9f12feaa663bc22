"""One job on every slot of a Ray cluster, through Ray Train; Ray supervises, DeepSpeed trains.

Ray starts the workers, tells them who they are (RANK, WORLD_SIZE, MASTER_ADDR, ...), makes the process group, notices
a death and starts the group again. What a restart goes on from is our own newest checkpoint, not one reported to Ray:
after a kill Ray handed out one checkpoint older than the newest written. The job says all that is needed: its launch's
token stands in the pointer of a checkpoint that this launch has written or gone on from.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from egmf_dist.config import LaunchConfig
from egmf_dist.errors import EgmfError
from egmf_dist.jobs import Job
from egmf_dist.run.folder import Run, discard_storage
from egmf_dist.training.stopping import ask, listening
from egmf_launcher.errors import USER_ERRORS, WorkerFailedError, one_line
from egmf_launcher.hostfile import Host
from egmf_launcher.ray import cluster as ray_cluster
from egmf_launcher.ray.environment import PLACEMENT_TIMEOUT, WORKER_ENVIRONMENT
from egmf_launcher.ray.running import joined
from egmf_shards.errors import UnreachableError

_PLACEMENT_TIMEOUT_S = "20"
_AT_ONCE_S = 5.0
# A death makes the other ranks' collectives fail with these words; they are the echo, not the cause.
_SECONDARY = ("connection closed by peer", "connection reset by peer", "broken pipe", "gloo", "nccl", "socket")


def run_under_ray(job: Job, hosts: Sequence[Host], launch: LaunchConfig, running: str = "") -> dict[str, Any]:
    """Run the job on one worker per slot.

    Args:
        job: its run's folder every machine must see under the same path; a second launch on the run has files of its
            own by its token.
        hosts: the machines and their slots; this machine among them.
        launch: cores per worker, how often a died group is started again, and with how few workers.
        running: address of a cluster that is there already; ``hosts`` then only says how many workers it shall give.

    Returns:
        What rank 0's ``run`` returned.

    Raises:
        EgmfError, ShardError: as a worker raised it.
        WorkerFailedError: a worker died or failed otherwise; names the rank, the reason and the logs.
        LaunchError: the cluster could not be started.
    """
    assert job.launch is not None
    storage = Run(job.run.absolute()).ray_storage(job.verb, job.launch)
    workers = sum(host.slots for host in hosts)
    arguments = {"job": job, "folder": os.getcwd(), "storage": os.fspath(storage)}
    try:
        if running:
            with joined(running, workers, launch.cpus_per_worker) as logs:
                return _fit(arguments, workers, launch, {}, logs)
        with ray_cluster.start(hosts, launch.cpus_per_worker, launch.max_failures > 0) as cluster:
            return _fit(arguments, workers, launch, {ray_cluster.SLOT: 1.0}, cluster.logs)
    finally:
        discard_storage(storage)


def _fit(
    arguments: dict[str, Any], workers: int, launch: LaunchConfig, slot: dict[str, float], logs: Path
) -> dict[str, Any]:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    gpu = ray.cluster_resources().get("GPU", 0) > 0
    resources = {"CPU": float(launch.cpus_per_worker)} | slot | ({"GPU": 1.0} if gpu else {})
    fewest = min(launch.min_workers, workers) or workers
    # Ray may ask once more for a machine whose loss it has not noticed yet, and looks again only after this.
    if os.environ.get(PLACEMENT_TIMEOUT) in (WORKER_ENVIRONMENT[PLACEMENT_TIMEOUT], _PLACEMENT_TIMEOUT_S):
        usual = WORKER_ENVIRONMENT[PLACEMENT_TIMEOUT]
        os.environ[PLACEMENT_TIMEOUT] = _PLACEMENT_TIMEOUT_S if fewest < workers else usual

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: object) -> None:
            """Ray's ends the workers at once; ours stays, which has them save first."""

    class EndsByUserErrors(UserCallback):
        """A user's mistake is the same after a restart: it ends the job at once, and uses up no restart."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            if (complaint := _complaint(worker_exceptions)) is not None:
                raise complaint  # an error of a callback is none that Ray tries again

    trainer = (Trainer if arguments["job"].steps is not None else TorchTrainer)(
        train_loop,  # type: ignore[arg-type]  # Ray passes rank 0's return value on, but its type says None
        train_loop_config=arguments,
        scaling_config=ScalingConfig(
            num_workers=workers if fewest == workers else (fewest, workers),  # type: ignore[arg-type]  # documented
            use_gpu=gpu,
            resources_per_worker=resources,
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RunConfig(
            name="workers",
            storage_path=arguments["storage"],
            failure_config=FailureConfig(max_failures=launch.max_failures),
            callbacks=[EndsByUserErrors()],  # type: ignore[list-item]  # documented
        ),
    )
    try:
        with told_to_stop(arguments["job"]):
            result = trainer.fit()
    except SystemExit as ended:
        raise KeyboardInterrupt from ended  # Ray Train's way to end after Ctrl-C, and ours after SIGTERM
    except TrainingFailedError as error:
        raise root_cause(error, logs) from error
    returned = getattr(result, "return_value", None)
    if not isinstance(returned, dict):
        raise WorkerFailedError(f"rank 0 ended without a result; Ray's logs: {logs}")
    return returned


@contextlib.contextmanager
def told_to_stop(job: Job) -> Iterator[None]:
    """Have a training save and end by the first SIGTERM, SIGUSR1 or Ctrl-C; a second Ctrl-C ends it at once, and so
    does a later SIGTERM.

    Ray's workers get no signal of the job's: rank 0 finds a note in the run's folder where its next step begins.
    """
    if job.steps is None:
        yield
        return
    run, told = Run(job.run), 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal told
        now = time.monotonic()
        # A launcher and a queue may each send one of theirs at the same time.
        if told and (number == signal.SIGINT or (number == signal.SIGTERM and now - told > _AT_ONCE_S)):
            raise SystemExit(128 + number)
        if not told:
            told = now
            again = "; Ctrl-C again stops it at once" if number == signal.SIGINT else ""
            print(f"told to stop: a checkpoint is saved where the next step begins{again}", file=sys.stderr, flush=True)
            try:
                ask(run, job.launch, number)
            except OSError as error:
                # Rank 0 cannot be told, and could not save either. Ray swallows what a handler raises, but for this.
                print(f"{run.stop} cannot be written ({error.strerror}): stopped without a checkpoint", file=sys.stderr)
                raise SystemExit(128 + number) from error

    try:
        with listening(note):
            yield
    finally:
        with contextlib.suppress(OSError):
            run.stop.unlink(missing_ok=True)


def root_cause(error: Exception, logs: Path) -> Exception:
    """The one error a user should see: a worker's own complaint, else the failure that is no echo."""
    failures: dict[int, Exception] = dict(getattr(error, "worker_failures", None) or {})
    complaint = _complaint({-1: error} | failures)
    if complaint is not None:
        return complaint
    if not failures:
        return WorkerFailedError(f"the workers could not be run: {one_line(error)}; Ray's logs: {logs}")
    rank, failure = min(failures.items(), key=_secondary_last)
    return WorkerFailedError(f"rank {rank} failed: {one_line(_innermost(failure))[:500]}; Ray's logs: {logs}")


def _complaint(failures: dict[int, Exception]) -> Exception | None:
    """The user's error of the lowest rank that met one; a store that cannot be reached may be there after a restart."""
    causes = (_innermost(failure) for _, failure in sorted(failures.items()))
    return next((c for c in causes if isinstance(c, USER_ERRORS) and not isinstance(c, UnreachableError)), None)


def _innermost(failure: Exception) -> BaseException:
    """The exception that user code raised, out of Ray's wrappers."""
    for name in ("_base_exc", "health_check_failure", "cause", "controller_failure"):
        inner = getattr(failure, name, None)
        if isinstance(inner, Exception):
            return _innermost(inner)
    return failure


def _secondary_last(item: tuple[int, Exception]) -> tuple[bool, int]:
    rank, failure = item
    text = one_line(_innermost(failure)).lower()
    return any(echo in text for echo in _SECONDARY), rank


def train_loop(arguments: dict[str, Any]) -> dict[str, Any]:
    """What every worker runs, also after a restart. DeepSpeed is imported no earlier than inside ``jobs.do``."""
    from ray.train.collective import barrier

    folder = Path(arguments["folder"])
    if not folder.is_dir():
        raise EgmfError(
            f"host {os.uname().nodename} has no folder {folder}; every machine must see it under the same path"
        )
    os.chdir(folder)
    # A rank that dies while Ray still starts the others ends Ray's controller, not just the group: it is not restarted.
    barrier()
    from egmf_dist import jobs

    return jobs.do(arguments["job"], console=False)
