"""This machine's own rates, for a minute: products, operators, messages, and two small trainings.

As many processes as ranks are at it at once, because cores share memory, caches and often a core's units. Products and
what other operators move are measured by size. What a benchmark of single operators does not see - modules, autograd,
DeepSpeed's bookkeeping - follows from two trainings under the configuration's ZeRO stage, a narrow one that starts
operators and a wide one that computes: measured is ``slower * compute + call * operators + messages`` for both, which
gives ``slower`` and ``call``. Every other model's step follows by the formulas used elsewhere (:mod:`.timing`).
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from egmf_dist.config import Config, DataConfig, TrainingConfig
from egmf_dist.config.load import config_from_dict
from egmf_dist.errors import EgmfError
from egmf_dist.ledger import Count, Ledger
from egmf_dist.model.precision import dtype_of
from egmf_dist.scale.hardware import Curve, Hardware, Rates
from egmf_dist.scale.ranks import as_rank, on_ranks
from egmf_dist.scale.timing import message_seconds

NARROW, WIDE = "2-layers-of-64", "2-layers-of-512"
ROUNDS = {NARROW: 12, WIDE: 6}
"""Steps that are timed."""
SOURCE = "measured on this machine by egmf plan --calibrate"
_TRIED = 5
_PRODUCTS = ((32, 64), (128, 128), (256, 256), (512, 512), (512, 1024))
"""Rows of tokens, and the width of the square of weights."""
_MOVES = tuple(1 << n for n in (12, 15, 18, 21, 24))
"""Numbers of an operator."""
_SIZES = (1 << 10, 1 << 22)
"""Bytes of the messages: what the small one takes is latency, what the large one takes beyond it is bandwidth."""
_LIMIT = 1200.0
Clock = Callable[[], float]
CLOCKS: Mapping[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
"""By what seconds are counted: as they pass, or those that a process computes, where others keep the machine busy."""
_MICRO, _MICRO_BATCHES = 8, 2


@dataclass(frozen=True)
class Step:
    """A small training's step, counted and timed."""

    count: Count
    seconds: float


def calibrate(config: Config, ranks: int, clock: str = "wall") -> Rates:
    """Measure.

    Args:
        config: its precision, ZeRO stage and options are those that are measured.
        ranks: of the world; no more of them are measured than there are cores.
        clock: of :data:`CLOCKS`.

    Raises:
        EgmfError: processes here could not do it, or the machine was too busy for what they found.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    few = max(1, min(ranks, cores))
    if ranks > 1:
        few = max(2, few)  # what is sent needs two
    return rates_of(measured(config, few, clock=clock), few)


def measured(
    config: Config, ranks: int, rounds: Mapping[str, int] = ROUNDS, clock: str = "wall"
) -> list[dict[str, Any]]:
    """What processes of this machine find, each for itself; see :func:`rates_of`.

    Args:
        config: see :func:`calibrate`.
        ranks: how many of them.
        rounds: steps of each small training that are timed.
        clock: of :data:`CLOCKS`.

    Raises:
        EgmfError: they could not do it.
    """
    job = {"config": asdict(small(config, ranks)), "rounds": dict(rounds), "clock": clock}
    return on_ranks("egmf_dist.scale.calibrate", job, "--calibrate", ranks, _LIMIT)


def small(config: Config, ranks: int) -> Config:
    """The settings of the small trainings: this project's own, but for what a step's seconds depend on."""
    options = {name: value for name, value in config.training.zero_options.items() if "hpz" not in name}
    training = TrainingConfig(
        global_batch=ranks * _MICRO * _MICRO_BATCHES,
        micro_batch=_MICRO,
        precision=config.training.precision,
        zero_stage=config.training.zero_stage,
        zero_options={"reduce_bucket_size": 1_000_000} | options,  # DeepSpeed's own is 2 GB in fp32
    )
    return Config(data=DataConfig(), training=training)


def rates_of(found: Sequence[Mapping[str, Any]], ranks: int) -> Rates:
    """What the processes found, as a machine's rates; of several the mean.

    Raises:
        EgmfError: they do not go together, as where something else kept the machine busy.
    """

    def mean(name: str) -> Curve:
        points = zip(*(one[name] for one in found), strict=True)
        return tuple((same[0][0], statistics.mean(rate for _, rate in same)) for same in points)

    products, moves = mean("products"), mean("moves")
    messages = {kind: (float(b), float(n)) for kind, (b, n) in found[0]["messages"].items()}
    plain = Rates(products, moves, 0.0, messages, SOURCE)
    steps = [Step(Count.from_json(one["count"]), one["seconds"]) for one in found[0]["steps"]]
    slower, call = fitted(steps, plain, ranks)
    return plain._replace(
        products=tuple((size, rate / slower) for size, rate in products),
        moves=tuple((size, rate / slower) for size, rate in moves),
        call=call,
    )


def fitted(steps: Sequence[Step], rates: Rates, ranks: int) -> tuple[float, float]:
    """By what factor operators are slower in a training than alone, and the seconds to start one.

    Args:
        steps: two, of which one computes more for each operator.
        rates: of single operators.
        ranks: that trained.

    Raises:
        EgmfError: no machine has such rates.
    """
    from egmf_dist.scale.hardware import HARDWARE, with_rates

    hardware = with_rates(HARDWARE["cpu"], rates)
    rows = [(_compute(step.count, hardware), sum(step.count.work.values())) for step in steps]
    left = [step.seconds - sum(message_seconds(step.count.messages, hardware, 1, ranks)) for step in steps]
    (first, calls), (second, others) = rows
    whole = first * others - second * calls
    slower = (left[0] * others - left[1] * calls) / whole if whole else 0.0
    call = (first * left[1] - second * left[0]) / whole if whole else 0.0
    if not (0.2 < slower < 10 and 0 < call < 1e-2):
        raise EgmfError(
            f"--calibrate: operators would be {slower:.2f} times slower in a training than alone and take {call:.2g} s "
            "to start; something else kept this machine busy: ask again when it is quiet"
        )
    return slower, call


def _compute(count: Count, hardware: Hardware) -> float:
    return sum(times * hardware.seconds(flops, size) for (flops, size), times in count.work.items())


def _measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """What each process does; all of them go on to the next part together."""
    from egmf_dist.distributed import process_group, world_size

    config, clock = config_from_dict(job["config"]), CLOCKS[job["clock"]]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))  # a rank has as many
    with process_group():
        return {
            "products": _products(clock, dtype_of(config.training.precision)),
            "moves": _moves(clock),
            "messages": _messages(clock) if world_size() > 1 else {},
            "steps": [_train(clock, config, shape, rounds) for shape, rounds in job["rounds"].items()],
        }


def _seconds(clock: Clock, action: Callable[[], Any], times: int = 1) -> float:
    """The median of some rounds, after one that warms up; the other ranks are at the same."""
    import torch.distributed as dist

    action()
    found = []
    for _ in range(_TRIED):
        dist.barrier()
        begin = clock()
        for _ in range(times):
            action()
        found.append((clock() - begin) / times)
    return statistics.median(found)


def _products(clock: Clock, dtype: torch.dtype) -> Curve:
    found = []
    for rows, width in _PRODUCTS:
        a, b = torch.randn(rows, width, dtype=dtype), torch.randn(width, width, dtype=dtype)
        flops = 2 * rows * width * width
        found.append((float(flops), flops / _seconds(clock, partial(torch.mm, a, b), max(1, (1 << 28) // flops))))
    return tuple(found)


def _moves(clock: Clock) -> Curve:
    """Bytes/s of what stands between products: sums, activations, a softmax, a copy across."""
    found = []
    for numbers in _MOVES:
        a = torch.rand(numbers // 64, 64)

        def some(a: torch.Tensor = a) -> None:
            torch.add(a, a)
            torch.mul(a, 2.0)
            torch.nn.functional.silu(a)
            torch.softmax(a, 1)
            a.t().contiguous()

        moved = 4 * numbers * (3 + 2 + 2 + 2 + 2)
        found.append((moved / 5, moved / _seconds(clock, some, max(1, (1 << 20) // numbers))))
    return tuple(found)


def _messages(clock: Clock) -> dict[str, tuple[float, float]]:
    """Bandwidth and latency of each kind of message, such that the ring's formulas give what was measured."""
    import math

    import torch.distributed as dist

    from egmf_dist.scale.timing import PASSES

    n, found = dist.get_world_size(), {}
    for kind in ("all-reduce", "all-gather", "reduce-scatter"):
        small, large = (_seconds(clock, partial(_send, kind, torch.zeros(size // 4)), 10) for size in _SIZES)
        passes = PASSES.get(kind, 1.0)
        latency = small / passes / math.log2(n)
        moved = passes * (_SIZES[1] - _SIZES[0]) * (n - 1) / n
        found[kind] = (moved / max(large - small, 1e-9), latency)
    return found


def _send(kind: str, tensor: torch.Tensor) -> None:
    import torch.distributed as dist

    ranks = dist.get_world_size()
    part = tensor[: tensor.numel() // ranks]
    tensor = tensor[: part.numel() * ranks]
    if kind == "all-reduce":
        dist.all_reduce(tensor)
    elif kind == "all-gather":
        dist.all_gather_into_tensor(tensor, part.clone())
    else:
        dist.reduce_scatter_tensor(part.clone(), tensor)


def _train(clock: Clock, config: Config, shape: str, rounds: int) -> dict[str, Any]:
    """Train a few steps of a small model of random weights: what a step counts, and its median seconds."""
    import torch.distributed as dist

    from egmf_dist import distributed
    from egmf_dist.scale.rehearsal import Plays, unread_model
    from egmf_dist.scale.subject import read_subject
    from egmf_dist.training.loop import train_step

    with read_subject(config, shape) as subject:
        plays = Plays(subject, distributed.world_size(), distributed.rank())
        engine = plays.engine(partial(unread_model, subject))
        batches, device = plays.steps[-1], torch.device("cpu")
        for own in plays.steps:
            train_step(engine, own, 1.0, device)
        with Ledger(alive=False) as ledger:
            train_step(engine, batches, 1.0, device)
        found = []
        for _ in range(rounds):
            dist.barrier()
            begin = clock()
            train_step(engine, batches, 1.0, device)
            found.append(clock() - begin)
        engine.destroy()
    return {"count": ledger.count.to_json(), "seconds": statistics.median(found)}


if __name__ == "__main__":
    sys.exit(as_rank(_measure))
