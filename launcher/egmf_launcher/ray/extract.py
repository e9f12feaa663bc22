"""Features of many clips on several machines: parts of the list as Ray tasks, one on each slot at a time.

A part is worked on by the same process that one machine would start, so a clip that ends it harms no other there
either. Every machine sees clips and weights under the same paths; features are written by the driver alone.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from egmf_dist.errors import EgmfError
from egmf_launcher.errors import USER_ERRORS, WorkerFailedError, one_line
from egmf_launcher.hostfile import Host
from egmf_launcher.ray import cluster
from egmf_media.batch.processes import Result, Task, run_tasks
from egmf_media.batch.run import Runner
from egmf_media.extractors import Plan
from egmf_media.limits import Limits

PART = 16
"""Clips of a Ray task: starting its process costs a second."""
_AHEAD = 2
"""Parts a slot that may wait for an earlier one."""


def on_hosts(hosts: Sequence[Host]) -> Runner:
    """What :func:`egmf_media.batch.run.extract_many` takes as its runner.

    Args:
        hosts: of the hostfile.
    """

    def run(tasks: Sequence[Task], plan: Plan, limits: Limits, processes: int) -> Iterator[Result]:
        if not tasks:
            return
        with cluster.start(hosts) as started:
            import ray

            # A part must not be so large that slots have nothing to do.
            slots = sum(host.slots for host in hosts)
            size = max(1, min(PART, -(-len(tasks) // (2 * slots))))
            parts = [tasks[first : first + size] for first in range(0, len(tasks), size)]
            remote: Any = ray.remote(num_cpus=1, resources={cluster.SLOT: 1}, max_retries=0)(extract_part)
            waiting: deque[Any] = deque()
            try:
                for part in parts:
                    waiting.append(remote.remote([*part], plan, limits, os.getcwd()))
                    if len(waiting) > slots * _AHEAD:
                        yield from ray.get(waiting.popleft())
                while waiting:
                    yield from ray.get(waiting.popleft())
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                if isinstance(cause, USER_ERRORS):
                    raise cause from None
                raise WorkerFailedError(f"extraction failed: {one_line(cause)}; Ray's logs: {started.logs}") from error
            except ray.exceptions.RayError as error:
                raise WorkerFailedError(f"extraction failed: {one_line(error)}; Ray's logs: {started.logs}") from error

    return run


def extract_part(tasks: Sequence[Task], plan: Plan, limits: Limits, folder: str) -> list[Result]:
    """What a Ray worker does with a part of the list.

    Raises:
        EgmfError: the driver's folder is not seen on this machine.
    """
    if not Path(folder).is_dir():
        raise EgmfError(
            f"host {os.uname().nodename} has no folder {folder}; every machine must see it under the same path"
        )
    os.chdir(folder)
    return list(run_tasks(tasks, plan, limits, 1))
