"""What every rank of a started world does: one job, named by a JSON-able dictionary, the same on every rank."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from egmf_dist.config import Config, config_from_dict


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job in this rank. RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT must be set.

    Jobs::

        {"verb": "train", "config": {...}, "run": PATH, "resume": "auto"|"never"|PATH, "console": bool}
        {"verb": "evaluate", "run": PATH, "split": NAME, "remove": [...], "remove_each": bool, "console": bool}

    Returns:
        The job's result, on every rank.

    Raises:
        EgmfError, ShardError: bad input, on every rank.
    """
    from egmf_dist.distributed import process_group

    # DeepSpeed calls collectives that torch 2.13 has renamed, and says so at every call.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|transformers|deepspeed")
    with process_group():
        if job["verb"] == "train":
            from egmf_dist.training.loop import train

            config: Config = config_from_dict(job["config"])
            return train(config, Path(job["run"]), job["resume"], job["console"])
        from egmf_dist.inference.evaluate import evaluate

        return evaluate(Path(job["run"]), job["split"], job["remove"], job["remove_each"], job["console"])
