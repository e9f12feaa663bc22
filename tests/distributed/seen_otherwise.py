"""Rank 1 is made to see something else than rank 0, one thing after another; what each start says.

argv[1] holds the job, argv[2] gets ``{what: message}``.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import torch

from egmf_dist import jobs
from egmf_dist.distributed import process_group, share_objects
from egmf_dist.errors import EgmfError
from egmf_dist.training import trainer
from egmf_shards import ShardError


def lacks_data(config: Any, split: str) -> NoReturn:
    raise ShardError("data/x: no such folder")


OTHERWISE = {
    "run": ("sha256", lambda path: "another"),
    "backbone": ("backbone_identity", lambda config: {"sha256": "another"}),
    "data": ("open_split", lacks_data),
}


def main() -> None:
    job = torch.load(sys.argv[1], weights_only=False)
    rank, said = int(os.environ["RANK"]), {}
    with process_group():
        for what, (name, otherwise) in OTHERWISE.items():
            right = getattr(trainer, name)
            if rank == 1:
                setattr(trainer, name, otherwise)
            try:
                jobs.do(job, console=False)
            except EgmfError as error:
                everywhere = share_objects([str(error)])
                assert everywhere[0] == everywhere[1]
                said[what] = everywhere[0]
            setattr(trainer, name, right)
        if rank == 0:
            torch.save(said, sys.argv[2])


main()
os._exit(0)
