"""The demo: generated data, a tiny backbone, training by `deepspeed launcher/train.py`, evaluation, pictures."""

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
from egmf_dist.files import write_json
from egmf_dist.run.folder import Run
from egmf_launcher.errors import LaunchError
from egmf_launcher.hostfile import parse_hostfile
from egmf_launcher.launch import count_gpus
from egmf_shards import ShardError, ShardSet
from egmf_shards.format.manifest import read_manifest

CONFIG = Path("configs/demo.yaml")
RUN = Path("runs/demo")
DATA = Path("data/demo")
BACKBONE = Path("backbones/demo")
SEED, UTTERANCES, MISSING, NOISE = 0, 6000, 0.03, 0.01
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
    """Make the demo's data and backbone where they are missing.

    Raises:
        EgmfError: what is there under their names is not what the demo makes; names the folder to remove.
    """
    if DATA.exists():
        check_data()
    else:
        from egmf_shards import synthesize

        print(f"demo: generating {DATA}", flush=True)
        synthesize(DATA, SEED, UTTERANCES, MISSING, NOISE)
    if Path(config.backbone.path) != BACKBONE:
        return  # an option names another
    if BACKBONE.exists():
        check_backbone()
    else:
        from egmf_dist.recipes.tiny_backbone import train_tiny_backbone

        print(f"demo: pre-training {BACKBONE} (about a minute)", flush=True)
        train_tiny_backbone(
            [DATA], BACKBONE, layers=3, seed=config.training.seed, context_turns=config.data.context_turns
        )


def check_data() -> None:
    """Refuse data under the demo's name that the demo would not generate: its figures would not be the demo's."""
    try:
        source = read_manifest(DATA)["source"]
    except ShardError as error:
        raise EgmfError(f"{error}; remove {DATA} to have the demo make it anew") from error
    wanted = {"seed": SEED, "samples": UTTERANCES, "missing": MISSING, "noise": NOISE}
    other = [
        f"{key} {source.get(key)!r} instead of {value!r}" for key, value in wanted.items() if source.get(key) != value
    ]
    if other:
        raise EgmfError(f"{DATA} is not the demo's data ({', '.join(other)}); move it away, or remove {DATA}")


def check_backbone() -> None:
    """Refuse a backbone under the demo's name that was pre-trained on other text than the demo's data."""
    record = BACKBONE / "backbone.json"
    try:
        found = [source.get("index_hash") for source in json.loads(record.read_text(encoding="utf-8"))["sources"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EgmfError(
            f"{BACKBONE} is not the demo's backbone (no readable {record.name}); remove {BACKBONE}"
        ) from error
    if found != [ShardSet.open([DATA], "train").index_hash]:
        raise EgmfError(f"{BACKBONE} was pre-trained on other data than {DATA} as the demo makes it; remove {BACKBONE}")


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
