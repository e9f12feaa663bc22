"""Real servers for the tests, each in a process of its own, and a wire between that breaks.

Run as ``python servers.py FOLDER PORT`` it is the HTTP server: with ranges and with faults.
``POST /fault`` with ``{"kind": KIND, "times": N, "name": NAME}`` spoils the next N answers for NAME (any, if empty):
``cut`` closes the connection in the middle of the body, ``short`` sends fewer bytes and says so, ``wrong`` flips a bit,
``shift`` sends other bytes and says so, ``whole`` ignores the range, ``hang`` says nothing for a minute, ``huge`` says
that the object has 10**12 bytes, ``long`` sends more than it says, ``bare`` does not say which range it sends, ``gzip``
says that it is packed, a number is a status code without a body. ``endless``, ``chunked`` and ``failing`` (an HTTP 500)
send zeros without a Content-Length until the client hangs up or has taken ``FLOOD`` bytes.
``GET /seen`` lists method, name and range of every request so far, as JSON; ``GET /flooded`` the bytes of floods.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FLOOD = 64 * 2**20


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets; the second would wait 40 ms
    folder: Path
    fault: dict = {"times": 0}  # noqa: RUF012 (one for all connections)
    seen: list[list[str]] = []  # noqa: RUF012
    flooded: list[int] = []  # noqa: RUF012
    lock = threading.Lock()

    def do_POST(self) -> None:
        fault = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.fault.clear()
            self.fault.update(fault)
        self.answer(200, b"")

    def do_HEAD(self) -> None:
        self.serve(body=False)

    def do_GET(self) -> None:
        if self.path == "/seen":
            self.answer(200, json.dumps(self.seen).encode())
        elif self.path == "/flooded":
            self.answer(200, json.dumps(sum(self.flooded)).encode())
        else:
            self.serve(body=True)

    def serve(self, body: bool) -> None:
        name = self.path.lstrip("/")
        wanted = self.headers.get("Range", "")
        with self.lock:
            self.seen.append([self.command, name, wanted])
            spoilt = self.fault["times"] > 0 and self.fault["name"] in ("", name)
            kind = self.fault["kind"] if spoilt else ""
            self.fault["times"] -= spoilt
        if kind == "hang":
            time.sleep(60)
        if kind.isdigit():
            return self.answer(int(kind), b"")
        path = self.folder / name
        if not path.is_file():
            return self.answer(404, b"")
        data = path.read_bytes()
        if kind == "huge":
            return self.answer(200, b"", length=10**12)
        if kind in ("endless", "chunked", "failing"):
            return self.flood(kind, wanted, body)
        if wanted and kind != "whole":
            first, last = (int(number) + (kind == "shift") for number in wanted.removeprefix("bytes=").split("-"))
            part = data[first : last + 1]
            if kind == "short":
                part = part[:-1]
            if kind == "wrong":
                part = bytes([part[0] ^ 1]) + part[1:]
            said = "" if kind == "bare" else f"bytes {first}-{last}/{len(data)}"
            if kind == "long":
                self.answer(206, part, said=said)
                return self.pour()
            return self.answer(206, part, cut=kind == "cut", said=said, coding=kind if kind == "gzip" else "")
        return self.answer(200, data if body else b"", length=len(data))

    def flood(self, kind: str, wanted: str, body: bool) -> None:
        self.send_response(500 if kind == "failing" else 206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"{wanted.replace('=', ' ')}/*")
        if kind == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        if body:
            self.pour(chunked=kind == "chunked")

    def pour(self, chunked: bool = False) -> None:
        self.close_connection = True
        piece = bytes(2**16)
        with suppress(OSError):
            for _ in range(FLOOD // len(piece)):
                self.wfile.write(b"10000\r\n" + piece + b"\r\n" if chunked else piece)
                self.flooded.append(len(piece))

    def answer(
        self, status: int, body: bytes, cut: bool = False, said: str = "", length: int | None = None, coding: str = ""
    ) -> None:
        self.send_response(status)
        if coding:
            self.send_header("Content-Encoding", coding)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if said:
            self.send_header("Content-Range", said)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class Server:
    """A server in a process of its own that can be killed and started again on its port."""

    def __init__(self, *command: str) -> None:
        self.port = free_port()
        self.command = [part.format(port=self.port) for part in command]
        self.process: subprocess.Popen | None = None
        self.back: threading.Thread | None = None
        self.start()

    def start(self) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([sys.executable, *self.command], **quiet)
        end = time.monotonic() + 30
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self.process.poll() is None, f"{self.command} ended"
                assert time.monotonic() < end, f"{self.command} does not listen"
                time.sleep(0.02)

    def stop(self) -> None:
        if self.back is not None:
            self.back.join()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def away(self, noticed: Callable[[], bool]) -> threading.Thread:
        """Kill it; the thread that is returned starts it again once ``noticed()``, however long that takes."""
        self.stop()

        def later() -> None:
            end = time.monotonic() + 60
            while not noticed() and time.monotonic() < end:
                time.sleep(0.01)
            self.start()

        self.back = threading.Thread(target=later)
        self.back.start()
        return self.back


class HTTPServer(Server):
    def __init__(self, folder: Path) -> None:
        super().__init__(__file__, str(folder), "{port}")
        self.url = f"http://127.0.0.1:{self.port}"

    def fault(self, kind: str | int, times: int = 1, name: str = "") -> None:
        body = json.dumps({"kind": str(kind), "times": times, "name": name}).encode()
        urllib.request.urlopen(f"{self.url}/fault", body).close()

    def ranges(self) -> list[list[str]]:
        with urllib.request.urlopen(f"{self.url}/seen") as answer:
            return [entry for entry in json.load(answer) if entry[2]]

    def flooded(self) -> int:
        with urllib.request.urlopen(f"{self.url}/flooded") as answer:
            return json.load(answer)


class Wire:
    """A TCP relay to a server's port that can break the next answer in its middle."""

    def __init__(self) -> None:
        self.target: int | None = None  # None: whoever connects is hung up on
        self.break_after = 0
        self.breaks = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self.listener.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self.target or 0), 5)
            except OSError:
                client.close()
                continue
            for one, other, answer in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._relay, args=(one, other, answer), daemon=True).start()

    def _relay(self, one: socket.socket, other: socket.socket, answer: bool) -> None:
        with suppress(OSError):
            while data := one.recv(2**16):
                if answer and 0 < self.break_after < len(data):
                    data, self.break_after, self.breaks = data[: self.break_after], 0, self.breaks + 1
                    other.sendall(data)
                    break
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class S3Server(Server):
    """moto behind a wire. It keeps objects in memory, so they are uploaded again after each start, and the wire only
    leads to it when they are there: no store forgets what it had."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"s3://shards/{folder.name}"
        self.wire = Wire()
        super().__init__("-m", "moto.server", "-H", "127.0.0.1", "-p", "{port}")

    def start(self) -> None:
        super().start()
        import botocore.session

        client = botocore.session.get_session().create_client("s3", endpoint_url=f"http://127.0.0.1:{self.port}")
        client.create_bucket(Bucket="shards")
        for path in self.folder.iterdir():
            client.put_object(Bucket="shards", Key=f"{self.folder.name}/{path.name}", Body=path.read_bytes())
        self.wire.target = self.port

    def stop(self) -> None:
        super().stop()
        self.wire.target = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    Handler.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
