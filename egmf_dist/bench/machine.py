"""Which machine figures were taken on."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path

import psutil
import torch

_PEAKS = {"H100 80GB HBM3": 989.4, "H200": 989.4, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.2}
"""Dense bf16 TFLOP/s by part of a device's name, as its maker's data sheet has them."""


def machine() -> str:
    """Operating system, processor, cores that this process may use, memory."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    processor = found[1] if found else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 2**30
    return f"{platform.system()} {platform.machine()}, {processor}, {cores} cores, {memory:.0f} GiB"


def peak_tflops() -> float | None:
    """What the GPU's data sheet says of dense bf16 matrix products; None where there is none, or it is not known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


def wait_for_device() -> None:
    """Until a GPU has done what it was given; without one nothing is outstanding."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_tflops() -> float:
    """What a matrix product reaches here and now: bf16 of 8192 on a GPU, fp32 of 1024 on one CPU thread; TFLOP/s."""
    cuda = torch.cuda.is_available()
    side, times = (8192, 20) if cuda else (1024, 8)
    a = torch.randn(side, side, device="cuda" if cuda else "cpu", dtype=torch.bfloat16 if cuda else torch.float32)

    def seconds(count: int) -> float:
        wait_for_device()
        start = time.perf_counter()
        for _ in range(count):
            torch.mm(a, a)
        wait_for_device()
        return time.perf_counter() - start

    seconds(2)
    return 2 * side**3 * times / seconds(times) / 1e12
