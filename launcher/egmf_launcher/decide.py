"""Which way this process goes: drive Ray, be a rank, re-execute under DeepSpeed's launcher, or leave at once.

Pure: the decision follows from the arguments, the environment and the number of GPUs alone, so every case is a row of
a test.

The rules, in order:

1. ``--launcher deepspeed``: re-execute ``deepspeed [--hostfile FILE]`` without our own ``--hostfile``.
2. ``--hostfile`` among our own arguments: Ray over exactly those machines, one worker a slot, whatever started us.
   DeepSpeed's launcher never saw that file and started local ranks only, whose number says nothing about which
   machines were meant.
3. ``RANK`` and ``WORLD_SIZE`` set, and no ``--hostfile``: somebody started all ranks rightly; train here.
4. ``--ray-address`` or ``RAY_ADDRESS`` (which ``ray job submit`` sets): Ray on that running cluster, ``--workers`` of
   them, else one for each of its GPUs.
5. Otherwise a plain start: ``--workers`` of them, else one a GPU, else one. One worker needs nobody to supervise it.

In 1 and 2 only rank 0 acts; the other local ranks leave with exit code 0, which DeepSpeed's launcher accepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from egmf_dist.errors import EgmfError
from egmf_launcher.hostfile import Host

Way = Literal["ray", "rank", "single", "deepspeed", "leave"]


@dataclass(frozen=True)
class LaunchArguments:
    """What the command line says about launching; the text under a field is its help there."""

    hostfile: str | None = None
    """One machine a line, 'name slots=N'; Ray starts one worker a slot."""
    include: str | None = None
    """Of the hostfile these machines and slots alone, as DeepSpeed has it: worker-0@worker-1:0,2."""
    exclude: str | None = None
    """All of the hostfile but these."""
    workers: int | None = None
    """Local workers; null: one a GPU, or one."""
    launcher: Literal["auto", "ray", "deepspeed"] = "auto"
    """auto: as the one printed line says; deepspeed: re-execute under DeepSpeed's launcher."""
    ray_address: str | None = None
    """A running Ray cluster to train on: HOST:PORT of its head, or auto; null: RAY_ADDRESS, where it is set."""


@dataclass(frozen=True)
class Decision:
    """Which way to go, and why in words."""

    way: Way
    why: str
    hosts: tuple[Host, ...] = ()
    """The machines and their slots, for ``ray`` and ``deepspeed``; a running cluster counts as one."""
    cluster: str = ""
    """Of ``ray``: the address of the cluster that is there already; empty where one is made."""

    def ranks(self, environ: Mapping[str, str]) -> int:
        """How many ranks will do the job."""
        if self.way == "rank":
            return int(environ["WORLD_SIZE"])
        return sum(host.slots for host in self.hosts) or 1

    def line(self) -> str:
        """The one line that is printed: ``launch: Ray over 1 host, 2 workers - why``."""
        workers = sum(host.slots for host in self.hosts)
        what = {
            "ray": f"Ray over {_count(len(self.hosts), 'host')}, {_count(workers, 'worker')}"
            if not self.cluster
            else f"the Ray cluster at {self.cluster}, {_count(workers, 'worker')}",
            "deepspeed": f"DeepSpeed's launcher over {_count(len(self.hosts), 'host')}, {_count(workers, 'rank')}",
            "rank": "this process is a rank already started",
            "single": "one rank in this process",
            "leave": "nothing to do in this rank",
        }[self.way]
        return f"launch: {what} - {self.why}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def started_rank(environ: Mapping[str, str]) -> int | None:
    """This process's rank, if a launcher set ``RANK`` and ``WORLD_SIZE``; None otherwise.

    Raises:
        EgmfError: one of the two is set without the other, or they are no numbers with 0 <= RANK < WORLD_SIZE.
    """
    rank, world = environ.get("RANK"), environ.get("WORLD_SIZE")
    if rank is None and world is None:
        return None
    if rank is None or world is None:
        missing = "RANK" if rank is None else "WORLD_SIZE"
        raise EgmfError(
            f"environment: {missing} is not set, but the other of RANK and WORLD_SIZE is; set both (a launcher does) "
            "or neither"
        )
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise EgmfError(
            f"environment: RANK is {rank!r} and WORLD_SIZE {world!r}; they must be numbers with 0 <= RANK < WORLD_SIZE"
        )
    return int(rank)


def running_cluster(arguments: LaunchArguments, environ: Mapping[str, str]) -> str:
    """The address of the cluster that a start would use; empty where it would use none.

    Raises:
        EgmfError: an address beside options that exclude it.
    """
    given = arguments.ray_address
    if given is None:
        if arguments.hostfile or arguments.launcher == "deepspeed" or started_rank(environ) is not None:
            return ""
        return environ.get("RAY_ADDRESS", "")
    if not given:
        raise EgmfError("--ray-address is empty; give HOST:PORT of a running cluster's head, or auto")
    if arguments.hostfile or arguments.launcher == "deepspeed":
        other = "--hostfile" if arguments.hostfile else "--launcher deepspeed"
        raise EgmfError(f"--ray-address and {other} exclude each other: leave one of them out")
    if started_rank(environ) is not None:
        raise EgmfError("--ray-address: the ranks are started already (RANK is set); leave the option out")
    return given


def decide(
    arguments: LaunchArguments, environ: Mapping[str, str], hosts: Sequence[Host] = (), gpus: int = 0
) -> Decision:
    """Choose the way.

    Args:
        arguments: what the command line says.
        environ: the process's environment.
        hosts: the parsed content of ``arguments.hostfile``; empty without one.
        gpus: how many GPUs this machine has, or the running cluster.

    Raises:
        EgmfError: arguments that exclude each other, or a half-set environment.
    """
    rank, cluster = started_rank(environ), running_cluster(arguments, environ)
    if arguments.workers is not None and arguments.workers < 1:
        raise EgmfError(f"--workers is {arguments.workers}; it must be 1 or more")
    if arguments.hostfile and arguments.workers is not None:
        raise EgmfError(
            "--workers and --hostfile exclude each other: the hostfile's slots are the workers; leave --workers out"
        )
    if arguments.launcher == "deepspeed":
        if rank is not None and not arguments.hostfile:
            raise EgmfError("--launcher deepspeed: the ranks are started already (RANK is set); leave the option out")
        if rank:
            return Decision("leave", f"rank 0 re-executes under DeepSpeed's launcher; this is rank {rank}")
        chosen = tuple(hosts) or (_local(arguments.workers or gpus or 1),)
        return Decision("deepspeed", "--launcher deepspeed asks for it", chosen)
    if arguments.hostfile:
        if rank:
            return Decision("leave", f"--hostfile {arguments.hostfile}: rank 0 drives Ray; this is rank {rank}")
        named = ", ".join(f"{host.name} slots={host.slots}" for host in hosts)
        also = "; DeepSpeed's launcher started this driver and never saw that file" if rank == 0 else ""
        return Decision("ray", f"--hostfile {arguments.hostfile} names {named}{also}", tuple(hosts))
    if rank is not None:
        if arguments.workers is not None or arguments.launcher == "ray":
            given = "--launcher ray" if arguments.workers is None else "--workers"
            raise EgmfError(f"{given}: the ranks are started already (RANK is set); leave the option out")
        return Decision("rank", f"no --hostfile, and RANK {rank} of {environ['WORLD_SIZE']} is set")
    if cluster:
        workers = arguments.workers or gpus
        if not workers:
            raise EgmfError(f"the Ray cluster at {cluster} has no GPU; say with --workers how many ranks it shall give")
        why = "--ray-address" if arguments.ray_address else "RAY_ADDRESS is set"
        return Decision("ray", why, (Host(cluster, workers),), cluster)
    if arguments.workers is not None:
        workers, why = arguments.workers, f"--workers {arguments.workers}"
    elif gpus:
        workers, why = gpus, f"no --hostfile; one worker for each of {_count(gpus, 'GPU')} here"
    else:
        workers, why = 1, "no --hostfile and no GPU; --workers N gives more"
    if workers == 1 and arguments.launcher != "ray":
        return Decision("single", why)
    return Decision("ray", why, (_local(workers),))


def _local(slots: int) -> Host:
    return Host("localhost", slots)
