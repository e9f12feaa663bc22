"""A Ray cluster over exactly the hostfile's machines, for as long as one run lasts.

The driver's ``ray.init`` is the head. On one machine everything is bound to 127.0.0.1. With several, each other
machine runs :mod:`egmf_launcher.ray.node` under an ssh connection whose end is the node's end. Access needs a token in
every case: it is made for the run, lies in a file only the user can read, reaches other machines through ssh's
standard input, and is deleted with the cluster. Each slot is one unit of the custom resource ``egmf_slot`` and a
worker takes one, so where workers land follows from the hostfile alone.

A process starts one cluster in its life: Ray reads the token and the choice of 127.0.0.1 once, and keeps both after
``ray.shutdown``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from egmf_dist.errors import EgmfError
from egmf_dist.training.stopping import listening
from egmf_launcher.errors import LaunchError, WorkerFailedError, one_line
from egmf_launcher.hostfile import Host
from egmf_launcher.network import LOOPBACK, address_towards, interface_of, is_this_machine
from egmf_launcher.ray.environment import ray_environment
from egmf_launcher.ray.guard import guarded
from egmf_launcher.ray.ssh import remote_command

SLOT = "egmf_slot"
_MARK = "egmf_host_"
_OBJECT_STORE_BYTES = 128 * 2**20  # samples never pass through Ray's object store; its default is 30 % of the memory
_JOIN_TIMEOUT_S = 120.0
_ASK_AGAIN_S = 15.0
_LEAVE_TIMEOUT_S = 45.0  # a node drains for up to 30 s
_started = threading.Event()


@dataclass(frozen=True)
class Cluster:
    """A started cluster."""

    hosts: tuple[Host, ...]
    logs: Path
    """The driver machine's folder of Ray's logs; deleted with the cluster unless a worker failed."""


def split_hosts(hosts: Sequence[Host]) -> tuple[Host, list[Host]]:
    """This machine's entry, and the others in order.

    Raises:
        EgmfError: this machine is not among them, or is there under two names.
    """
    here = [host for host in hosts if is_this_machine(host.name)]
    if len(here) > 1:
        raise EgmfError(
            f"hostfile: {' and '.join(host.name for host in here)} are both this machine; name it once, with all slots"
        )
    if not here:
        names = ", ".join(host.name for host in hosts)
        raise EgmfError(
            f"hostfile: this machine ({os.uname().nodename}) is not among {names}; add it, or start on one of them"
        )
    return here[0], [host for host in hosts if host is not here[0]]


def ssh_command(host: Host, address: str, cpus: int, mark: str) -> list[str]:
    """The command that makes ``host`` join."""
    resources = json.dumps({SLOT: host.slots, mark: 1})
    words = ["-m", "egmf_launcher.ray.node", f"--address={address}", f"--resources={resources}", f"--cpus={cpus}"]
    words.append(f"--folder={os.getcwd()}")
    return remote_command(host.name, words, host.chosen)


@contextlib.contextmanager
def start(hosts: Sequence[Host], cpus_per_worker: int = 1, bring_back: bool = False) -> Iterator[Cluster]:
    """Start the cluster, and end it however the body ends (return, error, Ctrl-C, SIGTERM).

    Args:
        hosts: the machines; this one among them.
        cpus_per_worker: cores of each slot.
        bring_back: a machine whose node has ended is asked again until it is back.

    Raises:
        EgmfError: this machine is not in ``hosts``, or a machine has fewer GPUs than slots.
        LaunchError: a machine did not join, or this process has started a cluster before.
    """
    if _started.is_set():
        raise LaunchError("this process has started a Ray cluster before; start the next one from a process of its own")
    here, others = split_hosts(hosts)
    address = address_towards(others[0].name) if others else LOOPBACK
    folder = Path(tempfile.mkdtemp(prefix="egmf-"))
    token = secrets.token_hex(32)
    token_file = folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(token)
    extra = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": os.fspath(token_file)}
    if here.chosen:
        extra["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, here.chosen))
    interface = interface_of(address)
    if interface is not None and "GLOO_SOCKET_IFNAME" not in os.environ:
        extra["GLOO_SOCKET_IFNAME"] = interface
    if not others:
        # Ray replaces 127.0.0.1 by the machine's outer address, except where clusters are switched off with this.
        extra |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    nodes: dict[str, subprocess.Popen[bytes]] = {}
    commands: dict[str, list[str]] = {}
    over, asking = threading.Event(), None
    keep_logs = False
    try:
        with guarded(folder), ray_environment(extra), contextlib.ExitStack() as stack:
            import ray  # reads the environment when it is imported

            _started.set()
            try:
                ray.init(
                    address="local",
                    num_cpus=here.slots * cpus_per_worker + 1,
                    resources={SLOT: here.slots, f"{_MARK}0": 1},
                    object_store_memory=_OBJECT_STORE_BYTES,
                    # Without a dashboard Ray Train's cleaner warns once a second, but only into its log: log_to_driver
                    # is off.
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _node_ip_address=address,
                    _temp_dir=os.fspath(folder / "r"),
                )
                stack.enter_context(_sigterm_unwinds())  # after ray.init, which installs a handler of its own
                head = ray.get_runtime_context().gcs_address
                for index, host in enumerate(others, start=1):
                    mark = f"{_MARK}{index}"
                    commands[host.name] = ssh_command(host, head, host.slots * cpus_per_worker, mark)
                    nodes[host.name] = _start_node(commands[host.name], token)
                _wait_for_nodes([here, *others], nodes)
                if bring_back and others:
                    asking = threading.Thread(target=_bring_back, args=(nodes, commands, token, over), daemon=True)
                    asking.start()
                yield Cluster(tuple(hosts), folder / "r" / "session_latest" / "logs")
            finally:
                over.set()
                if asking is not None:
                    asking.join()  # or it would start a node that has just been ended
                _stop_nodes(nodes)
                ray.shutdown()
    except WorkerFailedError:
        keep_logs = True  # its message names them
        raise
    finally:
        token_file.unlink(missing_ok=True)
        if not keep_logs:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM (DeepSpeed's launcher sends it) ends the body like an error, so that the cluster is taken down."""

    def unwind(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with listening(unwind, [signal.SIGTERM]):
        yield


def _start_node(command: list[str], token: str) -> subprocess.Popen[bytes]:
    # Its own session: Ctrl-C reaches the driver, which then ends the nodes in order.
    try:
        node = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
    except FileNotFoundError as error:
        raise LaunchError("a hostfile with other machines needs ssh; install an ssh client") from error
    assert node.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # the wait for the node reports why it ended
        node.stdin.write(f"{token}\n".encode())
        node.stdin.flush()
    return node


def _bring_back(
    nodes: dict[str, subprocess.Popen[bytes]], commands: dict[str, list[str]], token: str, over: threading.Event
) -> None:
    """Ask machines whose node has ended to join again, until all is over; Ray gives those that do their workers."""
    said: dict[str, str] = {}
    while not over.wait(_ASK_AGAIN_S):
        for name, command in commands.items():
            if nodes[name].poll() is not None and not over.is_set():
                why = last_words(nodes[name])
                if said.get(name) != why:
                    print(f"launch: host {name} is not there ({why}); asked again", file=sys.stderr, flush=True)
                said[name] = why
                nodes[name] = _start_node(command, token)


def last_words(node: subprocess.Popen[bytes]) -> str:
    """The last line that an ended process has written to its stderr, else its exit code; nothing is waited for."""
    assert node.stderr is not None
    text = b""
    os.set_blocking(node.stderr.fileno(), False)
    with contextlib.suppress(BlockingIOError):
        while part := os.read(node.stderr.fileno(), 2**16):
            text += part
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {node.returncode}"


def _wait_for_nodes(
    hosts: Sequence[Host], nodes: dict[str, subprocess.Popen[bytes]], timeout: float = _JOIN_TIMEOUT_S
) -> None:
    """Until every machine is in the cluster; checks that each has a GPU for every slot where there are GPUs."""
    import ray

    deadline = time.monotonic() + timeout
    while True:
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        joined = {host.name: r for i, host in enumerate(hosts) for r in resources if f"{_MARK}{i}" in r}
        missing = [host.name for host in hosts if host.name not in joined]
        if not missing:
            break
        for name, node in nodes.items():
            if node.poll() is not None:
                raise LaunchError(f"host {name} did not join: {last_words(node)}")
        if time.monotonic() > deadline:
            raise LaunchError(
                f"{', '.join(missing)} did not join within {timeout:.0f} s; check ssh to it and its firewall"
            )
        time.sleep(0.3)
    if any("GPU" in r for r in joined.values()):
        for host in hosts:
            found = int(joined[host.name].get("GPU", 0))
            if found < host.slots:
                raise EgmfError(f"hostfile: {host.name} gives slots={host.slots} but Ray sees {found} GPUs there")


def _stop_nodes(nodes: dict[str, subprocess.Popen[bytes]]) -> None:
    """End the other machines' nodes through the end of their input, all at once; the connection that stays is cut."""
    for node in nodes.values():
        with contextlib.suppress(OSError):
            assert node.stdin is not None
            node.stdin.close()
    deadline = time.monotonic() + _LEAVE_TIMEOUT_S
    for name, node in nodes.items():
        try:
            node.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired as error:
            node.kill()
            print(f"launch: host {name} did not end its Ray node in time ({one_line(error)})", file=sys.stderr)
