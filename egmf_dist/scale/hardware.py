"""Named machines, a figure and where it is from each.

What a data sheet says is an upper bound; ``reached`` is the share of it that a matrix product and a copy were measured
to reach. The makers' sheets were not fetched by a program here: their figures are those that public pages agree on,
and what no measurement of this project stands behind says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from egmf_dist.errors import EgmfError

GIB = 2**30
Curve = tuple[tuple[float, float], ...]
"""Rates by size: (size, rate) with rising sizes; between two of them by logarithms, beyond the ends as at them."""


def at(curve: Curve, size: float) -> float:
    """The rate of a size."""
    before = curve[0]
    for after in curve:
        if size <= after[0]:
            if after == before or size <= before[0]:
                return before[1]
            part = math.log(size / before[0]) / math.log(after[0] / before[0])
            return float(before[1] ** (1 - part) * after[1] ** part)
        before = after
    return before[1]


@dataclass(frozen=True)
class Link:
    """Between ranks: a message of S bytes takes ``latency + S / bandwidth``."""

    name: str
    bandwidth: float
    """Bytes/s that one rank sends while it receives as many."""
    latency: float
    """Seconds."""
    source: str
    shared: bool = False
    """One for all ranks of a host. Else each has its own, and a ring runs over each of them."""
    kinds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Bandwidth and latency of a kind of message, where it was measured by itself."""

    def of(self, kind: str) -> tuple[float, float]:
        """Bandwidth and latency of messages of a kind."""
        return self.kinds.get(kind, (self.bandwidth, self.latency))


@dataclass(frozen=True)
class Hardware:
    """One kind of rank and what lies between ranks."""

    name: str
    memory: float
    """Bytes that one rank may use."""
    flops: float
    """Dense floating-point operations/s in the dtype that computes."""
    bandwidth: float
    """Bytes/s of its memory, read and written together."""
    inside: Link
    """Between the ranks of one host."""
    outside: Link
    """Between hosts, a rank's share of them."""
    host_bandwidth: float
    """Bytes/s between a rank and its host's memory, one way: what offloading waits for."""
    reached: tuple[float, float]
    """Shares of ``flops`` and ``bandwidth`` that are reached."""
    call: float
    """Seconds that the host needs to start one operator."""
    source: str
    host_memory: float = 128e9
    """Bytes of the host's memory for each rank, where offloading puts what does not fit; not verified, and given by
    ``--host-memory``."""
    single: float = 0.0
    """``flops`` in fp32 (TF32 is off, as torch has it); data sheets, and not verified."""
    serial: bool = False
    """The host computes itself, so starting an operator and computing it do not overlap, and neither do messages."""
    products: Curve = ()
    """Floating-point operations/s of a product of so many of them, where that was measured; empty: one rate for all."""
    moves: Curve = ()
    """Bytes/s of an operator that moves so many of them, likewise."""

    def seconds(self, flops: float, size: float) -> float:
        """Of one operator, by roofline: the longer of its products and its bytes."""
        products = at(self.products, flops) if self.products else self.flops * self.reached[0]
        moves = at(self.moves, size) if self.moves else self.bandwidth * self.reached[1]
        return max(flops / products, size / moves)


NVLINK4 = Link("NVLink 4", 450e9, 3e-6, "900 GB/s both ways (data sheet of H100 and H200); latency not verified")
NVLINK3 = Link("NVLink 3", 300e9, 3e-6, "600 GB/s both ways (data sheet of A100); latency not verified")
PCIE4 = Link("PCIe 4 x16", 32e9, 5e-6, "64 GB/s both ways (data sheet of L40S); latency not verified")
INFINIBAND = Link("InfiniBand NDR", 50e9, 10e-6, "400 Gb/s, one adapter a GPU; latency not verified")
ETHERNET = Link("Ethernet 100 Gb/s", 12.5e9, 30e-6, "100 Gb/s shared by a host's ranks; latency not verified", True)
GLOO = Link("gloo", 1e9, 100e-6, "not verified: egmf plan --calibrate measures it here", True)
LINKS: Mapping[str, Link] = {
    "nvlink4": NVLINK4,
    "nvlink3": NVLINK3,
    "pcie4": PCIE4,
    "infiniband": INFINIBAND,
    "ethernet": ETHERNET,
    "gloo": GLOO,
}
_HOPPER = (0.72, 0.88)
"""On an H100: 709 of 989 TFLOP/s in a bf16 product of 8192 cubed, 2.96 of 3.35 TB/s in a copy (docs/kernels.md)."""
_CALL = 8e-6
HARDWARE: Mapping[str, Hardware] = {
    "h100": Hardware(
        "h100", 80e9, 989e12, 3.35e12, NVLINK4, INFINIBAND, 64e9, _HOPPER, _CALL,
        "H100 SXM: 80 GB, 989 dense bf16 TFLOP/s, 3.35 TB/s (data sheet); shares reached measured (docs/kernels.md)",
        host_memory=256e9, single=67e12,
    ),
    "h200": Hardware(
        "h200", 141e9, 989e12, 4.8e12, NVLINK4, INFINIBAND, 64e9, (0.79, 0.88), _CALL,
        "H200 SXM: 141 GB, 989 dense bf16 TFLOP/s, 4.8 TB/s (data sheet); 783 TFLOP/s measured (egmf bench step), a "
        "copy's share as on an H100",
        host_memory=256e9, single=67e12,
    ),
    "a100": Hardware(
        "a100", 80e9, 312e12, 2.04e12, NVLINK3, INFINIBAND, 32e9, (0.75, 0.85), _CALL,
        "A100 SXM 80 GB: 312 dense bf16 TFLOP/s, 2.04 TB/s (data sheet); shares reached not verified",
        host_memory=128e9, single=19.5e12,
    ),
    "l40s": Hardware(
        "l40s", 48e9, 362e12, 864e9, PCIE4, ETHERNET, 32e9, (0.6, 0.85), _CALL,
        "L40S: 48 GB, 362 dense bf16 TFLOP/s, 864 GB/s, no NVLink (data sheet); shares reached not verified",
        single=91.6e12,
    ),
    "4090": Hardware(
        "4090", 24e9, 165e12, 1.008e12, PCIE4, ETHERNET, 32e9, (0.8, 0.85), _CALL,
        "RTX 4090: 24 GB, 165 dense bf16 TFLOP/s with fp32 sums, 1,008 GB/s (data sheet); shares reached not verified",
        host_memory=64e9, single=82.6e12,
    ),
    "cpu": Hardware(
        "cpu", 8e9, 50e9, 10e9, GLOO, GLOO, 10e9, (1.0, 1.0), 20e-6,
        "one core; nothing verified: egmf plan --calibrate measures this machine's", serial=True,
    ),
}  # fmt: skip
"""By the name that ``--hardware`` takes."""
RESERVED = 0.08
"""Of a GPU's memory for CUDA's context, NCCL's buffers and what the allocator cannot use; not verified."""


def find_hardware(name: str, links: tuple[str | None, str | None] = (None, None)) -> Hardware:
    """A machine by name, with other links where they are given.

    Args:
        name: in any case, of :data:`HARDWARE`.
        links: inside of a host and between hosts, of :data:`LINKS`; None: the machine's usual one.

    Raises:
        EgmfError: there is none of that name.
    """
    if name.lower() not in HARDWARE:
        raise EgmfError(f"--hardware is {name!r}; it may be {', '.join(HARDWARE)}")
    for link in links:
        if link is not None and link.lower() not in LINKS:
            raise EgmfError(f"a link is {link!r}; it may be {', '.join(LINKS)}")
    hardware = HARDWARE[name.lower()]
    inside, outside = (None if link is None else LINKS[link.lower()] for link in links)
    return replace(hardware, inside=inside or hardware.inside, outside=outside or hardware.outside)


def in_fp32(hardware: Hardware) -> Hardware:
    """The same machine where products are in fp32; a CPU's rate is that of what computes already."""
    return hardware if hardware.serial else replace(hardware, flops=hardware.single)


class Rates(NamedTuple):
    """What :mod:`egmf_dist.scale.calibrate` measured of a CPU's core while its other ranks were at it, too."""

    products: Curve
    moves: Curve
    call: float
    """Seconds to start one operator, DeepSpeed's bookkeeping included."""
    messages: Mapping[str, tuple[float, float]]
    """Bandwidth and latency by kind; empty for one rank."""
    source: str


def with_rates(hardware: Hardware, rates: Rates) -> Hardware:
    """The same machine by rates that were measured."""
    link = hardware.inside
    if rates.messages:
        bandwidth, latency = rates.messages["all-reduce"]
        link = Link("measured", bandwidth, latency, rates.source, kinds=rates.messages)
    return replace(
        hardware,
        flops=max(rate for _, rate in rates.products),
        bandwidth=rates.moves[-1][1],
        products=rates.products,
        moves=rates.moves,
        call=rates.call,
        reached=(1.0, 1.0),
        inside=link,
        source=rates.source,
    )
