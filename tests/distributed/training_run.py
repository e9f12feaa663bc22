"""One rank of a training or evaluation job.

argv[1] holds ``{"verb", "config", "run", ...}``, argv[2] gets the result.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

import torch

from egmf_dist import worker


def main() -> None:
    job = torch.load(sys.argv[1], weights_only=False)
    if job["verb"] == "train":
        arguments = {"config": asdict(job["config"]), "run": job["run"], "resume": job["resume"]}
    else:
        arguments = {"run": job["run"], "split": "test", "remove": [], "remove_each": job["remove_each"]}
    torch.save(worker.run({"verb": job["verb"], "console": False} | arguments), sys.argv[2])


main()
