"""Everything that needs a GPU, in one go: ceilings, correctness gate, tuning where asked, times, memory, targets.

What the figures are: the time of an operator is the median over device events of CUDA graph replays (or of plain
calls, the same way for every implementation of a case; the row's ``timing`` says which), forward and both directions
measured, backward their difference. GB/s, TFLOP/s and the share of the roofline count the fused operator's compulsory
bytes and products (:mod:`egmf_kernels.tools.formulas`) for every implementation, over the measured copy and
matmul rates.
``compile`` is ``torch.compile`` of the reference for the very shapes. The fused operators are handed ``segment_T``,
which the model computes once per batch; the reference computes it in every call.

A rehearsal runs the same code on the CPU in Triton's interpreter with tiny sizes and has no times at all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton

from egmf_kernels import bench, tiles
from egmf_kernels.bench import correct, measure_rows, processes
from egmf_kernels.bench.cases import Case, Inputs, Runner, benchmark_cases, gradients, pad, padded_pool
from egmf_kernels.bench.measure_rows import Row
from egmf_kernels.bench.measure_time import Memory, Rates, Timing, measure_rates, memory, timings
from egmf_kernels.bench.static_roofline import measured_share
from egmf_kernels.tools import tune

REHEARSAL = "rehearsal, not a measurement"
LLM_TOKENS = 160
"""Tokens of one sample that the language model reads, for the step share."""
SMALLEST_STREAM, LARGEST_STREAM = 64 << 20, 128 << 20


@dataclass(frozen=True)
class Plan:
    """What one run does."""

    device: str
    stream_bytes: int
    widths: tuple[int, ...]
    gate_widths: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    workers: int
    rehearse: bool

    @property
    def segment(self) -> int:
        """Mean tokens of a (sample, modality) segment."""
        return 2 if self.rehearse else 128

    def cases(self) -> list[Case]:
        """What is timed."""
        return benchmark_cases(self.stream_bytes, self.widths, self.segment)

    def jobs(self) -> list[tune.Job]:
        """What is tuned; a rehearsal takes one entry of each operator."""
        found = tune.jobs(min(SMALLEST_STREAM, self.stream_bytes), self.widths, segment=self.segment)
        firsts = {job.case.operator: job for job in reversed(found)}
        return list(firsts.values()) if self.rehearse else found


@dataclass
class Record:
    """What a run has found so far."""

    summary: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    verdicts: list[correct.Verdict] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """What was to be done and was not, one line each."""
    tuning: list[dict[str, Any]] = field(default_factory=list)

    def write(self, out: Path, complete: bool) -> dict[str, Any]:
        """Bring the summary up to date and write everything."""
        red = [v.line() for v in self.verdicts if not v.correct]
        gate_missing = [line for line in self.left if line.startswith("not checked")]
        self.summary |= {
            "complete": complete,
            "correct": complete and bool(self.verdicts) and not red and not gate_missing,
            "red": red,
            "left_out": self.left,
            "rows": self.rows,
        }
        checked = [_finite(asdict(v) | {"correct": v.correct}) for v in self.verdicts]
        measure_rows.write(out, self.summary, {"correctness": checked, "tuning": self.tuning})
        return self.summary


def plan(rehearse: bool, workers: int | None) -> Plan:
    """The plan for this machine.

    Raises:
        RuntimeError: there is no CUDA device, or this process interprets when it shall not, or the reverse.
    """
    from egmf_kernels.ops.common.interpreter import INTERPRETED

    if rehearse:
        if not INTERPRETED:
            raise RuntimeError("a rehearsal runs in Triton's interpreter; set TRITON_INTERPRET=1 before the start")
        if triton.__version__.startswith("3.6."):
            raise RuntimeError("Triton 3.6's interpreter fails on loops with numpy 2.4; rehearse with 3.7 or newer")
        return Plan("cpu", 1536, (32,), (32,), (torch.bfloat16,), workers or 0, True)
    tune.capability_here()
    total = torch.cuda.get_device_properties(0).total_memory
    # The fp64 check of the convolution holds about 120 streams of fp64 or eager at once.
    stream = min(LARGEST_STREAM, max(SMALLEST_STREAM, total // 400))
    used = processes.default_workers() if workers is None else workers
    return Plan("cuda", stream, (512, 256, 1024), correct.WIDTHS, tuple(correct.LIMITS), used, False)


def measure_all(
    out: Path,
    *,
    seconds: float = 480.0,
    trace: bool = False,
    rehearse: bool = False,
    tuned: bool = False,
    workers: int | None = None,
    commit: str = "",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run the plan and write ``summary.json``, ``results.json``, ``results.csv`` and the tile table into ``out``.

    Args:
        out: a folder; made where it does not exist.
        seconds: time budget; what no longer fits is left out and named under ``left_out``.
        trace: also write a Chrome trace per operator.
        rehearse: tiny, interpreted, on the CPU, without times.
        tuned: tune the tile table first and measure with the result.
        workers: processes for checking and compiling; half of the cores where not given, 0 for none.
        commit: what to record as the commit; asked from git where empty.
        say: called with lines of progress.

    Returns:
        The summary; ``correct`` is true only if the whole gate ran and everything that ran is correct.

    Raises:
        RuntimeError: this machine or process cannot do what is asked.
    """
    start = time.monotonic()
    end = start + seconds
    todo = plan(rehearse, workers)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    table = tiles.current(torch.device(todo.device))
    record = Record(_header(todo, table, commit))
    rates = None if rehearse else measure_rates()
    record.summary["ceilings"] = None if rates is None else asdict(rates)
    say(f"ceilings: {record.summary['ceilings']}")

    _gate(record, todo, None, 0.4 * seconds, todo.gate_widths, todo.dtypes, say)
    if not rehearse:
        _warm(record, todo, 0.5 * seconds - (time.monotonic() - start), say)
    record.write(out, complete=False)
    if tuned:
        base, work = table, todo.jobs()
        budget = 0.7 * seconds - (time.monotonic() - start)
        table, record.tuning, left = tune.tune_table(
            table, work, seconds=budget, workers=todo.workers, device=todo.device, say=say
        )
        record.left += [f"not tuned: {line}" for line in left]
        if table["kernels"] != base["kernels"]:
            _gate(record, todo, table, 0.15 * seconds, todo.widths, (torch.bfloat16, torch.float16), say)
        say(f"tuning: {len(work) - len(left)} of {len(work)} entries")
        record.write(out, complete=False)

    _measure(record, todo, table, rates, end, say)
    chosen = measure_rows.choices(record.rows)
    table = table | {"choices": chosen}
    if not rehearse:
        capability = tune.capability_here()
        table = tune.signed(table, capability, tune.origin(record.summary["commit"]) if tuned else table["origin"])
        _measure_auto(record, todo, table, rates, end, say)
    tune.save(table, out / f"{table['architecture']}.json")
    record.summary["choices"] = chosen
    record.summary["targets"] = measure_rows.targets(record.rows, rates, chosen)
    record.summary["step_share"] = measured_share(record.summary | {"rows": record.rows}, LLM_TOKENS)
    if trace and not rehearse:
        _traces(out, todo, table, say)
    record.summary["seconds"] = round(time.monotonic() - start, 1)
    return record.write(out, complete=True)


def _header(todo: Plan, table: dict[str, Any], commit: str) -> dict[str, Any]:
    told = bench.provenance()
    device = "interpreter" if todo.rehearse else torch.cuda.get_device_name()
    return {
        "kind": "rehearsal" if todo.rehearse else "measured",
        "label": REHEARSAL if todo.rehearse else f"measured on {device}",
        "device": device,
        **told,
        "commit": commit or told["commit"],
        "table": table["origin"],
        "notes": [
            "GB/s, TFLOP/s and % of the roofline count the fused operator's bytes and products, whatever runs",
            "backward is forward and backward less forward",
            "the fused operators are handed each token's segment, as in the model; the reference computes it",
        ],
        "stream_mib": todo.stream_bytes / 2**20,
    }


def _gate(
    record: Record,
    todo: Plan,
    table: dict[str, Any] | None,
    seconds: float,
    widths: Sequence[int],
    dtypes: Sequence[torch.dtype],
    say: Callable[[str], None],
) -> None:
    work = correct.groups(todo.device, widths=widths, dtypes=dtypes, table=table, rehearse=todo.rehearse)
    verdicts, missing = correct.run_gate(work, todo.workers, seconds, say)
    record.verdicts += verdicts
    record.left += [f"not checked: {line}" for line in missing]
    red = [v for v in verdicts if not v.correct]
    for verdict in red:
        say(verdict.line())
    say(f"correctness: {len(verdicts)} cases, {len(red)} red, {len(missing)} groups of {len(work)} not finished")


def warm(task: Case) -> None:
    """Compile a case's reference into Inductor's cache; a worker's task."""
    output, _ = task.compiled()(task.make("cuda", 1))
    del output


def _warm(record: Record, todo: Plan, seconds: float, say: Callable[[str], None]) -> None:
    """Compile the baselines in parallel before they are timed; what fails here is met again there."""
    if todo.workers and seconds > 0:
        ragged = [case for case in todo.cases() if case.layout == "ragged"]
        done = processes.run_tasks(warm, ragged, todo.workers, time.monotonic() + seconds)
        say(f"torch.compile: {sum(not o.error for o in done)} of {len(done)} baselines compiled ahead")


def _runners(case: Case, rehearse: bool) -> dict[str, Runner]:
    return {
        "eager": case.eager(),
        "compile": case.compiled("eager" if rehearse else "inductor"),
        "fused": case.fused(),
    }


def _measure(
    record: Record, todo: Plan, table: dict[str, Any], rates: Rates | None, end: float, say: Callable[[str], None]
) -> None:
    """Check and time every case on its own inputs."""
    before = None
    for case in todo.cases():
        if time.monotonic() >= end:
            record.left.append(f"not measured: {case.name}: out of time")
            continue
        if before != (case.operator, case.width):
            torch._dynamo.reset()
            before = (case.operator, case.width)
        try:
            with tiles.using(table):
                inputs = case.make(todo.device, 1)
                verdict = correct.check(case, inputs)
                record.verdicts.append(verdict)
                if not verdict.correct:
                    say(verdict.line())
                rows = _case(record, case, inputs, verdict.correct, _runners(case, todo.rehearse), rates, table)
        except Exception as problem:
            red = correct.Verdict(case.name, case.operator, complaints=(processes.one_line(problem),))
            record.verdicts.append(red)
            say(red.line())
            continue
        record.rows += rows
        if rates is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        fused = [row for row in rows if row["implementation"] == "fused"]
        for text in [f"{case.name}: not timed"] if todo.rehearse else map(measure_rows.line, fused):
            say(text)


def _case(
    record: Record,
    case: Case,
    inputs: Inputs,
    correct_here: bool,
    runners: dict[str, Runner],
    rates: Rates | None,
    table: dict[str, Any],
) -> list[Row]:
    """Rows of one case; an implementation that fails is left out and named."""
    given = dict.fromkeys(runners, inputs)
    if case.operator == "ragged_pool_gate" and "eager" in runners:
        runners, given = runners | {"padded": padded_pool(case)}, given | {"padded": pad(case, inputs)}
    memories: dict[str, Memory] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for name, run in runners.items():
        try:
            _both(run, given[name])
            if rates is not None:
                memories[name] = memory(run, given[name])
        except Exception as problem:
            record.left.append(f"not measured: {case.name} {name}: {processes.one_line(problem)}")
            continue
        calls[f"{name} forward"] = lambda run=run, name=name: run(given[name])  # type: ignore[misc]
        calls[f"{name} both"] = lambda run=run, name=name: _both(run, given[name])  # type: ignore[misc]
    times: dict[str, dict[str, Timing]] = {name: {} for name in runners if f"{name} both" in calls}
    method = REHEARSAL
    if rates is not None:
        method, taken = timings(calls)
        for key, timing in taken.items():
            name, direction = key.split()
            times[name][direction] = timing
    return measure_rows.case_rows(case, correct_here, times, memories, method, rates, table)


def _both(run: Runner, inputs: Inputs) -> dict[str, torch.Tensor]:
    return gradients(run(inputs)[0], inputs)


def _measure_auto(
    record: Record, todo: Plan, table: dict[str, Any], rates: Rates | None, end: float, say: Callable[[str], None]
) -> None:
    """Time ``auto`` where it does not run the kernels: beside torch.compile, on the same inputs."""
    for case in todo.cases():
        if table["choices"].get(case.operator, {}).get("16", {}).get(str(case.width)) != "compile":
            continue
        if time.monotonic() >= end:
            record.left.append(f"not measured: {case.name} auto: out of time")
            continue
        torch._dynamo.reset()
        with tiles.using(table):
            try:
                runners = {"compile": case.compiled(), "auto": case.automatic()}
                fine = all(v.correct for v in record.verdicts if v.name == case.name)
                rows = _case(record, case, case.make(todo.device, 1), fine, runners, rates, table)
            except Exception as problem:
                record.left.append(f"not measured: {case.name} auto: {processes.one_line(problem)}")
                continue
        record.rows += [row for row in rows if row["implementation"] == "auto"]
        for row in record.rows[-3:]:
            say(measure_rows.line(row))


def _traces(out: Path, todo: Plan, table: dict[str, Any], say: Callable[[str], None]) -> None:
    """A Chrome trace of forward and backward of each operator, ragged, first width."""
    from torch.profiler import ProfilerActivity, profile

    for case in todo.cases():
        if case.width != todo.widths[0] or case.layout != "ragged":
            continue
        with tiles.using(table):
            inputs, run = case.make(todo.device, 1), case.fused()
            _both(run, inputs)
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
                _both(run, inputs)
                torch.cuda.synchronize()
        profiler.export_chrome_trace(str(out / f"trace-{case.operator}.json"))
        say(f"trace: {out / f'trace-{case.operator}.json'}")


def _finite(value: Any) -> Any:
    """Infinities and NaN as text: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not float("-inf") < value < float("inf"):
        return str(value)
    return value
