"""This machine's own rates: matrix products, copies, starting an operator, messages between two processes.

A minute on a quiet machine. What a step takes follows by the same formulas as elsewhere (:mod:`.timing`).
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch

from egmf_dist.config import Config
from egmf_dist.errors import EgmfError
from egmf_dist.ledger import Ledger
from egmf_dist.model.precision import dtype_of

ROUNDS = 5
_SIZES = (1 << 10, 1 << 22)
"""Bytes of the messages: what the small one takes is latency, what the large one takes beyond it is bandwidth."""


def calibrate(config: Config, ranks: int) -> dict[str, Any]:
    """Measure.

    Args:
        config: its precision is what products are measured in.
        ranks: with one no message is measured.

    Returns:
        ``flops`` and ``bandwidth`` a second, ``call`` in seconds, ``link_bandwidth``, ``link_latency``, ``source``.

    Raises:
        EgmfError: two processes could not exchange messages.
    """
    dtype = dtype_of(config.training.precision)
    threads = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))  # a rank has as many
    try:
        rates = {"flops": _products(dtype), "bandwidth": _copies(), "call": _calls()}
    finally:
        torch.set_num_threads(threads)
    latency, bandwidth = _messages() if ranks > 1 else (1e-4, 1e9)
    return {
        **rates,
        "link_latency": latency,
        "link_bandwidth": bandwidth,
        "source": "measured on this machine by egmf plan --calibrate",
    }


def _seconds(action: Callable[[], Any]) -> float:
    """The median of some rounds, after one that warms up."""
    action()
    found = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        action()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def _products(dtype: torch.dtype) -> float:
    """Floating-point operations/s in products of a rank's usual shapes, rows of tokens by a square of weights."""
    rates = []
    for side in (128, 256, 512, 1024):
        a, b = torch.randn(512, side, dtype=dtype), torch.randn(side, side, dtype=dtype)
        times = max(1, (1 << 27) // (512 * side * side))
        rates.append(2 * 512 * side * side * times / _seconds(partial(_multiply, a, b, times)))
    return statistics.median(rates)


def _multiply(a: torch.Tensor, b: torch.Tensor, times: int) -> None:
    for _ in range(times):
        a @ b


def _copies() -> float:
    """Bytes/s, read and written together, of sums that do not fit a cache."""
    a, b = torch.ones(1 << 24), torch.empty(1 << 24)
    return 2 * 4 * a.numel() / _seconds(lambda: torch.add(a, 1.0, out=b))


def _calls() -> float:
    """Seconds to start an operator, autograd's share with it."""
    x = torch.ones(8, requires_grad=True)

    def some() -> None:
        y = x
        for _ in range(100):
            y = torch.nn.functional.silu(y * 1.5 + 0.1)
        y.sum().backward()

    with Ledger(alive=False) as ledger:
        some()
    return _seconds(some) / sum(ledger.count.work.values())


def _messages() -> tuple[float, float]:
    """Latency in seconds and bytes/s of a message between two processes here, by the all-reduce's formula."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    own = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "egmf_dist.scale.calibrate"]
    both = [
        subprocess.Popen([*command, str(rank), str(port)], env=own, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=180)[0] for process in both]
    except subprocess.TimeoutExpired as error:
        raise EgmfError("--calibrate: two processes here exchanged no messages in three minutes") from error
    finally:
        for process in both:
            process.kill()
    if any(process.returncode for process in both):
        raise EgmfError("--calibrate: two processes here could not exchange messages by gloo")
    small, large = json.loads(said[0])
    # Two ranks: an all-reduce passes latency and half of its bytes twice.
    return small / 2, (_SIZES[1] - _SIZES[0]) / max(large - small, 1e-9)


def _exchange(rank: int, port: int) -> None:
    """What each of the two does."""
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    found = []
    for size in _SIZES:
        tensor = torch.zeros(size // 4)
        found.append(_seconds(partial(dist.all_reduce, tensor)))
    dist.destroy_process_group()
    print(json.dumps(found))


if __name__ == "__main__":
    _exchange(*map(int, sys.argv[1:]))
