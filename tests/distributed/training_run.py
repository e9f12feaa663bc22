"""One rank of a training or evaluation job, or of several by name, one after another.

argv[1] holds the job or ``{name: job}``, argv[2] gets the result or ``{name: result}``.
"""

from __future__ import annotations

import os
import sys

import torch

from egmf_dist import jobs
from egmf_dist.distributed import process_group


def main() -> None:
    job = torch.load(sys.argv[1], weights_only=False)
    if isinstance(job, dict):
        with process_group():  # DeepSpeed keeps the first group for ever, so every job shares it
            result = {name: jobs.do(one, console=False) for name, one in job.items()}
    else:
        result = jobs.do(job, console=False)
    if os.environ["RANK"] == "0":
        torch.save(result, sys.argv[2])


main()
# The result is on disk and the group is left. What follows would be the interpreter's teardown, in which gloo's threads
# abort a process now and then; it is not what is measured here.
os._exit(0)
