"""Checks of each machine by itself: reached, versions, GPUs, limits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from egmf_launcher.doctor.packages import NAME, optional_packages, our_packages, our_python
from egmf_launcher.doctor.rows import Case, Row, Status, by_fact, listed

GIB = 2**30
CLOCK_S = 2.0
FILES, LEAST_FILES = 4096, 256
SHM, LEAST_SHM = 2**30, 2**26
"""Containers are given 64 MiB of /dev/shm where nobody asks for more: loader processes and NCCL die of a bus error."""


def reached(case: Case) -> Iterator[Row]:
    """Every host answers through ssh without a question, with this interpreter."""
    for host in case.hosts:
        facts = case.facts[host.name]
        if facts.problem is not None:
            yield Row("ssh", host.name, "bad", facts.problem, facts.advice)
        else:
            found = facts.said.get("python", {})
            yield Row("ssh", host.name, "ok", f"{found.get('host')} runs {found.get('executable')}")


def python(case: Case) -> Iterable[Row]:
    """Python is of a version that is supported, and the same everywhere."""
    here = case.facts[case.here].said.get("python", {}).get("version")

    def judge(host: str, said: Any) -> Row:
        version = said["version"]
        if not our_python().contains(version, prereleases=True):
            return Row("Python", host, "bad", version, f"{our_python()} is needed")
        if here is not None and version != here:
            return Row("Python", host, "bad", f"{version}, and {here} on {case.here}", "install the same everywhere")
        return Row("Python", host, "ok", version)

    return by_fact(case, "Python", "python", judge)


def packages(case: Case) -> Iterable[Row]:
    """Every package is there, within its range, and the same everywhere: ranks exchange pickled objects of them."""
    here = case.facts[case.here].said.get("packages", {})
    mend = "install the project there as here: pip install -c constraints.txt -e ."

    def judge(host: str, said: Any) -> Row:
        if not our_packages():
            return Row("packages", host, "warning", f"{NAME} is not installed, so no range is known", mend)
        wrong = [
            f"{name} {said.get(name) or 'missing'} (needs {wanted or 'any'})"
            for name, wanted in our_packages().items()
            if said.get(name) is None or not wanted.contains(said[name], prereleases=True)
        ]
        if wrong:
            return Row("packages", host, "bad", listed(wrong), mend)
        other = [f"{name} {said[name]}, here {here[name]}" for name in said if said[name] != here.get(name, said[name])]
        if other:
            return Row("packages", host, "bad", f"other versions than on {case.here}: {listed(other)}", mend)
        shown = [f"{name} {said[name]}" for name in ("torch", "deepspeed", "ray", "transformers") if name in said]
        return Row("packages", host, "ok", f"{len(said)} in their ranges: {listed(shown)}")

    return by_fact(case, "packages", "packages", judge)


def extras(case: Case) -> Iterator[Row]:
    """Packages that only these settings need."""
    from importlib.metadata import PackageNotFoundError, version

    config = case.config
    if config is None:
        return
    wanted = {"remote"} if any("://" in folder for folder in config.data.shards) else set()
    wanted |= {"cuda"} if config.backbone.quantise != "none" or config.backbone.liger else set()
    wanted |= {name for name in config.logging.to if name in ("wandb", "mlflow")}
    for name, (extra, specifier) in optional_packages().items():
        if extra in wanted:
            try:
                found = version(name)
            except PackageNotFoundError:
                yield Row("extras", "", "bad", f"{name} is missing", f"pip install 'egmf-dist[{extra}]' on every host")
                continue
            fits = specifier.contains(found, prereleases=True)
            yield Row("extras", "", "ok" if fits else "warning", f"{name} {found}", "" if fits else f"{specifier}")


def source(case: Case) -> Iterable[Row]:
    """The same code of ours everywhere, to the byte."""
    here = case.facts[case.here].said.get("source", {})

    def judge(host: str, said: Any) -> Row:
        missing = [name for name, found in said.items() if found is None]
        if missing:
            return Row("egmf-dist", host, "bad", f"{listed(missing)} cannot be imported", "install it there as here")
        other = [name for name, found in said.items() if here.get(name) and found["sha256"] != here[name]["sha256"]]
        if other:
            place = said[other[0]]["place"]
            return Row("egmf-dist", host, "bad", f"another {listed(other)} in {place}", "bring it to the same commit")
        return Row("egmf-dist", host, "ok", f"the same code, in {said['egmf_dist']['place']}")

    return by_fact(case, "egmf-dist", "source", judge)


def clock(case: Case) -> Iterator[Row]:
    """Clocks agree: records, locks' times and signed requests to object stores are compared between machines."""
    for host, facts in case.reached().items():
        if host == case.here:
            continue
        if facts.clock_s is None:
            yield Row("clock", host, "skipped", "its probe did not say the time")
        elif abs(facts.clock_s) > CLOCK_S:
            way = "ahead of" if facts.clock_s > 0 else "behind"
            yield Row("clock", host, "warning", f"{abs(facts.clock_s):.1f} s {way} {case.here}", "run chrony or ntpd")
        else:
            yield Row("clock", host, "ok", f"within {CLOCK_S:g} s of {case.here}")


def gpus(case: Case) -> Iterator[Row]:
    """Driver and torch see the same GPUs, each computes, and there is one for each slot."""
    slots = {host.name: host.slots for host in case.hosts}
    some = any(facts.said.get("driver") for facts in case.reached().values())
    for host, facts in case.reached().items():
        if "driver" in facts.failed:
            yield Row("GPU", host, "bad", f"nvidia-smi: {facts.failed['driver']}", "mend or update the driver")
        if "torch" in facts.failed:
            yield Row("GPU", host, "bad", f"torch: {facts.failed['torch']}", "import torch there by hand")
        driver, torch = facts.said.get("driver") or [], facts.said.get("torch")
        if torch is not None:
            yield _gpus_of(host, driver, torch, slots[host] if case.named else 0, some)


def _gpus_of(host: str, driver: list[dict[str, Any]], torch: dict[str, Any], slots: int, some: bool) -> Row:
    devices = torch["devices"]
    build = f"torch {torch['version']}" + (f" for CUDA {torch['cuda']}" if torch["cuda"] else "")
    if driver and not devices:
        mend = f"install torch's build for CUDA; the driver is {driver[0]['driver']}"
        return Row("GPU", host, "bad", f"{len(driver)} of {driver[0]['name']}, and {build} sees none", mend)
    if not devices:
        if some:
            return Row("GPU", host, "bad", f"none, and other hosts have some; {build}", "leave it out of the hostfile")
        return Row("GPU", host, "ok", f"none; {build}")
    failed = [f"GPU {number}: {device['error']}" for number, device in enumerate(devices) if device["error"]]
    if failed:
        return Row("GPU", host, "bad", listed(failed, 2), "its driver, torch's build and other processes on it")
    if slots > len(devices):
        return Row("GPU", host, "bad", f"{len(devices)} for slots={slots}", f"write slots={len(devices)}, or mend it")
    found = f"{len(devices)} of {devices[0]['name']}, {devices[0]['mib'] / 1024:.0f} GiB; {build}"
    if driver:
        found += f"; driver {driver[0]['driver']}"
    busy = [f"GPU {n} has {d['used_mib'] / 1024:.0f} GiB taken" for n, d in enumerate(driver) if d["used_mib"] > 1024]
    if busy:
        return Row("GPU", host, "warning", f"{found}; {listed(busy)}", "end what runs there, or leave that GPU out")
    return Row("GPU", host, "ok", found)


def triton(case: Case) -> Iterable[Row]:
    """Where there is a GPU, Triton compiles a kernel and it runs."""

    def judge(host: str, said: Any) -> Row:
        if said["ran"] is None:
            found = f"triton {said['version'] or 'is not installed'}; no GPU, so torch computes the fusion"
            return Row("Triton", host, "ok", found)
        if said["ran"]:
            return Row("Triton", host, "ok", f"triton {said['version']} compiled and ran a kernel")
        mend = "--model.kernels reference does without" + ("" if said["compiler"] else "; install a C compiler (gcc)")
        return Row("Triton", host, "bad", f"triton {said['version']}: {said['error']}", mend)

    return by_fact(case, "Triton", "triton", judge)


def open_files(case: Case) -> Iterable[Row]:
    """``ulimit -n``: Ray, and shards that are mapped by every rank and loader process."""

    def judge(host: str, said: Any) -> Row:
        found = f"{said['files']:,}"
        if said["files"] >= FILES:
            return Row("ulimit -n", host, "ok", found)
        status: Status = "bad" if said["files"] < LEAST_FILES else "warning"
        return Row("ulimit -n", host, status, found, f"ulimit -n {min(65536, max(FILES, said['most_files']))}")

    return by_fact(case, "ulimit -n", "limits", judge)


def shared_memory(case: Case) -> Iterable[Row]:
    """/dev/shm: loader processes hand batches over in it, NCCL and Ray's object store live in it."""

    def judge(host: str, said: Any) -> Row:
        found = f"{said['shm'] / GIB:.1f} GiB, {said['shm_free'] / GIB:.1f} free"
        if said["shm_free"] > SHM:
            return Row("/dev/shm", host, "ok", found)
        status: Status = "bad" if said["shm_free"] <= LEAST_SHM else "warning"
        return Row("/dev/shm", host, status, found, "give a container more: docker run --shm-size 8g; else clear it up")

    return by_fact(case, "/dev/shm", "limits", judge)


def threads(case: Case) -> Iterable[Row]:
    """One thread a process, which the launcher sets where nothing else is: more spin beside each other."""

    def judge(host: str, said: Any) -> Row:
        given = said["omp"]
        if given in (None, "1"):
            found = "1" if given else "not set: the launcher sets 1"
            return Row("OMP_NUM_THREADS", host, "ok", f"{found}; {said['cores']} cores")
        advice = "unset it, or set 1: two threads beside a busy process were 60 times slower than one"
        return Row("OMP_NUM_THREADS", host, "warning", f"{given}; {said['cores']} cores", advice)

    return by_fact(case, "OMP_NUM_THREADS", "limits", judge)
