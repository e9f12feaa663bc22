"""The environment of Ray's processes, and so of every worker: what must not leak in, and what must be set.

A launcher that started this driver left ``RANK``, ``WORLD_SIZE`` and friends behind; a worker that inherited them would
believe it is the driver's rank 0.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

_LAUNCHER_NAMES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "LOCAL_SIZE",
    "CROSS_RANK",
    "CROSS_SIZE",
    "NODE_RANK",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "RAY_ADDRESS",
)
_LAUNCHER_PREFIXES = ("TORCHELASTIC_", "ROLE_", "OMPI_COMM_WORLD_", "PMI_", "SLURM_PROCID", "SLURM_LOCALID")

PLACEMENT_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""How long Ray waits for the places of a group of workers."""
WORKER_ENVIRONMENT: Mapping[str, str] = {
    # A second OpenMP thread beside a busy process spins: 60 times slower where there are as many ranks as cores.
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's default of 15 lets whatever else runs on the machine take a rank's core, and all ranks wait for that one.
    "RAY_worker_niceness": "0",
    # Ray would otherwise print each line of a worker twice into its log.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    # A cluster that grows takes longer than Ray's 60 s.
    PLACEMENT_TIMEOUT: "300",
}
# A value the user set for these wins over ours.
_USER_MAY_SET = (
    "OMP_NUM_THREADS",
    "RAY_worker_niceness",
    PLACEMENT_TIMEOUT,
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S",
)
# What a Ray node on another machine takes over from this one; interface names are found out on each machine itself.
# They stand on ssh's command line, which every user of a machine can read: nothing secret (HF_TOKEN) may be among them.
FORWARDED_PREFIXES = (
    "NCCL_",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "PYTHONPATH",
    "EGMF_MEDIA_",
)


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What is set for workers, given what the user has set."""
    return {
        name: environ.get(name, value) if name in _USER_MAY_SET else value for name, value in WORKER_ENVIRONMENT.items()
    }


def without_launcher_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without the variables that a launcher sets for its ranks."""
    return {
        name: value
        for name, value in environ.items()
        if name not in _LAUNCHER_NAMES and not name.startswith(_LAUNCHER_PREFIXES)
    }


@contextlib.contextmanager
def ray_environment(extra: Mapping[str, str]) -> Iterator[None]:
    """``os.environ`` as Ray's processes shall inherit it, put back at the end. ``extra`` is set on top."""
    before = dict(os.environ)
    after = without_launcher_variables(before) | worker_environment(before) | dict(extra)
    try:
        _replace(after)
        yield
    finally:
        _replace(before)


def _replace(environ: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(environ):
        del os.environ[name]
    os.environ.update(environ)
