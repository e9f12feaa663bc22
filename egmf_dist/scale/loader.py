"""What reading must give: bytes and samples a second for N ranks, loader processes, shards, memory of the index.

The costs of a sample are measured on the machine that plans (:func:`measure`), on the configuration's own data; what a
store must give follows from them and from the predicted step.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from egmf_dist.scale.subject import Subject

SHARD_BYTES = 2**28
"""A shard of about 256 MiB: few names in a folder, and large enough that a store's latency does not count."""
SPARE = 1.25
"""So many times what is needed is asked of loader processes."""


@dataclass(frozen=True)
class Loader:
    """What one sample costs."""

    seconds: float
    """To read, lay out and pack it, on one process."""
    size: float
    """Bytes of it on the disk."""
    samples: int
    """Of the training split."""
    given_bandwidth: float | None = None
    """Bytes/s that the store gives one host; None: not known."""
    cores_per_rank: int = 8
    inline: bool = False
    """A rank reads itself (``data.workers 0``), and its step waits for that."""

    def waits(self, samples: float) -> float:
        """Seconds that a rank's step of so many samples waits for reading at least."""
        return self.seconds * samples if self.inline else 0.0

    def processes(self, samples_per_s: float, ranks: int) -> int:
        """Loader processes that each rank needs."""
        return max(1, math.ceil(SPARE * samples_per_s / ranks * self.seconds))

    def most(self, hosts: int, ranks_per_host: int) -> float:
        """Samples/s that reading can give at all."""
        cpu = hosts * ranks_per_host * self.cores_per_rank / self.seconds
        return cpu if self.given_bandwidth is None else min(cpu, hosts * self.given_bandwidth / self.size)

    def binds(self, samples_per_s: float, hosts: int, ranks_per_host: int) -> bool:
        """Whether a run waits for reading."""
        return samples_per_s > self.most(hosts, ranks_per_host)

    def said(self, samples_per_s: float, hosts: int, ranks_per_host: int) -> list[str]:
        """In words.

        Args:
            samples_per_s: of the whole run, predicted without waiting.
            hosts: how many.
            ranks_per_host: ranks of each.
        """
        ranks = hosts * ranks_per_host
        per_host, all_of_them = (samples_per_s * self.size / n for n in (hosts, 1))
        needed = self.processes(samples_per_s, ranks)
        words = [
            f"reading: {samples_per_s:.3g} samples/s of {self.size / 1024:.1f} KiB; a host's NVMe must give "
            f"{_rate(per_host)}, a store that all hosts share {_rate(all_of_them)}: at {SHARD_BYTES // 2**20} MiB "
            f"a shard {all_of_them / SHARD_BYTES:.2g} shards/s (predicted)",
            f"data.workers {needed}: {1e3 * self.seconds:.2f} ms a sample on this machine's processes",
        ]
        if self.binds(samples_per_s, hosts, ranks_per_host):
            most = self.most(hosts, ranks_per_host)
            given = (
                "the store's bandwidth"
                if self.given_bandwidth is not None and (hosts * self.given_bandwidth / self.size <= most)
                else f"{self.cores_per_rank} cores a rank"
            )
            words.append(
                f"the run is bound by the loader: {given} gives {most:.3g} of {samples_per_s:.3g} samples/s; use fewer "
                "ranks, a faster store or a local copy (data.cache_dir), or shorter streams"
            )
        return words


def measure(
    subject: Subject,
    ranks: int,
    given_bandwidth: float | None = None,
    cores_per_rank: int = 8,
    *,
    processes: int,
) -> Loader:
    """Read a few global batches of one rank here, after one that warms up.

    Args:
        subject: whose data.
        ranks: of the world.
        given_bandwidth: bytes/s that the store gives one host; None: not known.
        cores_per_rank: which loader processes may use.
        processes: loader processes of a rank; 0: it reads itself.

    Raises:
        EgmfError: a sample cannot be read.
    """
    stream = subject.stream(0, ranks)
    subject.batches(stream, 0)
    samples, begin = 0, time.perf_counter()
    for step in range(1, 4):
        samples += sum(len(batch.ids) for batch in subject.batches(stream, step))
        if time.perf_counter() - begin > 10:
            break
    seconds = (time.perf_counter() - begin) / samples
    manifests = subject.shards.manifests
    size = sum(float(s["size"]) for m in manifests for s in m["shards"])
    count = sum(int(s["samples"]) for m in manifests for s in m["shards"])
    return Loader(seconds, size / max(1, count), len(subject.shards), given_bandwidth, cores_per_rank, processes == 0)


def _rate(size: float) -> str:
    return f"{size / 1e9:.3g} GB/s" if size >= 1e9 else f"{size / 1e6:.3g} MB/s"
