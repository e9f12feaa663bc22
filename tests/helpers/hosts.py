"""Several hosts on one machine: network namespaces on one bridge, each with its own address, name and ssh server.

They share the disk, as hosts of a cluster share a folder, and the process table, so a host is killed by killing what
runs in its namespace. Needs root, ``ip`` and ``sshd``; nothing of the machine's own network, ssh settings or home is
touched: what a namespace sees as /etc/ssh and /etc/hosts lies in /etc/netns.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
NETNS = Path("/etc/netns")


def missing() -> str:
    """Why no hosts can be made here; empty where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program, package in (("ip", "iproute2"), ("ssh-keygen", "openssh-client"), ("unshare", "util-linux")):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian: {package})"
    if SSHD is None:
        return "sshd is not installed (Debian: openssh-server)"
    tried = subprocess.run(["ip", "netns", "add", f"egmf-try-{os.getpid()}"], capture_output=True, text=True)
    if tried.returncode:
        return f"network namespaces cannot be made: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", f"egmf-try-{os.getpid()}"], check=True)
    return ""


@dataclass(frozen=True)
class SmallHost:
    """One of them."""

    name: str
    """Resolves on all of them."""
    address: str
    space: str
    """Its network namespace."""
    folder: Path
    """For its logs."""

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command, to be started on this host."""
        named = f'hostname {self.name} && exec "$@"'
        return ["ip", "netns", "exec", self.space, "unshare", "--uts", "sh", "-c", named, "sh", *command]

    def popen(self, command: Sequence[str], **settings: Any) -> subprocess.Popen[bytes]:
        """Start a command here."""
        return subprocess.Popen(self.inside(command), start_new_session=True, **settings)

    def run(self, command: Sequence[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        """Run a command here."""
        return subprocess.run(self.inside(command), capture_output=True, text=True, check=False, **settings)

    def link(self, up: bool) -> None:
        """Plug its network in or out."""
        state = "up" if up else "down"
        subprocess.run(["ip", "-n", self.space, "link", "set", "eth0", state], check=True)

    def serve(self) -> None:
        """Start its ssh server."""
        assert SSHD is not None
        with open(self.folder / f"sshd-{self.name}.log", "ab") as log:
            self.popen([SSHD, "-D", "-e", "-f", "/etc/ssh/sshd_config"], stdout=log, stderr=log)

    def kill(self) -> None:
        """Everything that runs here ends at once, as by a loss of power."""
        pids = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True, check=False)
        for pid in pids.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


@contextlib.contextmanager
def small_hosts(number: int, folder: Path) -> Iterator[list[SmallHost]]:
    """``number`` hosts that reach one another by ssh without a password, for as long as the body lasts.

    Args:
        number: of hosts.
        folder: for keys and logs.
    """
    tag = f"e{os.getpid() % 10000}"
    switch = f"{tag}-switch"
    net = f"10.{os.getpid() % 200 + 20}.7"
    hosts = [SmallHost(f"{tag}h{k}", f"{net}.{k + 1}", f"{tag}-{k}", folder) for k in range(number)]
    spaces = [switch, *(host.space for host in hosts)]
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True)
        names = "\n".join(["127.0.0.1 localhost", *(f"{host.address} {host.name}" for host in hosts)])
        for host in hosts:
            _ip("netns", "add", host.space)
            port = f"p{host.space}"
            peer = ["type", "veth", "peer", "name", "eth0", "netns", host.space]
            _ip("-n", switch, "link", "add", port, *peer)
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", host.space, "link", "set", "lo", "up")
            _ip("-n", host.space, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.space, "link", "set", "eth0", "up")
            _serve_ssh(host, names, folder)
        _wait_for_ssh(hosts)
        yield hosts
    finally:
        for host in hosts:
            host.kill()
        for space in spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
            shutil.rmtree(NETNS / space, ignore_errors=True)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def _serve_ssh(host: SmallHost, names: str, folder: Path) -> None:
    etc = NETNS / host.space
    (etc / "ssh").mkdir(parents=True)
    (etc / "hosts").write_text(names + "\n")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(etc / "ssh" / "host_key")], check=True)
    shutil.copy(folder / "key.pub", etc / "ssh" / "keys")
    quiet = "StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR"
    (etc / "ssh" / "ssh_config").write_text(f"Host *\n IdentityFile {folder / 'key'}\n IdentitiesOnly yes\n {quiet}\n")
    (etc / "ssh" / "sshd_config").write_text(
        "HostKey /etc/ssh/host_key\nAuthorizedKeysFile /etc/ssh/keys\nStrictModes no\nUsePAM no\nPidFile none\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nMaxStartups 100\nUseDNS no\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    host.serve()


def _wait_for_ssh(hosts: Sequence[SmallHost], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    for host in hosts:
        while (tried := hosts[0].run(["ssh", "-o", "BatchMode=yes", host.name, "true"], timeout=30)).returncode:
            assert time.monotonic() < until, f"{host.name}: {tried.stderr}"
            time.sleep(0.3)
