"""Processes of this machine that do one thing together, apart from the process that asks: on CPUs, whatever is here.

``python -m MODULE JOB.json MADE.json`` is each of them, with RANK and its like set; :func:`as_rank` is its main.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from egmf_dist.errors import EgmfError

_LOOKED_EVERY = 0.2


def on_ranks(module: str, job: Mapping[str, Any], what: str, ranks: int = 1, limit: float | None = None) -> list[Any]:
    """Have processes do a job.

    Args:
        module: to run; its main is :func:`as_rank`.
        job: JSON-able, the same for all.
        what: is done, as an error begins: ``the plan's rehearsal``.
        ranks: how many processes.
        limit: seconds that they may take; None: as long as they want.

    Returns:
        What each has made, in rank order.

    Raises:
        EgmfError: one of them failed, in its own line; or they took too long.
    """
    with tempfile.TemporaryDirectory(prefix="egmf-ranks-") as folder, contextlib.ExitStack() as stack:
        given = Path(folder, "job.json")
        given.write_text(json.dumps(job), encoding="utf-8")
        made, logs = ([Path(folder, f"{name}-{rank}") for rank in range(ranks)] for name in ("made", "log"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes = []
        for rank in range(ranks):
            command = [sys.executable, "-m", module, str(given), str(made[rank])]
            log = stack.enter_context(logs[rank].open("wb"))
            process = subprocess.Popen(
                command, env=_environment(rank, ranks, port), stdout=subprocess.DEVNULL, stderr=log
            )
            stack.callback(_end, process)
            processes.append(process)
        begin = time.monotonic()
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                break  # the others would wait for it
            if limit is not None and time.monotonic() - begin > limit:
                raise EgmfError(f"{what} was given up after {limit:.0f} s")
            time.sleep(_LOOKED_EVERY)
        for process, log_path in zip(processes, logs, strict=True):
            if process.poll():
                raise EgmfError(_why(what, process.poll() or 0, log_path.read_text(errors="replace")))
        return [json.loads(path.read_text(encoding="utf-8")) for path in made]


def as_rank(work: Callable[[dict[str, Any]], Any]) -> int:
    """The main of a process that :func:`on_ranks` starts: reads the job, does it, writes what it gives.

    Returns:
        The exit code: 2 where the job is at fault, in a line.
    """
    from egmf_shards import ShardError

    # DeepSpeed calls collectives that torch 2.13 has renamed, and says so at every call.
    warnings.filterwarnings("ignore", category=FutureWarning)
    given, made = map(Path, sys.argv[1:])
    try:
        found = work(json.loads(given.read_text(encoding="utf-8")))
    except (EgmfError, ShardError) as error:
        print(f"egmf: {error}", file=sys.stderr)
        return 2
    made.write_text(json.dumps(found), encoding="utf-8")
    return 0


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    own = {name: str(value) for name, value in world.items()}
    # On a machine with GPUs, too, everything is the CPU's: no GPU need be free for it.
    own |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    own["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"} | os.environ | own


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _why(what: str, code: int, log: str) -> str:
    if code < 0:
        return f"{what} was ended by signal {-code}; look for a lack of memory"
    lines = [line for line in log.splitlines() if line.strip()] or ["it said nothing"]
    said = [line.removeprefix("egmf: ") for line in lines if line.startswith("egmf: ")]
    return said[-1] if said else f"{what} failed: {lines[-1]}"
