"""One rank of a training or evaluation job.

argv[1] holds the job, argv[2] gets the result.
"""

from __future__ import annotations

import os
import sys

import torch

from egmf_dist import jobs


def main() -> None:
    job = torch.load(sys.argv[1], weights_only=False)
    result = jobs.do(job, console=False)
    if os.environ["RANK"] == "0":
        torch.save(result, sys.argv[2])


main()
# The result is on disk and the group is left. What follows would be the interpreter's teardown, in which gloo's threads
# abort a process now and then; it is not what is measured here.
os._exit(0)
