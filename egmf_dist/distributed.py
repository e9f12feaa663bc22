"""The process group: joined through DeepSpeed where nobody has yet, left where we joined it, and a few collectives.

A process that has joined none (a model used from Python) is a world of one rank.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
import torch.distributed as dist

from egmf_dist.errors import EgmfError, MachineError, is_machines
from egmf_shards import ShardError
from egmf_shards.errors import UnreachableError

T = TypeVar("T")

_hosts: dist.ProcessGroup | None = None
"""Of :func:`hosts_group`, made at its first use."""

_alone: ContextVar[bool] = ContextVar("alone", default=False)

ENVIRONMENT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the process group the environment describes, and leave it at the end.

    Leaving matters: without ``destroy_process_group`` exits abort now and then. A group that Ray Train made is Ray's
    to end.
    """
    missing = [name for name in ENVIRONMENT if name not in os.environ]
    if missing:
        raise RuntimeError(f"{', '.join(missing)} not set: start ranks through egmf train, torchrun or Ray")
    joined = not dist.is_initialized()
    import deepspeed.ops

    # DeepSpeed would compile a shared-memory all-reduce for CPUs: 20 s and a C++ compiler for the same losses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    import deepspeed

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    try:
        yield
    finally:
        global _hosts
        _hosts = None
        if joined and dist.is_initialized():
            # Engines are full of reference cycles that hold the group; one that outlives it aborts the exit.
            gc.collect()
            dist.destroy_process_group()


def _together() -> bool:
    return dist.is_initialized() and not _alone.get()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within the body this process is a world of one rank, whatever group it has joined: others need not follow."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def rank() -> int:
    """This process's number; 0 outside of a group."""
    return dist.get_rank() if _together() else 0


def world_size() -> int:
    """How many processes there are; a process outside of a group is alone."""
    return dist.get_world_size() if _together() else 1


def device() -> torch.device:
    """Where this rank computes."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("cuda", torch.cuda.current_device())


def hosts_group() -> dist.ProcessGroup | None:
    """All ranks, for numbers that are on the hosts: beside NCCL a group of gloo's, so that no rank waits for its GPU to
    learn what another one has read. None means the default group. Every rank must call this."""
    global _hosts
    if _hosts is None and "gloo" not in dist.get_backend():
        _hosts = dist.new_group(backend="gloo")
    return _hosts


def sum_over_ranks(values: list[float]) -> list[float]:
    """Element-wise sum of host numbers over ranks, in float64 so that counts stay exact."""
    if not _together():
        return [float(v) for v in values]
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, group=hosts_group())
    return [float(v) for v in tensor.tolist()]


def share_numbers(values: Sequence[float]) -> list[list[float]]:
    """Every rank's numbers on every rank, in rank order, by one sum between the hosts; as many on each rank."""
    ranks, own, width = world_size(), rank(), len(values)
    slots = [0.0] * (ranks * width)
    slots[own * width : (own + 1) * width] = values
    everyone = sum_over_ranks(slots)
    return [everyone[r * width : (r + 1) * width] for r in range(ranks)]


def sum_on_device(tensor: torch.Tensor) -> None:
    """Sum a tensor over ranks where it is, in place; nothing waits for it."""
    dist.all_reduce(tensor)


def gather_objects(value: Any) -> list[Any] | None:
    """Every rank's value on rank 0, in rank order; None elsewhere."""
    if not _together():
        return [value]
    out: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, out, dst=0)
    return out


def share_objects(values: list[T]) -> list[T]:
    """Every rank's values on every rank, in rank order."""
    if not _together():
        return values
    parts: list[list[T]] = [[]] * world_size()
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def broadcast_object(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if not _together():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


class Complaint(NamedTuple):
    """What one rank met and every rank raises."""

    message: str
    machines: bool
    """A machine's failure, which may be gone after a restart, and not a user's."""

    def error(self) -> EgmfError | MachineError:
        """To be raised."""
        return MachineError(self.message) if self.machines else EgmfError(self.message)


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Bad input, or a file that cannot be read or written, that one rank meets in the body is raised on every rank, so
    that none waits for it in a collective.

    Every rank must enter this together.

    Raises:
        EgmfError: the message of the first rank that failed, on every rank.
        MachineError: the same where its machine failed.
    """
    complaint = None
    try:
        yield
    except (EgmfError, MachineError, ShardError, OSError) as error:
        complaint = complaint_of(error)
        if complaint is None:
            raise
    (failed,) = sum_over_ranks([float(complaint is not None)])
    if failed:
        raise_together(complaint)


def complaint_of(error: Exception) -> Complaint | None:
    """The line where an error has one for a person: bad input, a file that the system does not give, or a machine that
    failed; None for any other."""
    if isinstance(error, EgmfError | MachineError | ShardError):
        return Complaint(str(error), isinstance(error, MachineError | UnreachableError))
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return Complaint(f"{error.filename}: {error.strerror}", is_machines(error))
    return None


def raise_together(complaint: Complaint | None) -> NoReturn:
    """Raise on every rank what the first of the failed ones has to say; the others give None.

    Raises:
        EgmfError, MachineError: always one of them.
    """
    raise share_objects([complaint] if complaint is not None else [])[0].error()


def on_rank_zero(action: Callable[[], Any]) -> Any:
    """Do ``action`` on rank 0 and give its result to every rank; what it raises is raised on every rank.

    Raises:
        EgmfError: ``action`` raised it (or a ShardError, or the system's error about a file).
        MachineError: ``action`` raised it, or met a machine's failure.
        RuntimeError: on the other ranks, ``action`` raised anything else, which rank 0 raises as it is.
    """
    value, complaint, failure = None, None, None
    if rank() == 0:
        try:
            value = action()
        except Exception as error:  # the other ranks must hear of it before it goes its way
            complaint = complaint_of(error)
            failure = error if complaint is None else None
    value, complaint, broken = broadcast_object((value, complaint, None if failure is None else repr(failure)))
    if failure is not None:
        raise failure
    if broken is not None:
        raise RuntimeError(f"rank 0 failed: {broken}")
    if complaint is not None:
        raise complaint.error()
    return value


def barrier() -> None:
    """Wait for every rank."""
    if _together():
        dist.barrier()
