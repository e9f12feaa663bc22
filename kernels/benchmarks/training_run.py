"""A training run of `launcher/train.py` as it is, DeepSpeed and all: waits, time on device and host, time of a step.

    RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 \\
        python kernels/benchmarks/training_run.py --measure-out DIR --config ... --training.steps 50 ...

All other options are those of `egmf train`. Waits are counted in steps 12 to 15, the profile is of steps 20 to 22, the
time of a step is the median of steps 26 to 45. DIR/training.json is written after each of the three.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from egmf_step import make_importable

WAITS, PROFILE, TIMES = range(12, 16), range(20, 23), range(26, 46)


class Watch:
    """What is found, told before each step."""

    def __init__(self, out: Path) -> None:
        self.path = out / "training.json"
        self.found: dict[str, Any] = {}
        self.stack, self.starts = ExitStack(), list[float]()

    def before(self, step: int) -> None:
        """Begin or end what is watched."""
        from step_stages import CUDA, synchronize, watching_waits
        from torch.profiler import ProfilerActivity, profile

        if step == WAITS.start and CUDA:
            self.found["waits"] = self.stack.enter_context(watching_waits())
        elif step == WAITS.stop and CUDA:
            self.stack.close()
            self.found["waits_a_step"] = sum(self.found["waits"].values()) / len(WAITS)
        elif step == PROFILE.start:
            synchronize()
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
            self.profiler = self.stack.enter_context(profile(activities=activities))
        elif step == PROFILE.stop:
            synchronize()
            self.stack.close()
            events = self.profiler.key_averages()
            on_device = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
            on_host = [event for event in events if event.device_type == torch.autograd.DeviceType.CPU]
            self.found["device_us"] = sum(event.self_device_time_total for event in on_device) / len(PROFILE)
            for where, own, column in (
                ("device", on_device, "self_device_time_total"),
                ("host", on_host, "self_cpu_time_total"),
            ):
                rows = [(getattr(e, column) / len(PROFILE), e.count / len(PROFILE), e.key[:100]) for e in own]
                self.found[f"{where} top"] = sorted(rows, reverse=True)[:40]
        elif step in TIMES or step == TIMES.stop:
            self.starts.append(time.perf_counter())
        if step == TIMES.stop:
            taken = sorted(1e3 * (b - a) for a, b in zip(self.starts, self.starts[1:], strict=False))
            peak = torch.cuda.max_memory_allocated() / 2**20 if CUDA else None
            found = {"median": taken[len(taken) // 2], "min": taken[0], "max": taken[-1]}
            self.found |= {"step_ms": found, "peak_mib": peak}
            print(f"a step: {found['median']:.1f} ms", flush=True)
        if step in (WAITS.stop, PROFILE.stop, TIMES.stop):
            self.path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--measure-out", type=Path, required=True)
    options, rest = parser.parse_known_args(arguments)
    options.measure_out.mkdir(parents=True, exist_ok=True)
    make_importable()
    from egmf_dist.training.trainer import Trainer
    from egmf_launcher import cli

    watch, next_step = Watch(options.measure_out), Trainer.next_step

    def watched(trainer: Trainer) -> Any:
        watch.before(trainer.progress.step)
        return next_step(trainer)

    Trainer.next_step = watched  # type: ignore[method-assign]
    return cli.main(["train", *rest], program="launcher/train.py")


if __name__ == "__main__":
    sys.exit(main())
