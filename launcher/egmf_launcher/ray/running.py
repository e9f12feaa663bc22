"""A Ray cluster that is there already: made by ``ray start``, KubeRay, or whoever runs ``ray job submit``.

It is its owner's. Nothing is started and nothing stopped there but this job's workers; access, addresses and logs are
as the owner set them up. A process may do any number of jobs on it, one after another.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from egmf_launcher.errors import LaunchError, one_line
from egmf_launcher.ray.environment import FORWARDED_PREFIXES, PLACEMENT_TIMEOUT, worker_environment

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""By which ``ray job submit`` tells the driver that it starts of the job's runtime environment."""


def connect(address: str) -> None:
    """Become a driver of the cluster at ``address``, once in a process.

    Args:
        address: ``HOST:PORT`` of its head, ``auto`` for the one on this machine.

    Raises:
        LaunchError: there is none, or it lets us not in.
    """
    environ = worker_environment(os.environ)
    for name, value in environ.items():
        os.environ.setdefault(name, value)  # Ray Train's are read in this process
    import ray

    if ray.is_initialized():
        return
    _look_for(address)
    forwarded = {name: value for name, value in os.environ.items() if name.startswith(FORWARDED_PREFIXES)}
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=without_the_jobs(
                {
                    "env_vars": forwarded | environ,
                    "worker_process_setup_hook": "egmf_launcher.ray.running.on_worker_start",
                },
                os.environ.get(_JOB_CONFIG, ""),
            ),
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise LaunchError(
            f"Ray cluster at {address}: {one_line(error)[:300]}; give the address of a running one with --ray-address "
            "or RAY_ADDRESS, and its token with RAY_AUTH_TOKEN_PATH where it asks for one"
        ) from error


def without_the_jobs(own: dict[str, Any], config: str) -> dict[str, Any]:
    """A runtime environment without what the job's own holds already: what was given with ``ray job submit`` reaches
    the workers anyway, and Ray refuses to be told twice, of the same value, too.

    Args:
        own: ``env_vars`` and other fields.
        config: the job's, JSON, as Ray gives it to a submitted job's process; empty where there is none.
    """
    if not config or os.environ.get("RAY_OVERRIDE_JOB_RUNTIME_ENV") == "1":
        return own
    theirs = json.loads(config).get("runtime_env") or {}
    variables = {n: value for n, value in own["env_vars"].items() if n not in (theirs.get("env_vars") or {})}
    return {name: value for name, value in own.items() if name not in theirs} | {"env_vars": variables}


def _look_for(address: str) -> None:
    """Ray waits for minutes, and aborts the process then, where nobody answers at ``HOST:PORT``."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=15).close()
    except (OSError, ValueError, OverflowError) as error:
        raise LaunchError(
            f"Ray cluster at {address}: nobody answers ({one_line(error)}); give HOST:PORT of a running one's head "
            "with --ray-address or RAY_ADDRESS"
        ) from error


def on_worker_start() -> None:
    """In each worker before anything else: gloo shall listen where the other hosts reach this one.

    Without it gloo binds to what the host's name resolves to, on many systems 127.0.1.1, and meets only itself.
    """
    import ray

    from egmf_launcher.network import interface_of

    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def gpus_of(address: str) -> int:
    """How many GPUs the cluster has now.

    Raises:
        LaunchError: as :func:`connect`.
    """
    connect(address)
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


@contextlib.contextmanager
def joined(address: str, workers: int, cpus_per_worker: int) -> Iterator[Path]:
    """Use the cluster for a job.

    Args:
        address: as in :func:`connect`.
        workers: that will be asked for.
        cpus_per_worker: of each.

    Yields:
        The folder of its logs, on its own machines.

    Raises:
        LaunchError: as :func:`connect`.
    """
    connect(address)
    import ray

    there = ray.cluster_resources()
    needed = {"CPU": float(workers * cpus_per_worker)} | ({"GPU": float(workers)} if there.get("GPU") else {})
    short = [
        f"{there.get(name, 0):g} of {want:g} {name}s" for name, want in needed.items() if there.get(name, 0) < want
    ]
    if short:
        wait = os.environ.get(PLACEMENT_TIMEOUT)
        print(
            f"launch: the cluster has {' and '.join(short)} that are needed; waiting for it to grow, at most {wait} s",
            file=sys.stderr,
            flush=True,
        )
    yield Path("/tmp/ray/session_latest/logs")
