"""Which settings to train with: the fastest that fit, in words, and why the others do not.

Ways that compute the same come first, then four bits, which round frozen weights, then offloading, which is slow. Of a
class the fastest predicted step is taken; of two as fast (within 2 %) the simpler one, which stands first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from egmf_dist.ledger import Count
from egmf_dist.scale.hardware import GIB, RESERVED, Hardware
from egmf_dist.scale.loader import Loader
from egmf_dist.scale.memory import Parts, Sizes, Way
from egmf_dist.scale.timing import StepTime, slowed, step_time

_ALIKE = 0.98
_ROUNDED = "zero_quantized_nontrainable_weights: 1 of training.zero_options"
UNPACKING = 207 / 179
"""What four bits cost: 179 in place of 207 samples/s of a 0.27B model on an H200 (docs/backbones.md)."""


@dataclass(frozen=True)
class Machines:
    """Where is trained."""

    hardware: Hardware
    hosts: int
    ranks_per_host: int

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.hosts * self.ranks_per_host

    @property
    def usable(self) -> float:
        """Bytes of a rank's memory that tensors may fill."""
        return self.hardware.memory * (1.0 if self.hardware.serial else 1 - RESERVED)


@dataclass(frozen=True)
class Work:
    """What a step of one rank computes, whatever the way."""

    count: Count
    """Of one rank's whole step; its operators are taken, not its messages."""
    micro_batches: int
    samples: float
    """Of a rank's step, on the average."""
    lora: bool
    """Frozen linear layers may be packed into four bits."""
    checkpointing: bool = False
    """Layers are computed again in it."""
    reading: float = 0.0
    """Seconds that a rank reads its samples itself."""


class Judged(NamedTuple):
    """One way on these machines; everything predicted."""

    way: Way
    parts: Parts
    fits: bool
    time: StepTime
    sent: dict[str, int]
    """Bytes handed over in a step by kind."""


class Advice(NamedTuple):
    """What is recommended."""

    best: Judged | None
    judged: list[Judged]
    words: list[str]
    """Sentences, the recommendation first."""


def messages_of(way: Way, sizes: Sizes, ranks: int, micro_batches: int, host: int = 0) -> Counter[tuple[str, int, int]]:
    """What a rank hands over in a step: kind, bytes, ranks of the group.

    Stages 1 and 2 reduce the trained weights' gradients and gather the weights back. Stage 3 gathers every weight for
    each forward and again for each backward pass, but for what stays live between the two.
    """
    found: Counter[tuple[str, int, int]] = Counter()
    micro = micro_batches * way.micro
    trained = sizes.width * sizes.trained
    if way.stage < 3:
        found["all-gather", trained, ranks] += 1
        if way.stage == 1:
            found["all-reduce", 4 * sizes.trained, ranks] += 1
        else:
            found["all-reduce", trained, ranks] += micro
        return found
    found["reduce-scatter", trained, ranks] += micro
    weights = sizes.frozen + sizes.trained
    again = max(0, weights - sizes.live)
    one = 1 if way.quantised_gathers else sizes.width
    first = one * sizes.frozen + trained
    second = (one * sizes.frozen + trained) * again // max(1, weights)
    if way.hpz > 1:
        # A frozen weight's copy never grows old, so its gathers stay among those that hold it.
        found["all-gather", first - trained + second, way.hpz] += micro
        found["all-gather", trained, ranks] += micro
    else:
        found["all-gather", first + second, ranks] += micro
    return found


def ways(machines: Machines, work: Work) -> Iterator[list[Way]]:
    """Classes of ways, the one that is preferred first; in each the simpler first. A micro-batch holds a sample at
    least, and is cut no further."""
    a_micro_batch = max(1, int(work.samples // max(1, work.micro_batches)))
    for group in _ways(machines, work):
        yield [way for way in group if way.micro <= a_micro_batch]


def _ways(machines: Machines, work: Work) -> Iterator[list[Way]]:
    hosts, ranks = machines.hosts, machines.ranks
    hpz = [machines.ranks_per_host] if hosts > 1 and machines.ranks_per_host > 1 else []
    exact = [Way(1), Way(1, checkpointing=True), Way(1, micro=4), Way(1, checkpointing=True, micro=4)]
    exact += [Way(2), Way(2, checkpointing=True), Way(2, checkpointing=True, micro=4)] if ranks > 1 else []
    if ranks > 1:
        for again in (False, True):
            exact += [Way(3, checkpointing=again), *(Way(3, checkpointing=again, hpz=n) for n in hpz)]
        exact += [Way(3, checkpointing=True, micro=4), *(Way(3, checkpointing=True, micro=4, hpz=n) for n in hpz)]
    yield exact
    yield [Way(1, again, quantised=True, micro=m) for m in (1, 4) for again in (False, True)] if work.lora else []
    slow = [Way(1, True, "optimizer"), Way(3, True, "optimizer"), Way(3, True, "weights")]
    yield [*slow, *(replace(way, micro=4) for way in slow)]


def judge(way: Way, sizes: Sizes, work: Work, machines: Machines) -> Judged:
    """One way."""
    parts = sizes.under(way, machines.ranks)
    messages = messages_of(way, sizes, machines.ranks, work.micro_batches, machines.ranks_per_host)
    slower = sizes.again ** (way.checkpointing - work.checkpointing) * (UNPACKING if way.quantised else 1.0)
    time = step_time(
        Count(messages, work.count.work), machines.hardware, machines.hosts, machines.ranks_per_host,
        sizes.on_host(way, machines.ranks) * work.micro_batches * way.micro, work.reading,
    )  # fmt: skip
    time = slowed(time, machines.hardware, slower, way.micro)
    sent: Counter[str] = Counter()
    for (kind, size, _), times in messages.items():
        sent[kind] += size * times
    fits = parts.whole <= machines.usable and sizes.at_rest(way, machines.ranks) <= machines.hardware.host_memory
    return Judged(way, parts, fits, time, dict(sent))


def advise(sizes: Sizes, work: Work, machines: Machines, loader: Loader | None = None) -> Advice:
    """Recommend settings.

    Args:
        sizes: of the model and its micro-batch.
        work: of a step of one rank.
        machines: where.
        loader: what reading costs; None: it is not asked.
    """
    judged: list[Judged] = []
    best: Judged | None = None
    for group in ways(machines, work):
        own = [judge(way, sizes, work, machines) for way in group]
        judged += own
        if best is None:
            best = _fastest([one for one in own if one.fits])
    words = [_nothing(judged, machines)] if best is None else _recommend(best, judged, machines, sizes)
    if best is not None and best.way.stage == 3 and best.way.offload == "none":
        rounded = judge(replace(best.way, quantised_gathers=True), sizes, work, machines)
        judged.append(rounded)
        if rounded.time.step < _ALIKE * best.time.step:
            words.append(
                f"not taken, as it rounds the frozen weights: {_ROUNDED} would gather a byte a weight, "
                f"{rounded.time.step:.3g} s a step (predicted, and set nowhere yet)"
            )
    if best is not None and loader is not None:
        words += loader.said(work.samples * machines.ranks / best.time.step, machines.hosts, machines.ranks_per_host)
    return Advice(best, judged, words)


def _fastest(fitting: Sequence[Judged]) -> Judged | None:
    best = None
    for one in fitting:
        if best is None or one.time.step < _ALIKE * best.time.step:
            best = one
    return best


def _recommend(best: Judged, judged: Sequence[Judged], machines: Machines, sizes: Sizes) -> list[str]:
    way = best.way
    words = [
        f"train with {way.said()}: {_gib(best.parts.whole)} of {_gib(machines.usable)} usable on each of "
        f"{machines.ranks} ranks, {best.time.step:.3g} s a step (predicted)"
    ]
    whole = next(one for one in judged if one.way == Way(1))
    sharded = next((one for one in judged if one.way == Way(3)), None)
    if way.stage < 3 and sharded is not None and not way.quantised:
        ours, theirs = sum(best.sent.values()), sum(sharded.sent.values())
        words.append(
            f"the base fits one rank, so stage {way.stage} moves the trained weights alone: {_gib(ours)} a step; stage "
            f"3 would move the frozen ones with every micro-batch, {_gib(theirs)}"
        )
    if not whole.fits:
        words.append(f"stage 1 as it is does not fit: {_why(whole, machines)}")
    if sharded is not None and not sharded.fits:
        words.append(f"stage 3 as it is does not fit: {_why(sharded, machines)}")
    if way.stage == 3 and way.offload == "none":
        words.append(f"the base fits only when it is sharded: {_gib(best.parts.frozen)} of it on each rank")
        if machines.hosts > 1 and way.hpz > 1:
            words.append(
                f"each host keeps a copy of the frozen weights (hpZ), so that their gathers stay on "
                f"{machines.hardware.inside.name}"
            )
        elif machines.hosts > 1:
            words.append("hpZ would keep gathers inside a host, but its copy does not fit, or it is no faster")
    if way.quantised:
        words.append("nothing that computes the same fits; four bits round the frozen weights, the adapter stays exact")
    if way.offload != "none":
        words.append(
            f"without offloading nothing fits; {_share(best.time.offload, best.time.step)} of a step waits for the host"
        )
    if way.checkpointing:
        words.append(
            f"layers are computed again in the backward pass, {sizes.again - 1:.0%} more work: their results do not fit"
        )
    if way.micro > 1:
        words.append(f"micro-batches must be {way.micro} times smaller (training.micro_batch or micro_tokens)")
    words.append(f"a step waits most for: {best.time.binds} (predicted)")
    return words


def _nothing(judged: Sequence[Judged], machines: Machines) -> str:
    least = min(judged, key=lambda one: one.parts.whole)
    on_hosts = _gib(machines.hardware.host_memory)
    return (
        f"nothing fits {_gib(machines.usable)} on each of {machines.ranks} ranks and {on_hosts} for each on their "
        f"hosts: the least on a rank is {_gib(least.parts.whole)} with {least.way.said()}, most of it "
        f"{_most(least.parts)}; take more or larger ranks, a smaller backbone, or shorter prompts"
    )


def _why(one: Judged, machines: Machines) -> str:
    return f"{_gib(one.parts.whole)} of {_gib(machines.usable)}, most of it {_most(one.parts)}"


def _most(parts: Parts) -> str:
    name = max(parts._fields, key=lambda field: getattr(parts, field))
    return f"{name} ({_gib(getattr(parts, name))})"


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.2f} MiB"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "0%"
