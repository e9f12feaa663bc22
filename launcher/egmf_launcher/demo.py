"""The demo: generated data, a tiny backbone, training by the card's command, evaluation, pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from egmf_dist.config import Config
from egmf_dist.errors import EgmfError
from egmf_launcher.errors import LaunchError
from egmf_launcher.launch import count_gpus

CONFIG = Path("configs/demo.yaml")
RUN = Path("runs/demo")
DATA = Path("data/demo")
BACKBONE = Path("backbones/demo")
UTTERANCES = 6000
HOSTS = Path("hosts")
HOSTS_CONTENT = "localhost slots=2\n"


def config_path() -> Path:
    """The demo's settings: in this folder's ``configs/``, else in the clone this package is installed from.

    Raises:
        EgmfError: neither is there.
    """
    for folder in (Path(), Path(__file__).resolve().parents[2]):
        if (folder / CONFIG).is_file():
            return folder / CONFIG
    raise EgmfError(
        f"no --config was given and {CONFIG} is not here; give --config FILE.yaml, or start in a clone's folder"
    )


def prepare(config: Config) -> None:
    """Make the demo's data and backbone where they are missing."""
    if not DATA.exists():
        from egmf_shards.synthetic import synthesize

        print(f"demo: generating {DATA}", flush=True)
        synthesize(DATA, samples=UTTERANCES)
    if not BACKBONE.exists():
        from egmf_dist.model.tiny_backbone import train_tiny_backbone

        print(f"demo: pre-training {BACKBONE} (about a minute)", flush=True)
        train_tiny_backbone(
            [DATA], BACKBONE, layers=3, seed=config.training.seed, context_turns=config.data.context_turns
        )


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
    if not HOSTS.exists():
        HOSTS.write_text(HOSTS_CONTENT, encoding="utf-8")
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
    temporary = RUN / ".demo.json.tmp"
    temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    temporary.replace(RUN / "demo.json")
    print(
        f"demo: {figures['total_seconds']} s in all, at most {figures['peak_memory_gib']} GiB in all processes "
        f"together; both stand in {RUN / 'demo.json'}, pictures in {RUN / 'report'}",
        flush=True,
    )


def run_state(run: Path) -> str:
    """``absent``, ``interrupted`` (there, but the records have no end) or ``complete``."""
    if not run.exists():
        return "absent"
    records = run / "metrics.jsonl"
    if not records.is_file():
        return "interrupted"
    kind: Any = None
    for line in records.read_text(encoding="utf-8").splitlines():
        try:
            kind = json.loads(line).get("kind", kind)
        except (ValueError, AttributeError):
            continue
    return "complete" if kind == "end" else "interrupted"


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
