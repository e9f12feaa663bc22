"""From a decision to a finished job: in this process, on Ray's workers, or under DeepSpeed's launcher.

``launch_job`` is all that training and evaluation share: they differ in the job, not in how its ranks come to be.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from egmf_dist.config import LaunchConfig
from egmf_dist.errors import EgmfError
from egmf_dist.jobs import Job
from egmf_launcher.arguments import without_options
from egmf_launcher.decide import Decision, LaunchArguments, decide, running_cluster, started_rank
from egmf_launcher.errors import USER_ERRORS, LaunchError, RankError, one_line
from egmf_launcher.hostfile import Host, parse_hostfile
from egmf_launcher.network import LOOPBACK, is_this_machine, listen_towards, single_rank_environment
from egmf_launcher.ray.environment import WORKER_ENVIRONMENT, without_launcher_variables
from egmf_launcher.selection import select

# The first rank that fails makes DeepSpeed's launcher kill the others, so rank 0 needs this long a start to say why.
SILENT_RANK_GRACE_S = 5.0
# DeepSpeed hands arguments to other machines through a shell and quotes only those with blanks.
_SHELL_SAFE = re.compile(r"[A-Za-z0-9_./:=,+@%-]*", re.ASCII)


def choose(arguments: LaunchArguments) -> Decision:
    """Read the hostfile, count GPUs only where their number matters, decide, and let rank 0 print the line."""
    hosts: list[Host] = []
    if arguments.hostfile is not None:
        hosts = select(parse_hostfile(arguments.hostfile), arguments.include, arguments.exclude)
    elif arguments.include is not None or arguments.exclude is not None:
        raise EgmfError("--include and --exclude choose from a hostfile; give one with --hostfile")
    plain = started_rank(os.environ) is None and arguments.hostfile is None and arguments.workers is None
    cluster = running_cluster(arguments, os.environ)
    gpus = 0
    if plain and cluster:
        from egmf_launcher.ray.running import gpus_of

        gpus = gpus_of(cluster)
    elif plain:
        gpus = count_gpus()
    decision = decide(arguments, os.environ, hosts, gpus)
    if decision.way != "leave" and not is_silent_rank():
        print(decision.line(), flush=True)
    return decision


def count_gpus() -> int:
    """How many GPUs torch sees here."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def is_silent_rank() -> bool:
    """Whether rank 0 of the same start speaks for this one: the decision, and errors before the job begins."""
    return os.environ.get("RANK", "0") != "0"


def new_launch() -> str:
    """A token that names one launch: its lock, its files of Ray, the pointers it moves."""
    return secrets.token_hex(8)


def launch_job(
    decision: Decision, job: Job, launch: LaunchConfig, *, prepare: Callable[[], Job] | None = None
) -> dict[str, Any]:
    """Run a job the decided way (``single``, ``rank`` or ``ray``).

    Args:
        decision: from :func:`choose`.
        job: what every rank does.
        launch: the run's launch settings.
        prepare: done once, by rank 0 or the driver, before any rank reads the run folder; gives the completed job.
            Other ranks meanwhile wait for rank 0 in the rendezvous of ``jobs.do``, and do its job.

    Returns:
        Rank 0's result.

    Raises:
        EgmfError, ShardError: bad input; RankError if a rank other than 0 met it inside the job.
        LaunchError: ranks could not be started, or one died.
    """
    if prepare is not None and not is_silent_rank():
        job = prepare()
    if decision.way == "ray":
        from egmf_launcher.ray.train import run_under_ray

        with _progress(job):
            return run_under_ray(job, decision.hosts, launch, decision.cluster)
    if decision.way == "single":
        single_rank_environment()
    else:
        listen_towards(os.environ.get("MASTER_ADDR", ""))
    for name in ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        os.environ.setdefault(name, WORKER_ENVIRONMENT[name])
    if not count_gpus():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # what DeepSpeed finds out as well, with a warning
    from egmf_dist import jobs

    try:
        return jobs.do(job, not is_silent_rank())
    except USER_ERRORS as error:
        if is_silent_rank():
            raise RankError(f"rank {os.environ['RANK']}: {one_line(error)}") from error
        raise


def _progress(job: Job) -> Any:
    """Show a job's records on this terminal while Ray's workers write them."""
    if job.steps is None:
        return nullcontext()
    from contextlib import ExitStack

    from egmf_dist.run.console import Console
    from egmf_dist.run.folder import Run
    from egmf_launcher.follow import following

    stack = ExitStack()
    console = stack.enter_context(Console(job.steps))
    stack.enter_context(following(Run(job.run).metrics, console.show))
    return stack


def reexecute_under_deepspeed(decision: Decision, hostfile: str | None, arguments: Sequence[str]) -> NoReturn:
    """Become ``deepspeed [--hostfile FILE] --module egmf_launcher.cli ARGUMENTS``.

    Args:
        decision: way ``deepspeed``.
        hostfile: the file, or None for this machine alone.
        arguments: our own command line; the options that led here are taken out.

    Raises:
        EgmfError: an argument that the shells of several machines would read as more than a word.
    """
    command = deepspeed_command(decision.hosts, hostfile, arguments)
    environ = without_launcher_variables(os.environ)
    environ["PATH"] = os.pathsep.join([os.fspath(Path(sys.executable).parent), environ.get("PATH", "")])
    try:
        sys.stdout.flush()
        os.execvpe(command[0], command, environ)  # in this process's place: signals reach it, and its exit code counts
    except FileNotFoundError as error:
        raise LaunchError(f"{command[0]} is not there; install DeepSpeed next to {sys.executable}") from error


def deepspeed_command(hosts: Sequence[Host], hostfile: str | None, arguments: Sequence[str]) -> list[str]:
    """The command line of :func:`reexecute_under_deepspeed`, as a list: no shell reads it on this machine."""
    rest = without_launch_options(arguments)
    command = [os.fspath(Path(sys.executable).parent / "deepspeed")]
    if hostfile is None:
        command += ["--num_gpus", str(hosts[0].slots)]
    else:
        command += ["--hostfile", hostfile]
        if any(word.partition("=")[0] in ("--include", "--exclude") for word in arguments):
            command += ["--include", include_of(hosts)]
        if len(hosts) == 1 and is_this_machine(hosts[0].name):
            command += ["--no_ssh_check", "--master_addr", LOOPBACK]
        else:
            odd = [a for a in rest if not _SHELL_SAFE.fullmatch(a)]
            if odd:
                raise EgmfError(
                    f"--launcher deepspeed: the argument {odd[0]!r} would pass through the shells of other machines; "
                    f"put the value into the --config file, or leave --launcher deepspeed out"
                )
    return [*command, "--module", "egmf_launcher.cli", *rest]


def include_of(hosts: Sequence[Host]) -> str:
    """Machines and slots as DeepSpeed's ``--include`` takes them."""
    return "@".join(f"{host.name}:{','.join(map(str, host.chosen or range(host.slots)))}" for host in hosts)


def without_launch_options(arguments: Sequence[str]) -> list[str]:
    """The command line without options of launching and ``--local_rank``, and their values."""
    names = [
        "hostfile",
        "include",
        "exclude",
        "launcher",
        "workers",
        "ray-address",
        "ray_address",
        "local_rank",
        "local-rank",
    ]
    return without_options(arguments, [f"--{name}" for name in names])


def wait_for_rank_zero_to_speak() -> None:
    """A rank that failed on the same bad input as rank 0 stays silent and lets rank 0 print and exit first."""
    time.sleep(SILENT_RANK_GRACE_S)
