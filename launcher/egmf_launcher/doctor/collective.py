"""Checks by a real all-reduce: between ranks of this machine, and between the hosts as the launcher starts them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

from egmf_launcher.doctor.rows import Case, Row
from egmf_launcher.network import LOOPBACK, address_towards, free_port, is_this_machine
from egmf_launcher.ray.environment import WORKER_ENVIRONMENT, without_launcher_variables
from egmf_launcher.ray.ssh import remote_command

LIMIT_S = 60
"""For torch's import on every host, the connections, and the sums."""


class Place(NamedTuple):
    """Where a rank runs."""

    host: str
    device: int


class Sum(NamedTuple):
    """What came of an all-reduce."""

    failed: dict[str, str]
    """For each host on which a rank failed, or did not answer, why."""
    right: bool = False
    seconds: float = 0.0
    bytes: int = 0

    @property
    def mb_per_s(self) -> float:
        """Bytes of the tensor by seconds of the sum, in 1e6 bytes a second."""
        return self.bytes / self.seconds / 1e6


class _Rank(NamedTuple):
    place: Place
    process: subprocess.Popen[bytes]
    out: IO[bytes]
    errors: IO[bytes]


def here(case: Case) -> Iterator[Row]:
    """Ranks of this machine meet and sum, by NCCL over its GPUs, or by gloo."""
    backend, gpus = backend_of(case), gpus_of(case, case.here)
    ranks = gpus if backend == "nccl" else 2
    if ranks < 2:
        yield Row("all-reduce", case.here, "ok", "one GPU: nothing to sum with")
        return
    found = all_reduce([Place(case.here, number) for number in range(ranks)], LOOPBACK, backend)
    yield _row(case.here, f"{backend}, {ranks} ranks", found)


def between(case: Case) -> Iterator[Row]:
    """Ranks of all hosts meet and sum: one a slot by NCCL, one a host by gloo."""
    hosts = [host for host in case.hosts if host.name in case.reached()]
    if len(case.hosts) < 2:
        return
    if len(hosts) < 2:
        yield Row("all-reduce", "", "skipped", "fewer than two hosts were reached")
        return
    hosts.sort(key=lambda host: host.name != case.here)  # rank 0 is this machine's, as the driver's is
    backend = backend_of(case)
    places = [Place(host.name, n) for host in hosts for n in range(host.slots if backend == "nccl" else 1)]
    others = [host.name for host in hosts if not is_this_machine(host.name)]
    if not others:
        yield Row("all-reduce", "", "skipped", "every host is this machine")
        return
    found = all_reduce(places, address_towards(others[0]), backend)
    if not found.failed:
        yield _row("", f"{backend}, {len(places)} ranks on {len(hosts)} hosts", found)
    for host, why in found.failed.items():
        yield _row(host, f"{backend} between {len(hosts)} hosts", Sum({host: why}))


def backend_of(case: Case) -> str:
    """What a training would take on these machines."""
    said = case.facts[case.here].said.get("torch") or {}
    return "nccl" if said.get("devices") else "gloo"


def gpus_of(case: Case, host: str) -> int:
    """How many torch sees there."""
    return len((case.facts[host].said.get("torch") or {}).get("devices", ()))


def _row(host: str, what: str, found: Sum) -> Row:
    if found.failed:
        why = "; ".join(found.failed.values())
        mend = "let all ports pass between the hosts; NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME names the interface"
        return Row("all-reduce", host, "bad", f"{what}: {why}", mend)
    if not found.right:
        return Row("all-reduce", host, "bad", f"{what}: the sum is wrong", "test memory and network; report this")
    mib = found.bytes / 2**20
    rate = f"{mib:.0f} MiB in {found.seconds * 1e3:.1f} ms, {found.mb_per_s:,.0f} MB/s"
    return Row("all-reduce", host, "ok", f"{what}: {rate}")


def all_reduce(places: Sequence[Place], master: str, backend: str, limit_s: int = LIMIT_S) -> Sum:
    """Start a rank at every place and wait for them; none outlives this.

    Args:
        places: where, rank by rank; the first on this machine.
        master: its address.
        backend: gloo or nccl.
        limit_s: for all of it.
    """
    port, deadline = free_port(), time.monotonic() + limit_s
    environ = without_launcher_variables(os.environ) | {"OMP_NUM_THREADS": WORKER_ENVIRONMENT["OMP_NUM_THREADS"]}
    with contextlib.ExitStack() as stack:
        ranks: list[_Rank] = []
        for number, place in enumerate(places):
            words = ["-m", "egmf_launcher.doctor.all_reduce", f"--rank={number}", f"--world={len(places)}"]
            words += [f"--master={master}", f"--port={port}", f"--backend={backend}", f"--device={place.device}"]
            words += [f"--limit={limit_s}"]
            command = [sys.executable, *words] if is_this_machine(place.host) else remote_command(place.host, words)
            # Files, not pipes: nobody reads while a rank that says much is waited for.
            out, errors = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=errors, env=environ)
            stack.callback(_end, process)
            ranks.append(_Rank(place, process, out, errors))
        while any(rank.process.poll() is None for rank in ranks) and not _failed(ranks):
            if time.monotonic() > deadline:
                silent = [rank.place.host for rank in ranks if rank.process.poll() is None]
                return Sum(dict.fromkeys(silent, f"no answer within {limit_s} s"))
            time.sleep(0.05)
        failed = _failed(ranks)
        if failed:
            return Sum(failed)
        ranks[0].out.seek(0)
        try:
            found = json.loads(ranks[0].out.read().splitlines()[-1])
            return Sum({}, bool(found["right"]), float(found["seconds"]), int(found["bytes"]))
        except (ValueError, KeyError, IndexError):
            return Sum({places[0].host: "rank 0 ended without a result"})


def _failed(ranks: Sequence[_Rank]) -> dict[str, str]:
    return {rank.place.host: _said(rank.errors) for rank in ranks if rank.process.poll() not in (None, 0)}


def _said(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    return " ".join(lines[-1].split())[:300] if lines else "it ended without a word"


def _end(process: subprocess.Popen[bytes]) -> None:
    """A rank elsewhere ends with its input, one here is killed."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)
