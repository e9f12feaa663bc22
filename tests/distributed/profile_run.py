"""One rank that trains a run whose steps are profiled; argv[1] holds ``{config, run}``, argv[2] gets what was wrapped
when it was over."""

from __future__ import annotations

import os
import sys

import torch

from egmf_dist import distributed, jobs
from egmf_dist.distributed import process_group
from egmf_dist.jobs import TrainJob
from egmf_dist.run.folder import Run, open_run


def main() -> None:
    job = torch.load(sys.argv[1], weights_only=False)
    run = Run(job["run"])
    with process_group():
        import deepspeed.comm

        before = deepspeed.comm.all_reduce
        distributed.on_rank_zero(lambda: open_run(job["config"], run, "never") and None)
        jobs.do(TrainJob(run.folder, job["config"]), console=False)
        if distributed.rank() == 0:
            torch.save({"put back": deepspeed.comm.all_reduce is before}, sys.argv[2])


main()
os._exit(0)
