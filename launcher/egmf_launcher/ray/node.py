"""One machine's part in a Ray cluster of several: ``python -m egmf_launcher.ray.node``, started through ssh by the
driver.

The first line of standard input is the cluster's token, so that it stands on no command line. Standard input then
stays open for as long as the driver lives: its end, for whatever reason (the run is over, the driver was killed, the
connection broke), ends this node. So no Ray process outlives its run, and ``ray stop``, which ends *every* Ray process
of a machine, other people's included, is never needed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from egmf_launcher.network import address_towards, interface_of
from egmf_launcher.ray.environment import without_launcher_variables, worker_environment


def ray_start_command(
    address: str, own_address: str, resources: dict[str, float], cpus: int, folder: Path
) -> list[str]:
    """``ray start`` of this interpreter, joining the cluster at ``address``."""
    return [
        os.fspath(Path(sys.executable).parent / "ray"),
        "start",
        "--block",
        f"--address={address}",
        f"--node-ip-address={own_address}",
        f"--num-cpus={cpus}",
        f"--resources={json.dumps(resources)}",
        f"--temp-dir={folder}",
        "--disable-usage-stats",
    ]


def main() -> int:
    """Join, wait for the end of standard input, leave. Exit code 0 after an ordered end, ``ray start``'s otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="HOST:PORT of the cluster's head")
    parser.add_argument("--resources", required=True, help="JSON object of custom resources")
    parser.add_argument("--cpus", type=int, required=True)
    parser.add_argument("--folder", required=True, help="in which workers run; every machine must see it")
    arguments = parser.parse_args()
    # Before it joins: workers that Ray places here would end the whole job. A host that came back may mount it later,
    # and is asked again.
    if not os.path.isdir(arguments.folder):
        where = f"host {os.uname().nodename} has no folder {arguments.folder}"
        print(f"{where}; every machine must see it under the same path", file=sys.stderr, flush=True)
        return 1
    token = sys.stdin.readline().strip()
    # Short on purpose: Ray puts sockets there, and a socket's path has at most 107 characters. mkdtemp makes it ours
    # alone.
    folder = Path(tempfile.mkdtemp(prefix="egmf-"))
    token_file = folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(token)
    own_address = address_towards(arguments.address.rpartition(":")[0])
    environ = without_launcher_variables(os.environ) | worker_environment(os.environ)
    environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": os.fspath(token_file)}
    interface = interface_of(own_address)
    if interface is not None:
        # Without it gloo binds to what the host's name resolves to, on many systems 127.0.1.1, and meets only itself.
        environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    log = folder / "ray-start.log"
    ended = threading.Event()
    signal.signal(
        signal.SIGHUP, signal.SIG_IGN
    )  # a broken connection shall end the node in order, through the end of input
    try:
        with log.open("w") as output:
            command = ray_start_command(
                arguments.address, own_address, json.loads(arguments.resources), arguments.cpus, folder / "r"
            )
            node = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environ)

        def leave_with_driver() -> None:
            sys.stdin.read()
            ended.set()
            node.terminate()

        threading.Thread(target=leave_with_driver, daemon=True).start()
        code = node.wait()
        if ended.is_set():
            return 0
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        print(lines[-1] if lines else f"ray start ended with code {code}", file=sys.stderr, flush=True)
        return code or 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
