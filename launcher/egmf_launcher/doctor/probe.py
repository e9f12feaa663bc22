"""The facts of a machine, as JSON lines. Sent over ssh, run by a bare interpreter: standard library only.

``main(wanted)`` prints ``{"fact": NAME, "value": ...}``, or ``"error"`` in place of the value, as facts are found. Each
has a time limit of its own, so a file server that does not answer costs one fact and not the others.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

TORCH_S = 90.0
"""Importing torch on a machine that is busy, or from a slow disk."""


def python(wanted: dict[str, Any]) -> Any:
    """Which interpreter, and on which machine."""
    return {"version": platform.python_version(), "executable": sys.executable, "host": socket.gethostname()}


def packages(wanted: dict[str, Any]) -> Any:
    """Version of each wanted package, null where it is not installed."""
    found: dict[str, Any] = {}
    for name in wanted["packages"]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def source(wanted: dict[str, Any]) -> Any:
    """Hash of our own source files, by package; null where it cannot be imported."""
    found: dict[str, Any] = {}
    for name in wanted["source"]:
        spec = importlib.util.find_spec(name)
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
        found[name] = None
        if places:
            digest = hashlib.sha256()
            for place, folders, names in os.walk(places[0]):
                folders.sort()
                for file in sorted(name for name in names if name.endswith(".py")):
                    path = os.path.join(place, file)
                    digest.update(os.path.relpath(path, places[0]).encode())
                    digest.update(_bytes(path))
            found[name] = {"sha256": digest.hexdigest(), "place": places[0]}
    return found


def limits(wanted: dict[str, Any]) -> Any:
    """Open files, shared memory, cores, threads."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    memory = shutil.disk_usage("/dev/shm")
    cores = len(os.sched_getaffinity(0))
    return {
        "files": files,
        "most_files": most,
        "shm": memory.total,
        "shm_free": memory.free,
        "cores": cores,
        "omp": os.environ.get("OMP_NUM_THREADS"),
    }


def folder(wanted: dict[str, Any]) -> Any:
    """Whether the folder that workers change to is there."""
    return os.path.isdir(wanted["folder"])


def run(wanted: dict[str, Any]) -> Any:
    """The run's folder, or the nearest one above it that is there: room, a file of this host's, the driver's file."""
    place = wanted["run"]
    if not os.path.isdir(place):
        return {"place": place, "there": False}
    room = shutil.disk_usage(place)
    said: dict[str, Any] = {"place": place, "there": True, "free": room.free, "read": None, "write_error": None}
    own = os.path.join(place, f".doctor-{secrets.token_hex(8)}")
    try:
        with open(own, "w") as file:
            file.write("x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        said["write_error"] = error.strerror
    finally:
        if os.path.exists(own):
            os.unlink(own)
    if wanted["token"]:
        try:
            said["read"] = _bytes(os.path.join(place, wanted["token"])).decode()
        except OSError as error:
            said["read_error"] = error.strerror
    return said


def data(wanted: dict[str, Any]) -> Any:
    """For each folder of shards the hash of index and manifest, and how many bytes of tars there are."""
    found: dict[str, Any] = {}
    for place in wanted["data"]:
        try:
            digest = hashlib.sha256()
            for name in wanted["hashed"]:
                digest.update(_bytes(os.path.join(place, name)))
            sizes = [os.path.getsize(os.path.join(place, name)) for name in os.listdir(place) if name.endswith(".tar")]
            found[place] = {"sha256": digest.hexdigest(), "shards": len(sizes), "bytes": sum(sizes)}
        except OSError as error:
            found[place] = {"error": f"{error.filename}: {error.strerror}"}
    return found


def backbone(wanted: dict[str, Any]) -> Any:
    """The files of the backbone's folder: their sizes, the hash of its configuration, and which cannot be read."""
    place = wanted["backbone"]
    if not place:
        return None
    if not os.path.isdir(place):
        return {"there": False}
    sizes, unreadable = {}, []
    for name in sorted(os.listdir(place)):
        path = os.path.join(place, name)
        if os.path.isfile(path):
            sizes[name] = os.path.getsize(path)
            try:
                with open(path, "rb") as file:
                    file.read(1)
            except OSError as error:
                unreadable.append(f"{name} ({error.strerror})")
    try:
        config = hashlib.sha256(_bytes(os.path.join(place, "config.json"))).hexdigest()
    except OSError:
        config = None
    return {"there": True, "sizes": sizes, "config": config, "unreadable": unreadable}


def ports(wanted: dict[str, Any]) -> Any:
    """For each wanted port whether nobody listens on it."""
    found: dict[str, Any] = {}
    for port in wanted["ports"]:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
                found[str(port)] = True
            except OSError:
                found[str(port)] = False
    return found


def driver(wanted: dict[str, Any]) -> Any:
    """What nvidia-smi says of the GPUs; null where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = "--query-gpu=driver_version,name,memory.total,memory.used"
    said = subprocess.run([tool, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=15)
    if said.returncode:
        raise RuntimeError((said.stderr or said.stdout).strip().splitlines()[-1])
    found = []
    for line in said.stdout.splitlines():
        version, name, total, used = (word.strip() for word in line.split(","))
        found.append({"driver": version, "name": name, "mib": float(total), "used_mib": float(used)})
    return found


def torch(wanted: dict[str, Any]) -> Any:
    """What torch sees; every GPU multiplies something."""
    import torch as module

    said: dict[str, Any] = {"version": module.__version__, "cuda": module.version.cuda, "devices": []}
    said["available"] = module.cuda.is_available()
    said["nccl"] = module.distributed.is_available() and module.distributed.is_nccl_available()
    said["gloo"] = module.distributed.is_available() and module.distributed.is_gloo_available()
    for number in range(module.cuda.device_count() if said["available"] else 0):
        facts = module.cuda.get_device_properties(number)
        device: dict[str, Any] = {"name": facts.name, "mib": facts.total_memory / 2**20, "error": None}
        try:
            ones = module.ones(64, 64, device=f"cuda:{number}", dtype=module.bfloat16)
            if (ones @ ones).float().sum().item() != 64.0**3:
                device["error"] = "it multiplies wrongly"
        except Exception as error:
            device["error"] = " ".join(str(error).split())[:200]
        said["devices"].append(device)
    return said


KERNEL = """
import torch, triton
import triton.language as tl
@triton.jit
def twice(x, N: tl.constexpr):
    at = x + tl.arange(0, N)
    tl.store(at, tl.load(at) * 2)
x = torch.ones(64, device="cuda")
twice[(1,)](x, 64)
assert x.sum().item() == 128.0
"""


def triton(wanted: dict[str, Any]) -> Any:
    """Whether a kernel can be compiled and run; without a GPU there is nothing to run it on."""
    version = packages({"packages": ["triton"]})["triton"]
    compilers = [name for name in (os.environ.get("CC"), "gcc", "clang", "cc") if name and shutil.which(name)]
    said: dict[str, Any] = {"version": version, "compiler": next(iter(compilers), None), "ran": None, "error": None}
    if version is None or shutil.which("nvidia-smi") is None:
        return said
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, "kernel.py")  # Triton reads a kernel's source from its file
        with open(path, "w") as file:
            file.write(KERNEL)
        done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=TORCH_S)
    said["ran"] = done.returncode == 0
    said["error"] = None if said["ran"] else (done.stderr.strip().splitlines() or ["no word"])[-1]
    return said


FACTS = (python, packages, source, limits, folder, run, data, backbone, ports, driver, torch, triton)
LIMITS_S = {"torch": TORCH_S, "triton": TORCH_S + 10.0}


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _say(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _answer(function: Callable[[dict[str, Any]], Any], wanted: dict[str, Any], limit_s: float) -> dict[str, Any]:
    box: dict[str, Any] = {}

    def call() -> None:
        try:
            box["value"] = function(wanted)
        except Exception as error:
            box["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(limit_s)
    return dict(box) or {"error": f"no answer within {limit_s:g} s"}


def main(wanted: dict[str, Any]) -> None:
    """Print the facts, then the time; what hangs does not keep the program from ending."""
    for function in FACTS:
        limit_s = LIMITS_S.get(function.__name__, wanted["limit_s"])
        _say(fact=function.__name__, **_answer(function, wanted, limit_s))
    _say(fact="time", value=time.time())
    os._exit(0)
