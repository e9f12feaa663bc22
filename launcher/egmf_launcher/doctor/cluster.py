"""Checks of Ray: the ports it likes, and clusters that are there already."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import psutil

from egmf_launcher.doctor.facts import PORTS
from egmf_launcher.doctor.rows import Case, Row, by_fact, listed


def ports(case: Case) -> Iterable[Row]:
    """Ray's usual ports. A cluster that the launcher starts takes free ones where these are taken."""

    def judge(host: str, said: Any) -> Row:
        taken = [f"{port} ({PORTS[int(port)]})" for port, free in said.items() if not free]
        if not taken:
            return Row("Ray's ports", host, "ok", f"{listed(list(said))} are free")
        advice = "another Ray, or another program, runs there; a training's own Ray takes other ports beside it"
        return Row("Ray's ports", host, "warning", f"{listed(taken)} are taken", advice)

    return by_fact(case, "Ray's ports", "ports", judge)


def running(case: Case) -> Iterator[Row]:
    """A cluster that ``RAY_ADDRESS`` names answers; others on this machine are named."""
    named = os.environ.get("RAY_ADDRESS", "")
    if named:
        yield answers(named)
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "gcs_server":
            words = [word for word in process.info["cmdline"] or () if word.startswith("--gcs_server_port=")]
            port = words[0].partition("=")[2] if words else "?"
            found.append(f"process {process.pid}, port {port}")
    if found:
        yield Row("Ray", case.here, "ok", f"runs here: {listed(found)}; left alone by a training that starts its own")
    elif not named:
        yield Row("Ray", case.here, "ok", "no cluster runs here, and RAY_ADDRESS is not set: a training starts its own")


def answers(address: str, limit_s: float = 5.0) -> Row:
    """Whether something listens at an address such as ``10.0.0.1:6379``, ``ray://HOST:10001`` or ``auto``."""
    if address in ("auto", "local"):
        return Row("RAY_ADDRESS", "", "ok", address)
    host, _, port = address.rpartition("://")[2].rstrip("/").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        return Row("RAY_ADDRESS", "", "bad", f"{address!r} is no address", "set HOST:PORT, or unset it")
    try:
        socket.create_connection((host.strip("[]"), int(port)), limit_s).close()
    except OSError as error:
        advice = "start that cluster (ray start --head), mend the address, or unset it"
        return Row("RAY_ADDRESS", "", "bad", f"{address} does not answer: {error.strerror or error}", advice)
    return Row("RAY_ADDRESS", "", "ok", f"{address} answers")
