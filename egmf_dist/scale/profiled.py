"""What ``training.profile_steps`` wrote, beside the plan: shares, bytes, MFU, the fused kernels' share, a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egmf_dist.bench.machine import matmul_tflops, peak_tflops
from egmf_dist.errors import EgmfError
from egmf_dist.scale.rehearsal import Rehearsal
from egmf_dist.training.profile import SUMMARY

FUSED = ("ms_dwconv", "gated_tri_proj", "ragged_pool_gate", "hier_gate_mix_norm")
"""What this project's own kernels are called, among a GPU's."""


def read_profile(folder: Path) -> dict[str, Any]:
    """The summary in a profile's folder.

    Raises:
        EgmfError: there is none.
    """
    try:
        found: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EgmfError(f"{folder / SUMMARY}: cannot be read; profile first, with training.profile_steps") from error
    return found


def with_plan(profile: Mapping[str, Any], planned: Rehearsal) -> dict[str, Any]:
    """The profile with what follows from it.

    ``flops`` are the hardware's: all that ran. The model's leave out what gradient checkpointing computes again, which
    is about what the LLM's forward pass took. MFU is model FLOPs over what the data sheet says; without a known GPU it
    is taken of the matrix rate that was measured here, and says so.
    """
    flops = profile["flops"]
    hardware = sum(flops.values())
    model = hardware - (flops.get("LLM forward", 0) if profile["checkpointing"] else 0)
    measured, peak = matmul_tflops(), peak_tflops()
    rate = (peak or measured) * 1e12
    kernels = profile["kernels"]
    busy = sum(row["seconds"] for row in kernels)
    fused = sum(row["seconds"] for row in kernels if any(name in row["name"] for name in FUSED))
    return {
        **profile,
        "planned_messages": planned.step.bytes_by_kind,
        "planned_peak_bytes": planned.peak_bytes,
        "hardware_flops": hardware,
        "model_flops": model,
        "matmul_tflops": measured,
        "mfu": model / profile["step_s"] / rate,
        "hfu": hardware / profile["step_s"] / rate,
        "mfu_of": "the data sheet's rate" if peak else "the matrix rate measured here",
        "fused_share": fused / busy if busy else None,
    }


def rows_of(profile: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each phase."""
    whole = profile["step_s"]
    return [
        {
            "phase": name,
            "ms": 1e3 * seconds,
            "share": f"{seconds / whole:.1%}",
            "GFLOP": profile["flops"].get(name, 0) / 1e9,
        }
        for name, seconds in profile["phases"].items()
    ]


def message_rows(profile: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each kind of message: counted, and planned."""
    kinds = sorted({*profile["messages"], *profile["planned_messages"]})
    return [
        {
            "message": kind,
            "calls": profile["messages"].get(kind, {}).get("calls", 0),
            "MiB counted": profile["messages"].get(kind, {}).get("bytes", 0) / 2**20,
            "MiB planned": profile["planned_messages"].get(kind, 0) / 2**20,
        }
        for kind in kinds
    ]


def lines_of(profile: Mapping[str, Any]) -> list[str]:
    """In words."""
    lines = [
        f"a step {1e3 * profile['step_s']:.1f} ms, stage {profile['stage']}, {profile['ranks']} ranks, "
        f"mean of {profile['steps']} steps of rank 0",
        f"MFU {profile['mfu']:.1%}, of the hardware's FLOPs {profile['hfu']:.1%}, of {profile['mfu_of']}; a product "
        f"reaches {profile['matmul_tflops']:.3g} TFLOP/s here",
        f"most alive: {profile['peak_bytes'] / 2**20:.1f} MiB; planned {profile['planned_peak_bytes'] / 2**20:.1f} MiB",
    ]
    if profile["fused_share"] is not None:
        lines.append(f"this project's kernels take {profile['fused_share']:.1%} of the GPU's time")
    return lines


def draw(profile: Mapping[str, Any], out: Path) -> Path:
    """Draw ``profile.png`` into ``out``, which is there: seconds by phase, and what is alive as the step goes on."""
    from egmf_dist.style import COLOURS, FONT, GREY, new_figure, save, tidy

    figure = new_figure(9, 5.5)
    times, memory = figure.subplots(2, 1, height_ratios=[1.4, 1])
    names = [name for name, seconds in profile["phases"].items() if seconds > 0]
    shares = [1e3 * profile["phases"][name] for name in names]
    times.barh(range(len(names)), shares, color=[GREY if name == "host" else COLOURS[0] for name in names])
    times.set_yticks(range(len(names)), names)
    times.invert_yaxis()
    tidy(times, f"a step of {1e3 * profile['step_s']:.1f} ms by phase, rank 0 of {profile['ranks']}", "ms", "")
    memory.plot([size / 2**20 for _, size in profile["timeline"]], color=COLOURS[1], linewidth=1)
    tidy(memory, "tensors alive as one phase follows the other", "change of phase", "MiB")
    memory.title.set_fontsize(FONT)
    return save(figure, out / "profile.png")
