"""A server under load: good, huge, broken and slow requests of several clients at once, and what became of them."""

from __future__ import annotations

import http.client
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil

from egmf_dist.errors import EgmfError

GOOD, HUGE, BROKEN, SLOW, GONE = "good", "huge", "broken", "slow", "gone"
TURNS = (GOOD, BROKEN, GOOD, SLOW, GOOD, HUGE, GOOD, GONE)
"""What a client does, one after another; each begins at another place."""
ALLOWED = {
    GOOD: {200, 429, 503},
    HUGE: {413, 429, 503},
    BROKEN: {422, 429, 503},
    SLOW: {200, 408, 422, 429, 503},
    GONE: {0},
}
"""Statuses that may answer each; 0: the client went away first."""
_BOUNDARY = "egmf-load-6d0f3f"
_START_SECONDS, _TIMEOUT = 300.0, 120.0


@dataclass
class Requests:
    """What became of requests, by kind."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    """Of good ones that were answered with 200."""
    errors: list[str] = field(default_factory=list)
    """What a client met in place of an answer."""

    def add(self, kind: str, status: int, seconds: float) -> None:
        """One more."""
        self.statuses.setdefault(kind, Counter())[status] += 1
        if kind == GOOD and status == 200:
            self.seconds.append(seconds)

    def wrong(self) -> list[str]:
        """What should not have been: a status that does not fit, or no answer."""
        found = [
            f"{kind}: {count} answered {status}"
            for kind, counts in self.statuses.items()
            for status, count in counts.items()
            if status not in ALLOWED[kind]
        ]
        return [*found, *self.errors]

    def quantile(self, q: float) -> float | None:
        """Of the good ones' seconds; None where there are none."""
        return round(float(np.quantile(self.seconds, q)), 3) if self.seconds else None


@dataclass
class Server:
    """``egmf serve`` in a process of its own."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def memory(self) -> int:
        """Bytes of the process and those that it started which no other shares, together."""
        own = psutil.Process(self.process.pid)
        total = 0
        for one in [own, *own.children(recursive=True)]:
            with suppress(psutil.Error):
                total += int(one.memory_full_info().uss)
        return total

    def stop(self, seconds: float = 90.0) -> int:
        """SIGTERM, and the exit code."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def started(
    model: str | Path, options: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A server on a free port, told to stop at the end where it still runs.

    Raises:
        EgmfError: it does not begin to serve; says its last line.
    """
    with tempfile.TemporaryDirectory(prefix="egmf-load-") as place:
        log = Path(place, "serve.log")
        command = [sys.executable, "-m", "egmf_launcher.cli", "serve", str(model), "--port", "0", *options]
        with open(log, "wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environ)
        try:
            yield Server(_address(process, log), process, log)
        finally:
            with suppress(subprocess.TimeoutExpired):  # in order first, so that it removes what is its own
                process.terminate()
                process.wait(20)
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = next((line for line in lines if line.startswith("serving: ")), None)
        if said is not None:
            return said.removeprefix("serving: ")
        if process.poll() is not None:
            raise EgmfError(f"egmf serve ended with code {process.returncode}: {lines[-1] if lines else 'no word'}")
        time.sleep(0.05)
    raise EgmfError(f"egmf serve did not serve within {_START_SECONDS:.0f} s")


class Client:
    """Who asks.

    Args:
        url: of the server.
        clip: a recording that is sound.
        max_bytes: that the server takes.
    """

    def __init__(self, url: str, clip: bytes, max_bytes: int) -> None:
        self.host, self.port = urlsplit(url).hostname or "", urlsplit(url).port or 80
        self.good = form({"text": "That is what I wanted to say."}, clip)
        self.broken = form({}, clip[: len(clip) // 3][::-1])
        self.max_bytes = max_bytes

    def ask(self, kind: str) -> int:
        """One request; its status.

        Raises:
            OSError, http.client.HTTPException: it was not answered.
        """
        if kind in (SLOW, GONE):
            return self._slowly(gone=kind == GONE)
        if kind == HUGE:
            more = itertools.repeat(bytes(1 << 16), self.max_bytes // (1 << 16) + 256)
            return self._post(itertools.chain([self.good[:-2000]], more))
        return self._post(self.good if kind == GOOD else self.broken)

    def _post(self, body: Any) -> int:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_TIMEOUT)
        try:
            headers = {"content-type": f"multipart/form-data; boundary={_BOUNDARY}"}
            # Refused while it is sent, the connection may break; the answer is there all the same.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request("POST", "/predict", body, headers, encode_chunked=not isinstance(body, bytes))
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def _slowly(self, gone: bool) -> int:
        """A body in drops over two seconds, which ends in the middle where the client goes away."""
        with socket.create_connection((self.host, self.port), timeout=_TIMEOUT) as connection:
            head = f"POST /predict HTTP/1.1\r\nhost: {self.host}:{self.port}\r\nconnection: close\r\n"
            head += (
                f"content-type: multipart/form-data; boundary={_BOUNDARY}\r\ncontent-length: {len(self.good)}\r\n\r\n"
            )
            connection.sendall(head.encode())
            step = len(self.good) // 20 + 1
            for first in range(0, len(self.good), step):
                if gone and first > len(self.good) // 2:
                    return 0
                with suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(self.good[first : first + step])
                time.sleep(0.1)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            answer.read()
            return answer.status


def form(fields: Mapping[str, str], clip: bytes, name: str = "a.mp4") -> bytes:
    """A multipart body."""
    parts = [
        f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in fields.items()
    ]
    head = f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="clip"; filename="{name}"\r\n'
    parts.append(f"{head}content-type: video/mp4\r\n\r\n".encode() + clip + b"\r\n")
    return b"".join([*parts, f"--{_BOUNDARY}--\r\n".encode()])


def ask_for(client: Client, seconds: float, clients: int, turns: Sequence[str] = TURNS) -> Requests:
    """Ask as several clients at once, each one request after another, for some seconds, and each kind at least once
    however slow the machine is."""
    found, lock, end = Requests(), threading.Lock(), time.monotonic() + seconds

    def one(first: int) -> None:
        for place in itertools.count(first):
            if time.monotonic() >= end and place - first >= len(turns):
                return
            kind, begin = turns[place % len(turns)], time.monotonic()
            try:
                status = client.ask(kind)
            except (OSError, http.client.HTTPException) as error:
                with lock:
                    found.errors.append(f"{kind}: {type(error).__name__}: {error}")
                continue
            with lock:
                found.add(kind, status, time.monotonic() - begin)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def answered_at_stop(server: Server, client: Client, running: int = 4) -> tuple[list[int | str], int]:
    """Good requests that are running when the server is told to stop: their statuses, and its exit code."""
    statuses: list[int | str] = []

    def one() -> None:
        try:
            statuses.append(client.ask(GOOD))
        except (OSError, http.client.HTTPException) as error:
            statuses.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=one) for _ in range(running)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 10
    while running_requests(client) < running and time.monotonic() < end and any(t.is_alive() for t in threads):
        time.sleep(0.01)
    code = server.stop()
    for thread in threads:
        thread.join()
    return statuses, code


def running_requests(client: Client) -> int:
    """How many requests the server says are running, this one aside."""
    connection = http.client.HTTPConnection(client.host, client.port, timeout=_TIMEOUT)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    line = next(line for line in text.splitlines() if line.startswith("egmf_requests_running "))
    return round(float(line.split()[1])) - 1


def bench(model: str | Path, seconds: float, clients: int, options: Sequence[str] = ()) -> dict[str, Any]:
    """Start a server, ask it alone and then as many at once, and stop it while it answers.

    Returns:
        ``idle`` and ``loaded`` with seconds' quantiles, statuses, what was wrong; ``memory_bytes`` before and after;
        ``stop``: statuses of what ran then, and the exit code.
    """
    with started(model, options) as server:
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=_TIMEOUT)
        connection.request("GET", "/example")
        clip = connection.getresponse().read()
        connection.close()
        client = Client(server.url, clip, 64 << 20)
        ask_for(client, 2.0, 1, (GOOD,))
        idle = ask_for(client, max(3.0, seconds / 6), 1, (GOOD,))
        ask_for(client, max(2.0, seconds / 6), clients)
        before = server.memory()
        loaded = ask_for(client, seconds, clients)
        after = server.memory()
        statuses, code = answered_at_stop(server, client)
    alone, together = idle.quantile(0.99), loaded.quantile(0.99)
    return {
        "seconds": seconds,
        "clients": clients,
        "idle": _figures(idle),
        "loaded": _figures(loaded),
        "p99_by_idle": round(together / alone, 2) if alone and together else None,
        "memory_bytes": {"before": before, "after": after},
        "stop": {"statuses": statuses, "exit_code": code},
    }


def _figures(found: Requests) -> dict[str, Any]:
    return {
        "good_answered": len(found.seconds),
        "p50_seconds": found.quantile(0.5),
        "p99_seconds": found.quantile(0.99),
        "statuses": {kind: dict(sorted(counts.items())) for kind, counts in found.statuses.items()},
        "wrong": found.wrong(),
    }
