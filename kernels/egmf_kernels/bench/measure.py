"""Everything that needs a GPU, in one go: correctness gate, hammer, times, memory, launches, targets, tuning if asked.

What the figures are: the time of an operator is the median over device events of CUDA graph replays (or of plain
calls, the same way for every implementation of a case; the row's ``timing`` says which), forward and both directions
measured, backward their difference. GB/s, TFLOP/s and the share of the roofline count the fused operator's compulsory
bytes and products (:mod:`egmf_kernels.tools.formulas`) for every implementation, over the measured copy and
matmul rates.
``compile`` is ``torch.compile`` of the reference for any shape (``dynamic=True``), which is what ``auto`` would run.
The fused operators are handed ``segment_T``, which the model computes once per batch; the reference computes it in
every call.

Order: the gate runs while the cases to be timed compile (:mod:`.measure_case`), then the hammer, then each case is
timed alone, and tuning comes last: a run that is ended at any time leaves the more important half. Every verdict and
every row is said and on the disk as it comes.

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
from egmf_kernels.bench import correct, hammer, measure_rows, processes
from egmf_kernels.bench.cases import MODEL_SHAPES, OPERATORS, Case, benchmark_cases, gradients
from egmf_kernels.bench.measure_case import UNTIMED, Cases, Task, in_this_process
from egmf_kernels.bench.measure_rows import Row
from egmf_kernels.bench.measure_time import Rates, measure_rates
from egmf_kernels.bench.static_roofline import measured_share
from egmf_kernels.tools import tune

LLM_TOKENS = 160
"""Tokens of one sample that the language model reads, for the step share."""
STREAM = 64 << 20
"""Bytes of a stream that no cache holds."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What a run shall do."""

    seconds: float = 480.0
    """Time budget; what no longer fits is left out and named under ``left_out``."""
    rehearse: bool = False
    """Tiny, interpreted, on the CPU, without times."""
    tiny: bool = False
    """The gate alone with a few tokens in this process, for a sanitizer that makes everything many times slower."""
    quick: bool = False
    """The gate at three widths in bf16 and fp32 in place of all."""
    hammer: bool = False
    """Run every operator 60 times at 65,536 tokens and compare the bits."""
    stop_if_red: bool = False
    """Measure nothing where gate or hammer are red."""
    tune: bool = False
    """Tune the tile table at the end."""
    trace: bool = False
    """Write a Chrome trace per operator."""
    workers: int | None = None
    """Processes that check; half of the cores where not given, 0 runs everything in this process."""
    operators: tuple[str, ...] = OPERATORS
    """What is checked, hammered and timed."""
    commit: str = ""
    """What to record as the commit; asked from git where empty."""


@dataclass(frozen=True)
class Plan:
    """What one run does."""

    device: str
    stream_bytes: int
    widths: tuple[int, ...]
    shapes: tuple[tuple[int, int, int], ...]
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
        return benchmark_cases(self.stream_bytes, self.widths, self.segment, self.shapes)

    def jobs(self) -> list[tune.Job]:
        """What is tuned; a rehearsal takes one entry of each operator."""
        found = tune.jobs(self.stream_bytes, self.widths, segment=self.segment)
        firsts = {job.case.operator: job for job in reversed(found)}
        return list(firsts.values()) if self.rehearse else found


@dataclass
class Record:
    """What a run has found so far; :meth:`write` after every finding keeps it on the disk."""

    out: Path
    say: Say
    summary: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    verdicts: list[correct.Verdict] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """What was to be done and was not, one line each."""
    hammered: list[dict[str, Any]] = field(default_factory=list)
    launches: list[dict[str, Any]] = field(default_factory=list)
    tuning: list[dict[str, Any]] = field(default_factory=list)

    @property
    def red(self) -> list[str]:
        """A line for everything that is not correct."""
        found = [v.line() for v in self.verdicts if not v.correct]
        return found + [hammer.line(h) for h in self.hammered if not h["correct"]]

    @property
    def unchecked(self) -> list[str]:
        """A line for everything whose correctness was to be seen and was not."""
        return [line for line in self.left if line.startswith("not checked")]

    def write(self, complete: bool = False) -> dict[str, Any]:
        """Bring the summary up to date and write everything."""
        self.summary |= {
            "complete": complete,
            "correct": complete and bool(self.verdicts) and not self.red and not self.unchecked,
            "red": self.red,
            "left_out": self.left,
            "hammer": self.hammered,
            "rows": self.rows,
        }
        checked = [asdict(v) | {"correct": v.correct} for v in self.verdicts]
        detail = {"correctness": checked, "launches": self.launches, "tuning": self.tuning}
        measure_rows.write(self.out, _finite(self.summary), _finite(detail))
        return self.summary

    def verdict(self, found: correct.Verdict) -> None:
        """One case was checked."""
        self.verdicts.append(found)
        self.say(found.line())
        self.write()

    def leave(self, line: str) -> None:
        """Something could not be done."""
        self.left.append(line)
        self.say(line)
        self.write()

    def hear(self, case: Case, kind: str, value: Any) -> None:
        """What the process of a case tells; see :data:`.measure_case.Tell`."""
        if kind == "verdict":
            self.verdict(value)
        elif kind == "fault":
            self.verdict(correct.Verdict(case.name, case.operator, complaints=(value,)))
        elif kind == "left":
            self.leave(value)
        elif kind == "rows":
            self.rows += value
            shown = [row for row in value if row["implementation"] == "fused"]
            untimed = [f"{case.name}: not timed"]
            for text in untimed if self.summary["kind"] == "rehearsal" else map(measure_rows.line, shown):
                self.say(text)
            self.write()
        elif kind == "launches":
            what = {"operator": case.operator, "width": case.width, "tokens": case.tokens, "batch": case.batch}
            self.launches.append(what | {"layout": case.layout, "launches": value})
            self.say(measure_rows.launch_line(self.launches[-1]))
            self.write()


def plan(options: Options) -> Plan:
    """The plan for this machine.

    Raises:
        RuntimeError: there is no CUDA device, or this process interprets when it shall not, or the reverse.
    """
    from egmf_kernels.ops.common.interpreter import INTERPRETED

    bf16 = (torch.bfloat16,)
    if options.rehearse:
        if not INTERPRETED:
            raise RuntimeError("a rehearsal runs in Triton's interpreter; set TRITON_INTERPRET=1 before the start")
        if triton.__version__.startswith("3.6."):
            raise RuntimeError("Triton 3.6's interpreter fails on loops with numpy 2.4; rehearse with 3.7 or newer")
        return Plan("cpu", 1536, (32,), ((32, 36, 3),), (32,), bf16, options.workers or 0, True)
    tune.capability_here()
    if options.tiny:
        return Plan("cuda", STREAM, (), (), (128,), bf16, 0, False)
    used = processes.default_workers() if options.workers is None else options.workers
    widths: tuple[int, ...] = correct.WIDTHS
    dtypes = tuple(correct.LIMITS)
    if options.quick:
        widths, dtypes = (128, 512, 1024), (torch.bfloat16, torch.float32)
    return Plan("cuda", STREAM, (512, 256, 1024), MODEL_SHAPES, widths, dtypes, used, False)


def measure_all(out: Path, options: Options, say: Say = print) -> dict[str, Any]:
    """Run the plan and write ``summary.json``, ``results.json``, ``results.csv`` and the tile table into ``out``.

    Args:
        out: a folder; made where it does not exist.
        options: what to do.
        say: called with lines of progress.

    Returns:
        The summary; ``correct`` is true only if the whole gate ran and everything that ran is correct.

    Raises:
        RuntimeError: this machine or process cannot do what is asked.
    """
    start = time.monotonic()
    end = start + options.seconds
    todo = plan(options)
    # A case's process compiles by itself; a pool of compilers in each would be far more than there are cores.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    table = tiles.current(torch.device(todo.device))
    record = Record(out, say, _header(todo, table, options.commit))
    timed = [] if options.tiny else todo.cases()
    tasks = [Task(case, todo.device, todo.rehearse) for case in timed if case.operator in options.operators]
    cases = Cases(tasks if todo.workers else [], len(os.sched_getaffinity(0)), record.hear)
    try:
        share = 1.0 if options.tiny else 0.5
        _gate(record, todo, table=None, seconds=share * options.seconds, options=options, beside=cases.poll)
        if options.hammer:
            _hammer(record, todo, options, 0.65 * options.seconds - (time.monotonic() - start), cases.poll)
        if options.stop_if_red and (record.red or record.unchecked):
            record.leave("not measured: the gate is red or did not come to its end")
            return _end(record, start, complete=False)
        cases.prepare(start + 0.75 * options.seconds)
        rates = None if todo.rehearse or options.tiny else measure_rates()
        record.summary["ceilings"] = None if rates is None else asdict(rates)
        say(f"ceilings: {record.summary['ceilings']}")
        if todo.workers:
            cases.measure(rates, end)
        else:
            in_this_process(tasks, rates, end, record.hear)
    finally:
        cases.close()
    table = _conclude(record, todo, table)
    if options.trace and not todo.rehearse and tasks:
        _traces(record, tasks)
    if options.tune:
        _tune(record, todo, table, options, end - time.monotonic())
    return _end(record, start, complete=True)


def _end(record: Record, start: float, complete: bool) -> dict[str, Any]:
    record.summary["seconds"] = round(time.monotonic() - start, 1)
    return record.write(complete)


def _header(todo: Plan, table: dict[str, Any], commit: str) -> dict[str, Any]:
    told = bench.provenance()
    device = "interpreter" if todo.rehearse else torch.cuda.get_device_name()
    return {
        "kind": "rehearsal" if todo.rehearse else "measured",
        "label": UNTIMED if todo.rehearse else f"measured on {device}",
        "device": device,
        **told,
        "commit": commit or told["commit"],
        "table": table["origin"],
        "ceilings": None,
        "choices": {},
        "targets": [],
        "step_share": [],
        "notes": [
            "GB/s, TFLOP/s and % of the roofline count the fused operator's bytes and products, whatever runs",
            "backward is forward and backward less forward",
            "the fused operators are handed each token's segment, as in the model; the reference computes it",
            "compile is torch.compile(dynamic=True), which is what auto would run; where Inductor tried several "
            "configurations at its first call, other processes used the GPU as well",
        ],
        "stream_mib": todo.stream_bytes / 2**20,
    }


def _gate(
    record: Record,
    todo: Plan,
    *,
    table: dict[str, Any] | None,
    seconds: float,
    options: Options,
    beside: Callable[[], None],
) -> None:
    """Check every group with ``table`` (the shipped one where None); ``beside`` is called again and again."""
    # Groups of a tuned table are those whose entries were tuned.
    widths, dtypes = (todo.gate_widths, todo.dtypes) if table is None else (todo.widths, (torch.bfloat16,))
    small = todo.rehearse or options.tiny
    work = correct.groups(todo.device, widths=widths, dtypes=dtypes, table=table, rehearse=small)
    work = [group for group in work if group.operator in options.operators]
    before = len(record.verdicts)

    def each(verdict: correct.Verdict) -> None:
        record.verdict(verdict)
        beside()

    beside()
    verdicts, missing = correct.run_gate(work, todo.workers, seconds, lambda line: None, each)
    record.left += [f"not checked: {line}" for line in missing]
    red = [v for v in record.verdicts[before:] if not v.correct]
    record.say(f"correctness: {len(verdicts)} cases, {len(red)} red, {len(missing)} groups of {len(work)} not finished")
    for line in missing:
        record.say(f"not checked: {line}")
    record.write()


def _hammer(record: Record, todo: Plan, options: Options, seconds: float, beside: Callable[[], None]) -> None:
    """Run every operator many times and compare the bits."""
    work = hammer.hammers(todo.device, todo.rehearse, options.operators)
    beside()
    end = time.monotonic() + seconds
    # Two at a time: the references in fp32 hold some gigabytes each, beside the cases that wait to be timed.
    workers = min(todo.workers, 2)
    for task, outcome in zip(work, processes.run_tasks(hammer.hammer, work, workers, end), strict=True):
        if outcome.error:
            record.leave(f"not checked: {task}: {outcome.error}")
        else:
            record.hammered.append(outcome.value)
            record.say(hammer.line(outcome.value))
    record.write()


def _conclude(record: Record, todo: Plan, table: dict[str, Any]) -> dict[str, Any]:
    """What follows from the rows: choices, targets, share of a step; the table with its choices, written."""
    chosen = measure_rows.choices(record.rows)
    table = table | {"choices": chosen}
    # Whether auto may take the matrix products at all depends on what the hammer saw under this Triton.
    for found in record.hammered:
        if found["operator"] == "gated_tri_proj":
            table["hammer"] = {"triton": found["triton"], "runs": found["runs"], "equal": found["equal"]}
    rates = record.summary["ceilings"]
    record.summary["choices"] = chosen
    record.summary["targets"] = measure_rows.targets(record.rows, None if rates is None else Rates(**rates))
    record.summary["step_share"] = measured_share(record.summary | {"rows": record.rows}, LLM_TOKENS)
    if not todo.rehearse:
        table = tune.signed(table, tune.capability_here(), table["origin"])
    record.out.mkdir(parents=True, exist_ok=True)
    tune.save(table, record.out / f"{table['architecture']}.json")
    record.write()
    return table


def _tune(record: Record, todo: Plan, table: dict[str, Any], options: Options, seconds: float) -> None:
    """Tune in what time is left and check what changed; the rows stay those of the table before."""
    end = time.monotonic() + seconds
    work = todo.jobs()
    tuned, record.tuning, left = tune.tune_table(
        table, work, seconds=0.7 * seconds, workers=todo.workers, device=todo.device, say=record.say
    )
    record.left += [f"not tuned: {line}" for line in left]
    record.say(f"tuning: {len(work) - len(left)} of {len(work)} entries")
    if tuned["kernels"] != table["kernels"]:
        remaining = end - time.monotonic()
        _gate(record, todo, table=tuned, seconds=remaining, options=options, beside=lambda: None)
    if not todo.rehearse:
        tuned = tune.signed(tuned, tune.capability_here(), tune.origin(record.summary["commit"]))
    tune.save(tuned, record.out / f"{tuned['architecture']}.json")
    record.write()


def _traces(record: Record, tasks: Sequence[Task]) -> None:
    """A Chrome trace of forward and backward of each operator, at its first case."""
    from torch.profiler import ProfilerActivity, profile

    firsts = {task.case.operator: task.case for task in reversed(tasks)}
    for case in firsts.values():
        inputs, run = case.make("cuda", 1), case.fused()
        gradients(run(inputs)[0], inputs)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            gradients(run(inputs)[0], inputs)
            torch.cuda.synchronize()
        path = record.out / f"trace-{case.operator}.json"
        profiler.export_chrome_trace(str(path))
        record.say(f"trace: {path}")


def _finite(value: Any) -> Any:
    """Infinities and NaN as text: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not float("-inf") < value < float("inf"):
        return str(value)
    return value
