"""What every rank of a started world does: one job, named by a JSON-able dictionary, the same on every rank."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from egmf_dist.config import Config, config_from_dict
from egmf_dist.run.folder import Run


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job in this rank. RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT must be set.

    Jobs::

        {"verb": "train", "config": {...}, "run": PATH, "resume": "auto"|"never"|CHECKPOINT, "launch": TOKEN,
         "changed": {...}, "console": bool}
        {"verb": "evaluate", "run": PATH, "split": NAME, "remove": [...], "remove_each": bool, "launch": TOKEN,
         "shards": [...], "backbone": PATH, "evaluation": {...}, "console": bool}

    Where ranks were started by somebody else each has made its own job; rank 0 has looked at the run's folder and
    taken its lock, so its job is done by all. ``launch`` and what follows it may be left out.

    Returns:
        The job's result, on every rank.

    Raises:
        EgmfError, ShardError: bad input, on every rank.
    """
    from egmf_dist.distributed import broadcast_object, process_group

    # DeepSpeed calls collectives that torch 2.13 has renamed, and says so at every call.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|transformers|deepspeed")
    with process_group():
        job = broadcast_object(job) | {"console": job["console"]}
        run = Run(Path(job["run"]))
        if job["verb"] == "train":
            from egmf_dist.training.loop import Start, train

            config: Config = config_from_dict(job["config"])
            start = Start(job["resume"], job.get("launch"), job.get("changed", {}), job["console"])
            return train(config, run, start)
        from egmf_dist.inference.evaluate import Places, evaluate

        places = Places(job.get("shards"), job.get("backbone"))
        settings = job.get("evaluation", {})
        return evaluate(run, job["split"], job["remove"], job["remove_each"], places, settings, job["console"])
