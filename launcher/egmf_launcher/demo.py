"""The demo's commands: training by `deepspeed launcher/train.py`, evaluation, pictures.

What they need is made by :mod:`egmf_dist.recipes.demo`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from egmf_dist.errors import EgmfError
from egmf_dist.files import write_json
from egmf_dist.recipes.demo import RUN, prepare
from egmf_dist.run.folder import Run
from egmf_dist.run.records import read_records
from egmf_launcher.errors import LaunchError
from egmf_launcher.hostfile import parse_hostfile
from egmf_launcher.launch import count_gpus

CONFIG = Path("configs/demo.yaml")
HOSTS = Path("hosts")
HOSTS_CONTENT = "localhost slots=2\n"


def write_hosts() -> None:
    """Write the demo's hostfile, or say that the one there is used as it is."""
    if HOSTS.exists():
        named = ", ".join(f"{host.name} slots={host.slots}" for host in parse_hostfile(HOSTS))
        print(f"demo: the file {HOSTS} is here already and used as it is: {named}", flush=True)
    else:
        HOSTS.write_text(HOSTS_CONTENT, encoding="utf-8")
        print(f"demo: wrote {HOSTS}: {HOSTS_CONTENT.strip()}", flush=True)


def run_demo() -> None:
    """The whole demo; every step that was done before is not done again.

    Raises:
        EgmfError: not in a clone's folder.
        LaunchError: a command failed.
    """
    from egmf_dist.config import load_config
    from egmf_launcher.memory import MemorySampler

    if not (CONFIG.is_file() and Path("launcher/train.py").is_file()):
        raise EgmfError(f"egmf demo: {CONFIG} and launcher/train.py are not here; start it in a clone's folder")
    config = load_config(CONFIG)
    write_hosts()
    egmf = [sys.executable, "-m", "egmf_launcher.cli"]
    phases: dict[str, float] = {}
    with MemorySampler() as memory:
        timed(phases, "data and backbone", lambda: prepare(config))
        state = run_state(RUN)
        if state == "complete":
            print(f"demo: {RUN} is trained already (remove it to train again)", flush=True)
        else:
            command = ["deepspeed", "launcher/train.py", "--hostfile", os.fspath(HOSTS)]
            command += ["--resume", "auto"] if state == "interrupted" else []
            timed(phases, "training", lambda: call(command))
        timed(
            phases, "evaluation", lambda: call([*egmf, "evaluate", os.fspath(RUN), "--split", "test", "--remove-each"])
        )
        timed(phases, "pictures", lambda: call([*egmf, "report", os.fspath(RUN)]))
    if state == "complete":
        return  # demo.json keeps the figures of the call that trained
    figures = {
        "resumed": state == "interrupted",
        "seconds": {name: round(seconds, 1) for name, seconds in phases.items()},
        "total_seconds": round(sum(phases.values()), 1),
        "peak_memory_gib": round(memory.peak_bytes / 2**30, 2),
        "memory_is": "proportional set size (PSS) of the demo and all its descendants, Ray's daemons included: the "
        "largest of one sample a second",
    }
    write_json(Run(RUN).demo, figures)
    print(
        f"demo: {figures['total_seconds']} s in all, at most {figures['peak_memory_gib']} GiB in all processes "
        f"together; both stand in {Run(RUN).demo}, pictures in {Run(RUN).report}",
        flush=True,
    )


def run_state(run: Path) -> str:
    """``absent``, ``interrupted`` (there, but the records have no end) or ``complete``."""
    if not run.exists():
        return "absent"
    records = Run(run).metrics
    if not records.is_file():
        return "interrupted"
    kinds = [record.get("kind") for record in read_records(records)]
    return "complete" if kinds[-1:] == ["end"] else "interrupted"


def timed(phases: dict[str, float], name: str, work: Callable[[], None]) -> None:
    """Do ``work``, note its seconds under ``name`` and print them."""
    begin = time.monotonic()
    work()
    phases[name] = time.monotonic() - begin
    print(f"[{name}: {phases[name]:.1f} s]", flush=True)


def call(command: list[str]) -> None:
    """Print a command and run it, the virtual environment's programs first.

    Raises:
        LaunchError: it failed; its own last line says why.
    """
    shown = ["egmf", *command[3:]] if command[1:3] == ["-m", "egmf_launcher.cli"] else command
    print(f"$ {' '.join(shown)}", flush=True)
    environ = dict(os.environ)
    environ["PATH"] = os.pathsep.join([os.fspath(Path(sys.executable).parent), environ.get("PATH", "")])
    environ.setdefault("OMP_NUM_THREADS", "1")
    if not count_gpus():
        environ.setdefault("DS_ACCELERATOR", "cpu")  # what DeepSpeed finds out as well, with a warning a process
    try:
        code = subprocess.run(command, env=environ, check=False).returncode
    except FileNotFoundError as error:
        raise LaunchError(f"{command[0]} is not installed next to {sys.executable}") from error
    if code:
        raise LaunchError(f"'{' '.join(shown)}' ended with exit code {code}; its message stands above")
