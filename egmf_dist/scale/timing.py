"""How long a counted step takes on a machine: operators by roofline, messages by latency and bandwidth.

An operator takes the longer of its products at the matrix rate and its bytes at the memory's (Williams et al. 2009,
"Roofline"). A message follows the ring algorithms' cost (Thakur et al. 2005, "Optimization of Collective Communication
Operations in MPICH"): a gather or a scatter of S bytes over n ranks moves (n-1)/n S through every rank, a reduction to
all of them twice that. Latency counts log2(n) steps, as NCCL's trees do.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from egmf_dist.ledger import Count
from egmf_dist.scale.hardware import Hardware

OVERLAPPED = 0.7
"""Of a GPU's messages this share can hide behind compute (DeepSpeed's ``overlap_comm`` and prefetch); not verified."""
PASSES = {"all-reduce": 2.0}
"""How often a message passes each rank; once where it is not named."""


class StepTime(NamedTuple):
    """Seconds of one step on one rank; all predicted."""

    compute: float
    """Operators on the device."""
    host: float
    """Starting them."""
    inside: float
    """Messages between the ranks of a host."""
    outside: float
    """Messages between hosts."""
    offload: float
    """Waiting for what lies in the host's memory."""
    reading: float
    """The samples, where no loader process does."""
    step: float

    @property
    def binds(self) -> str:
        """What the step waits for most: ``compute``, ``host``, ``link``, ``offload`` or ``reading``."""
        parts = {
            "compute": self.compute,
            "host": self.host,
            "link": self.inside + self.outside,
            "offload": self.offload,
            "reading": self.reading,
        }
        return max(parts, key=lambda name: parts[name])


def step_time(
    count: Count,
    hardware: Hardware,
    hosts: int,
    ranks_per_host: int,
    offloaded: float = 0.0,
    reading: float = 0.0,
) -> StepTime:
    """Predict a step.

    Args:
        count: of one rank's step.
        hardware: the machine.
        hosts: how many.
        ranks_per_host: ranks of each.
        offloaded: bytes that one rank moves to or from its host's memory.
        reading: seconds that a rank itself reads and lays out samples.
    """
    compute = sum(times * hardware.seconds(flops, size) for (flops, size), times in count.work.items())
    host = hardware.call * sum(count.work.values())
    inside, outside = message_seconds(count.messages, hardware, hosts, ranks_per_host)
    offload = offloaded / hardware.host_bandwidth
    sent, waits = inside + outside, offload + reading
    if hardware.serial:
        return StepTime(compute, host, inside, outside, offload, reading, compute + host + sent + waits)
    busy = max(compute, host)
    hidden = min(OVERLAPPED * sent, busy)
    return StepTime(compute, host, inside, outside, offload, reading, busy + sent - hidden + waits)


def slowed(time: StepTime, hardware: Hardware, slower: float, pieces: int = 1) -> StepTime:
    """The same step where operators take ``slower`` times as long, and a micro-batch is cut into so many ``pieces``
    that start as many operators each."""
    compute, host = time.compute * slower, time.host * slower * pieces
    if hardware.serial:
        more = compute + host - time.compute - time.host
    else:
        more = max(compute, host) - max(time.compute, time.host)
    return time._replace(compute=compute, host=host, step=time.step + more)


def message_seconds(
    messages: Counter[tuple[str, int, int]], hardware: Hardware, hosts: int, ranks_per_host: int
) -> tuple[float, float]:
    """Seconds inside of hosts and between them. What crosses is as fast as its slowest link; where there is one host
    nothing crosses."""
    ranks = hosts * ranks_per_host
    inside = outside = 0.0
    for (kind, size, group), times in messages.items():
        n = min(group, ranks) if group else ranks
        if n < 2:
            continue
        within = n <= ranks_per_host
        link = hardware.inside if within else hardware.outside
        bandwidth, latency = link.of(kind)
        if not within:
            # As many rings as a host has adapters, each with its part of the message; none is faster than the host.
            bandwidth = min(bandwidth * (1 if link.shared else ranks_per_host), hardware.inside.bandwidth)
        passes = PASSES.get(kind, 1.0)
        seconds = passes * (latency * math.log2(n) + size * (n - 1) / n / bandwidth)
        if within:
            inside += times * seconds
        else:
            outside += times * seconds
    return inside, outside


def for_ranks(count: Count, before: int, ranks: int) -> Count:
    """The same messages among ``ranks`` in place of ``before``: what is handed over does not depend on it but for
    padding. Groups of fewer (hpZ's, inside of a host) stay what they are."""
    messages: Counter[tuple[str, int, int]] = Counter()
    for (kind, size, group), times in count.messages.items():
        messages[kind, size, ranks if group in (0, before) else group] += times
    return Count(messages, count.work)
