"""Asking the machines: the probe here as a process, elsewhere through ssh, all at once."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

from egmf_launcher.doctor.packages import our_packages
from egmf_launcher.doctor.rows import Case, Facts, limited
from egmf_launcher.network import is_this_machine
from egmf_launcher.ray.ssh import remote_command
from egmf_shards.format.index import INDEX_NAME
from egmf_shards.format.manifest import MANIFEST_NAME

ASK_S = 240.0
"""A host that has not said everything by then has hung; its facts have limits of their own."""
FACT_S = 10.0
PORTS = {6379: "Ray's head", 8265: "Ray's dashboard", 10001: "Ray's client server", 52365: "Ray's agents"}
"""What Ray listens on where it is started without numbers of one's own."""
_SSH = {
    "Permission denied": "an account there, a key without a question (ssh-copy-id {host})",
    "Host key verification failed": "log in once and accept its key, or put it into known_hosts",
}
"""What to do by ssh's own words."""
SOURCE = ("egmf_dist", "egmf_launcher", "egmf_shards", "egmf_kernels")


def gather(case: Case, limit_s: float = ASK_S) -> dict[str, Facts]:
    """The facts of every host, by its name; a host that cannot be asked has a problem in place of facts."""
    with shared_file(case) as (place, token):
        program = program_for(wanted_of(case, place, token))
        with ThreadPoolExecutor(max_workers=min(64, len(case.hosts))) as pool:
            names = [host.name for host in case.hosts]
            return dict(zip(names, pool.map(lambda name: ask(name, program, limit_s), names), strict=True))


def wanted_of(case: Case, place: Path, token: str) -> dict[str, Any]:
    """What the probe is to look at, JSON-able; paths are this machine's, absolute."""
    data = [] if case.config is None else [path for path in case.config.data.shards if "://" not in path]
    backbone = "" if case.config is None else case.config.backbone.path
    return {
        "packages": sorted(our_packages()),
        "source": SOURCE,
        "folder": os.getcwd(),
        "run": os.fspath(place),
        "token": token,
        "data": [os.path.abspath(path) for path in data],
        "hashed": [INDEX_NAME, MANIFEST_NAME],
        "backbone": os.path.abspath(backbone) if backbone and os.path.isdir(backbone) else "",
        "ports": sorted(PORTS),
        "limit_s": FACT_S,
    }


def program_for(wanted: dict[str, Any]) -> bytes:
    """The whole program, which an interpreter reads from its standard input: nothing of it is on a command line."""
    source = (files("egmf_launcher.doctor") / "probe.py").read_text(encoding="utf-8")
    return f"{source}\n\nmain(json.loads({json.dumps(wanted)!r}))\n".encode()


def nearest_folder(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    path = path.absolute()
    return next(folder for folder in [path, *path.parents] if folder.is_dir())


@contextlib.contextmanager
def shared_file(case: Case) -> Iterator[tuple[Path, str]]:
    """A file of random name and content where the run is or will be, for the other hosts to read.

    Gives its folder and its name; an empty name where it could not be written, which the probe here says as well.
    """
    name = ""
    place = case.run.absolute()
    with contextlib.suppress(OSError, TimeoutError):
        place = limited(lambda: nearest_folder(case.run), FACT_S)
        wanted = f".doctor-{secrets.token_hex(8)}"
        limited(lambda: (place / wanted).write_text(wanted), FACT_S)
        name = wanted
    try:
        yield place, name
    finally:
        if name:
            with contextlib.suppress(OSError, TimeoutError):
                limited(lambda: (place / name).unlink(missing_ok=True), FACT_S)


def ask(host: str, program: bytes, limit_s: float) -> Facts:
    """One machine's facts."""
    here = is_this_machine(host)
    command = [sys.executable, "-P", "-"] if here else remote_command(host, ["-P", "-"])
    since = time.time()
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        return Facts(problem=f"{command[0]} is not there", advice="install an ssh client")
    code: int | None = None
    try:
        out, errors = process.communicate(program, timeout=limit_s)
        code = process.returncode
    except subprocess.TimeoutExpired as expired:
        process.kill()
        out, errors = expired.output or b"", expired.stderr or b""
    return read_answer(host, out, errors, code, (since, time.time()))


def read_answer(host: str, out: bytes, errors: bytes, code: int | None, between: tuple[float, float]) -> Facts:
    """The facts in a probe's output; lines of others (a login's greeting) are passed over.

    Args:
        host: its name.
        out: standard output.
        errors: standard error.
        code: exit code, None where it was ended for taking too long; 127 is the far shell's that finds no program.
        between: this machine's clock before and after.
    """
    said: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for line in out.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            found = json.loads(line)
            if "value" in found:
                said[found["fact"]] = found["value"]
            else:
                failed[found["fact"]] = str(found["error"])
    if not said:
        lines = errors.decode(errors="replace").strip().splitlines()
        if code is None:
            return Facts(problem="no answer in time", advice="see whether ssh to it hangs, or its file servers")
        last = lines[-1] if lines else f"exit code {code}"
        if code == 127:
            advice = f"install the same environment at {Path(sys.executable).parent} on {host}, or share it"
            return Facts(problem=f"no Python at {sys.executable} there ({last})", advice=advice)
        why = next((advice for words, advice in _SSH.items() if words in last), "see its sshd, its network, its name")
        return Facts(problem=last, advice=f"make `ssh -o BatchMode=yes {host} true` work: {why.format(host=host)}")
    clock, (before, after) = said.pop("time", None), between
    ahead = None if clock is None else clock - after if clock > after else min(0.0, clock - before)
    return Facts(said, failed, clock_s=ahead)
