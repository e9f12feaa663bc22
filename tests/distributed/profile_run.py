"""One rank that trains a run whose steps are profiled; argv[1] holds ``{config, run}``, argv[2] gets what is installed
before, in and after each step: where it differs from what is installed before the first."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import torch

from egmf_dist import distributed, jobs
from egmf_dist.distributed import process_group
from egmf_dist.jobs import TrainJob
from egmf_dist.run.folder import Run, open_run
from egmf_dist.training import loop
from egmf_dist.training.profile import Profiler

PLACES: dict[str, list[bool]] = {"before": [], "in": [], "after": []}
FIRST: list[Any] = []


def installed(trainer: Any) -> list[Any]:
    """All that profiling could have replaced or added."""
    import deepspeed.comm

    engine = trainer.engine
    coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
    hooks = [
        (list(map(id, m._forward_pre_hooks.values())), list(map(id, m._forward_hooks.values())))
        for m in engine.module.modules()
    ]
    own = [
        value
        for where in (trainer, engine, coordinator)
        for name, value in vars(where).items()
        if name in ("next_step", "backward", "step", "fetch_sub_module")
    ]
    return [hooks, own, {name: value for name, value in vars(deepspeed.comm).items() if callable(value)}]


class Watched(Profiler):
    """Looks before, in and after each step."""

    @contextlib.contextmanager
    def step(self):
        if not FIRST:
            FIRST.append(installed(self.trainer))
        self._look("before")
        with super().step():
            self._look("in")
            yield
        self._look("after")

    def _look(self, place: str) -> None:
        PLACES[place].append(installed(self.trainer) != FIRST[0])


def main() -> None:
    job = torch.load(sys.argv[1], weights_only=False)
    run = Run(job["run"])
    loop.Profiler = Watched
    with process_group():
        distributed.on_rank_zero(lambda: open_run(job["config"], run, "never") and None)
        jobs.do(TrainJob(run.folder, job["config"]), console=False)
        if distributed.rank() == 0:
            torch.save(PLACES, sys.argv[2])


main()
os._exit(0)
