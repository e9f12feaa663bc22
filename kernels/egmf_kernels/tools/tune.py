"""Tune a tile table on the CUDA device at hand: an explicit command, never a part of training.

    python -m egmf_kernels.tools.tune --out FILE.json [--seconds S] [--kernel NAME] [--install]

Each entry tries its neighbours in two steps: block sizes, warps and stages by the time of that one launch; counts
(programs, splits, run length) by the time of the whole operator, because the sums behind the launch depend on them.
The convolution's run length comes first: it decides how many programs there are. A candidate that does not compile,
spills registers or computes something else is out; one that is not at least 2 % faster than the entry in use is noise.

The bits of a parameter's gradient depend on ``programs``, ``splits`` and ``length``, that is on the table and on T, not
on the device: two machines that shall agree to the bit need the same table. A tuned table records its origin.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from egmf_kernels import bench, tiles
from egmf_kernels.bench import processes
from egmf_kernels.bench.cases import WIDTHS, Case, Inputs, ragged_lengths
from egmf_kernels.bench.correct import LIMITS, error, results
from egmf_kernels.bench.measure_time import Timing, stream_time, timings
from egmf_kernels.ops.common.launch import watching
from egmf_kernels.tools.ahead_of_time import entry_of

Tile = dict[str, int]
Launch = tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]

ENTRIES = {
    "ragged_pool_gate": ("ragged_pool_gate_forward", "ragged_pool_gate_backward"),
    "hier_gate_mix_norm": ("mix_norm_forward", "mix_norm_backward"),
    "ms_dwconv": ("ms_dwconv_forward", "ms_dwconv_backward"),
    "gated_tri_proj": (
        "gated_tri_proj_forward",
        "gated_tri_proj_backward_a",
        "gated_tri_proj_backward_w",
        "expert_gate_forward",
        "expert_gate_backward",
    ),
    "gated_expert_mix": ("norm_forward", "norm_backward"),
}
"""Operator -> the table entries that are tuned through it; up to D = 512 gated_expert_mix ends in the plain norm."""
GAIN = 0.98
"""A candidate's time over the present one's must be below this."""

REPEAT_MS = 40

# BM, BN, BK, num_warps, num_stages of the matrix products; 256-wide tiles spill two accumulators on sm_90.
PRODUCTS = (
    (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 128, 32, 8, 4), (128, 64, 64, 4, 3), (128, 64, 64, 8, 3),
    (64, 128, 64, 4, 3), (64, 128, 64, 4, 4), (64, 256, 64, 8, 3), (64, 64, 64, 4, 4),
)  # fmt: skip
# The same of the weights' product.
WEIGHT_PRODUCTS = (
    (128, 128, 32, 8, 3), (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 64, 64, 4, 3), (64, 128, 64, 4, 3),
    (64, 128, 32, 8, 3), (64, 64, 64, 4, 4),
)  # fmt: skip


def shapes(entry: str, tile: Tile) -> list[Tile]:
    """Candidates for the first step: what needs a new compilation."""
    found = []
    if entry.startswith("gated_tri_proj"):
        names = ("BM", "BN", "BK", "num_warps", "num_stages")
        blocks = WEIGHT_PRODUCTS if entry.endswith("_w") else PRODUCTS
        found = [
            tile | dict(zip(names, values, strict=True)) | {"FLAT": flat} for values in blocks for flat in (False, True)
        ]
    elif entry.startswith("ms_dwconv"):
        for chunks, columns, warps, steps in product((2, 4, 8), (64, 128), (2, 4, 8), (2, 4, 8)):
            # A lane with more than 4 numbers a row runs out of registers, one without a number idles.
            if 1 <= chunks * columns // (32 * warps) <= 4:
                found.append(tile | {"CHUNKS": chunks, "BC": columns, "num_warps": warps, "STEPS": steps})
    elif entry.startswith("ragged_pool"):
        for wide, fewer, steps, warps in product((1, 2), (1, 2, 4), (1, 2, 4), (4, 8, 16)):
            # As many columns a thread as now, half or a quarter of them, by wider pieces, fewer rows or more warps.
            rows = tile["ROWS"] * warps // (tile.get("num_warps", 4) * wide * fewer)
            if rows:
                found.append(tile | {"BP": tile["BP"] * wide, "ROWS": rows, "STEPS": steps, "num_warps": warps})
    else:
        rows, warps = tile["BT"], tile.get("num_warps", 4)
        for more, wide in product((rows // 2, rows, rows * 2, rows * 4), (warps // 2, warps, warps * 2)):
            if more >= 1 and 1 <= wide <= 16:
                found.append(tile | {"BT": more, "num_warps": wide})
    return [candidate for candidate in found if candidate != tile]


def counts(tile: Tile) -> list[Tile]:
    """Candidates for the second step: how often and how long programs run; nothing is compiled for them."""
    found = []
    if "length" in tile:
        found += [tile | {"length": n} for n in (64, 128, 192, 256) if n != tile["length"]]
    for name in ("programs", "splits", "fill", "CHUNK"):
        if name in tile:
            found += [tile | {name: n} for n in (tile[name] // 2, tile[name] * 2, tile[name] * 4) if n]
    return found


@dataclass(frozen=True)
class Job:
    """One entry at one width and dtype, and the case it is tuned on."""

    entry: str
    case: Case

    @property
    def bits(self) -> str:
        return "16" if self.case.dtype.itemsize == 2 else "32"

    def __str__(self) -> str:
        return f"{self.entry} {self.bits} bits d={self.case.width}"

    def lookup(self, table: dict[str, Any]) -> Tile:
        """The tile that ``table`` gives this job."""
        with tiles.using(table):
            return dict(tiles.lookup(self.entry, torch.empty(0, dtype=self.case.dtype), self.case.width))

    def changed(self, table: dict[str, Any], tile: Tile) -> dict[str, Any]:
        """``table`` with this job's own entry set to ``tile``."""
        made = copy.deepcopy(table)
        made["kernels"][self.entry][self.bits][str(self.case.width)] = tile
        return made


def jobs(
    stream_bytes: int,
    widths: Sequence[int] = WIDTHS,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16,),
    kernel: str = "",
    segment: int = 128,
) -> list[Job]:
    """What is tuned, by width: ragged batches of ``stream_bytes`` a stream, ``segment`` tokens a segment on average.

    ``kernel`` keeps the entries whose name contains it.
    """
    found = []
    for dtype, width in product(dtypes, widths):
        batch = max(2, -(-stream_bytes // (dtype.itemsize * width * 3 * segment)))
        for operator, entries in ENTRIES.items():
            case = Case(operator, width, dtype, "ragged", ragged_lengths(batch, 3, batch * 3 * segment))
            # Above 512 gated_expert_mix runs hier_gate_mix_norm, which has its own entries.
            serves = operator != "gated_expert_mix" or width <= 512
            found += [Job(entry, case) for entry in entries if serves and kernel in entry]
    return found


def launches(job: Job, inputs: Inputs, table: dict[str, Any], go_on: bool) -> list[Launch]:
    """The launches of a job's kernel in one forward and backward with ``table``."""
    seen: list[Launch] = []

    def watch(kernel: Any, grid: tuple[int, ...], arguments: Any, keywords: dict[str, Any]) -> bool:
        mine = entry_of(kernel, keywords) == job.entry
        if mine:
            seen.append((kernel, grid, tuple(arguments), dict(keywords)))
        return go_on

    with tiles.using(table), watching(watch):
        results(job.case.fused(), inputs)
    return seen


def precompile(task: tuple[Job, dict[str, Any]]) -> int:
    """Compile every first-step candidate of a job into Triton's cache; a worker's task."""
    job, table = task
    inputs = job.case.make("cuda", 0)
    done = 0
    for tile in shapes(job.entry, job.lookup(table)):
        for kernel, grid, arguments, keywords in launches(job, inputs, job.changed(table, tile), go_on=False):
            try:
                kernel.warmup(*arguments, grid=grid, **keywords)
                done += 1
            except Exception:
                continue  # the tuning itself meets the same failure and records it
    return done


class Tuner:
    """Tunes one job after the other on a device; ``table`` is the best so far."""

    def __init__(self, table: dict[str, Any], device: str, timed: bool) -> None:
        self.table = copy.deepcopy(table)
        self.device = device
        self.timed = timed
        self.report: list[dict[str, Any]] = []

    def tune(self, job: Job) -> None:
        """Try both steps of a job's candidates and keep the best."""
        inputs = job.case.make(self.device, 0)
        present = job.lookup(self.table)
        with tiles.using(self.table):
            expected = results(job.case.fused(), inputs)
        best: Tile = present
        log: list[dict[str, Any]] = []
        for step in ("operator", "launch") if "length" in present else ("launch", "operator"):
            tried = shapes(job.entry, best) if step == "launch" else counts(best)
            if not tried:
                continue
            fastest = self._time(job, inputs, best, step, spill=True)
            log.append({"tile": best, "step": step, "ms": fastest and fastest.median, "present": True})
            for tile in tried if self.timed else tried[:1]:
                record: dict[str, Any] = {"tile": tile, "step": step, "ms": None}
                log.append(record)
                try:
                    self._compare(job, inputs, tile, expected)
                    taken = self._time(job, inputs, tile, step)
                except Exception as problem:
                    record["rejected"] = processes.one_line(problem)
                    if self.device != "cpu":
                        torch.cuda.synchronize()  # a fault of the device ends the tuning here
                    continue
                record["ms"] = taken and taken.median
                if taken and fastest and taken.median < GAIN * fastest.median:
                    best, fastest = tile, taken
        if best != present:
            self.table = job.changed(self.table, best)
        what = {"entry": job.entry, "bits": job.bits, "width": job.case.width}
        self.report.append(what | {"before": present, "after": best, "tried": log})

    def _compare(self, job: Job, inputs: Inputs, tile: Tile, expected: dict[str, torch.Tensor]) -> None:
        """Raise unless the operator computes with ``tile`` what it computed before."""
        with tiles.using(job.changed(self.table, tile)):
            found = results(job.case.fused(), inputs)
        for name, tensor in found.items():
            far = error(tensor, expected[name].double())
            if not far <= LIMITS[job.case.dtype]:
                raise ValueError(f"{name} is {far:.1e} away from the present tile's; at most {LIMITS[job.case.dtype]}")

    def _time(self, job: Job, inputs: Inputs, tile: Tile, step: str, spill: bool = False) -> Timing | None:
        """The launch alone, or the whole operator; None where nothing is timed. ``spill`` allows spilled registers."""
        table = job.changed(self.table, tile)
        if step == "operator":
            if not self.timed:
                return None
            with tiles.using(table):
                return timings({"operator": lambda: results(job.case.fused(), inputs)}, REPEAT_MS)[1]["operator"]
        kernel, grid, arguments, keywords = launches(job, inputs, table, go_on=True)[-1]
        compiled = kernel[grid](*arguments, **keywords)
        spills = getattr(compiled, "n_spills", 0)
        if spills and not spill:
            raise ValueError(f"{spills} registers spilled")
        return stream_time(lambda: kernel[grid](*arguments, **keywords), REPEAT_MS) if self.timed else None


def tune_table(
    table: dict[str, Any],
    work: Sequence[Job],
    *,
    seconds: float,
    workers: int,
    device: str = "cuda",
    say: Callable[[str], None] = print,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """Tune ``work`` in order until the time is over.

    On ``device`` "cpu" (a rehearsal in the interpreter) one candidate a step is compared and nothing is timed, so the
    table comes back as it was.

    Returns:
        The new table, a record per job, and in one line each the jobs that were not tuned.
    """
    end = time.monotonic() + seconds
    if workers and device == "cuda":
        middle = time.monotonic() + seconds / 2
        processes.run_tasks(precompile, [(job, table) for job in work], workers, middle)
    tuner, left = Tuner(table, device, timed=device == "cuda"), []
    for job in work:
        if time.monotonic() >= end:
            left.append(f"{job}: out of time")
            continue
        try:
            tuner.tune(job)
        except Exception as problem:
            left.append(f"{job}: {processes.one_line(problem)}")
            continue
        last = tuner.report[-1]
        say(f"{job}: {'kept' if last['after'] == last['before'] else last['after']}")
    return tuner.table, tuner.report, left


def signed(table: dict[str, Any], capability: int, origin: str) -> dict[str, Any]:
    """``table`` under the device's architecture and with its origin."""
    return table | {"architecture": f"sm_{capability}", "origin": origin}


def origin(commit: str) -> str:
    """Device, versions, commit and date, as a table's ``origin`` names them."""
    told = bench.provenance()
    return f"tuned on {told['machine']}, torch {told['versions']['torch']}, triton {told['versions']['triton']}, " \
           f"commit {commit}, {told['date']}"  # fmt: skip


def save(table: dict[str, Any], path: Path) -> None:
    """Write a table; complete or not there."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def tune(out: Path, *, seconds: float = 600.0, kernel: str = "", workers: int | None = None) -> dict[str, Any]:
    """Tune the whole table of this device's architecture and write it to ``out``.

    Args:
        out: the JSON file.
        seconds: no job starts later than this.
        kernel: only entries whose name contains this.
        workers: compiling processes; half of the cores where not given.

    Returns:
        The table.

    Raises:
        RuntimeError: there is no CUDA device, or this process interprets.
    """
    capability = capability_here()
    base = tiles.current(torch.device("cuda"))
    entries = [by_width for by_bits in base["kernels"].values() for by_width in by_bits.values()]
    widths = sorted({int(width) for by_width in entries for width in by_width} | set(WIDTHS))
    work = jobs(64 << 20, widths, (torch.bfloat16, torch.float32), kernel)
    used = processes.default_workers() if workers is None else workers
    table, _, left = tune_table(base, work, seconds=seconds, workers=used)
    for line in left:
        print(f"not tuned: {line}")
    table = signed(table, capability, origin(bench.commit()))
    save(table, out)
    return table


def capability_here() -> int:
    """Compute capability of the CUDA device.

    Raises:
        RuntimeError: there is none, or this process interprets its kernels.
    """
    from egmf_kernels.ops.common.interpreter import INTERPRETED

    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA device; tuning and measuring need one")
    if INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set; unset it to tune or measure on the GPU")
    major, minor = torch.cuda.get_device_capability()
    return major * 10 + minor


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="tune the tile table of this GPU's architecture")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--kernel", default="", help="only entries whose name contains this")
    parser.add_argument("--install", action="store_true", help="also put it among the shipped tables")
    options = parser.parse_args()
    if not options.out.resolve().parent.is_dir():
        print(f"--out {options.out}: its folder does not exist", file=sys.stderr)
        return 2
    try:
        table = tune(options.out, seconds=options.seconds, kernel=options.kernel)
    except RuntimeError as problem:
        print(processes.one_line(problem), file=sys.stderr)
        return 2
    if options.install:
        save(table, tiles.FOLDER / f"{table['architecture']}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
