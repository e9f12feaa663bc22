"""Which machine this is, and by which of its addresses and interfaces the others reach it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket

LOOPBACK = "127.0.0.1"


def is_this_machine(name: str) -> bool:
    """Whether a hostfile's name means the machine we run on: localhost, its own name, or one of its own addresses."""
    name = name.rpartition("@")[2]
    own_names = {"localhost", socket.gethostname(), socket.gethostname().partition(".")[0], socket.getfqdn()}
    if name in own_names:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        # A name: it is ours if one of its addresses is. A name that does not resolve here may still be an ssh alias.
        try:
            found = {str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
        except OSError:
            return False
        return any(a in _own_addresses() for a in found)
    return address.is_loopback or str(address) in _own_addresses()


def _own_addresses() -> set[str]:
    import psutil

    return {entry.address.partition("%")[0] for entries in psutil.net_if_addrs().values() for entry in entries}


def address_towards(other: str) -> str:
    """The address of this machine from which packets to ``other`` leave.

    ``other`` that does not resolve, or that is this machine: the address of the default route. Nothing is sent.
    """
    for target in (other.rpartition("@")[2], "192.0.2.1"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((target, 9))
            except OSError:
                continue
            address = str(probe.getsockname()[0])
            if not ipaddress.ip_address(address).is_loopback:
                return address
    return LOOPBACK


def interface_of(address: str) -> str | None:
    """The name of the network interface that carries ``address``; None if no interface does."""
    import psutil

    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            return str(name)
    return None


def listen_towards(master: str) -> None:
    """Have gloo listen where the other hosts reach this one, unless ``GLOO_SOCKET_IFNAME`` says where.

    Without it gloo binds to what the host's name resolves to, on many systems 127.0.1.1, and meets only itself. Ray's
    workers are told by their node; ranks that others start (DeepSpeed, torchrun, Slurm) know ``MASTER_ADDR`` alone.

    Args:
        master: name or address of rank 0's host; nothing is set where it is this machine's loopback.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ or not master or master == "localhost":
        return
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(master).is_loopback:
            return
    address = address_towards(master)
    interface = interface_of(address) if address != LOOPBACK else None
    if interface is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = interface


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def single_rank_environment() -> None:
    """Describe a world of one rank to torch.distributed, which DeepSpeed would otherwise look for through MPI."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR=LOOPBACK, MASTER_PORT=str(free_port()))
