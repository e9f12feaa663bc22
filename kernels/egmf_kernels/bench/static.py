"""The report that needs no GPU: passes over memory, what the compiler makes of the kernels, rooflines, the step share.

Everything it writes is labelled "predicted, not measured": no time in it was taken from a clock.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from egmf_kernels import tiles
from egmf_kernels.bench import provenance
from egmf_kernels.bench.cases import OPERATORS, Case, dtype_name, ragged_lengths
from egmf_kernels.bench.static_counts import count_eager, count_inductor
from egmf_kernels.bench.static_roofline import DATASHEETS, LLM_TOKENS, bounds_us, step_share
from egmf_kernels.tools import formulas

LABEL = "predicted, not measured"
SUMMARY, TABLE = "summary.json", "results.csv"
WIDTHS = (256, 512, 1024)
NOTES = (
    "eager and inductor count the reference implementation as written; fused counts every byte once",
    "requested_passes is what the fused programs ask for with the newest architecture's tiles; caches serve what they "
    "ask for again",
    "inductor schedules for this machine's CPU; for a GPU it may fuse differently",
    "bound_us is the datasheet's roofline for the bytes that the implementation moves and the operations it needs; "
    "none is faster",
    "step_share compares such bounds only; it is no claim about the speed of training",
)
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many parts of the whole are done, and how many there are."""


def static_report(
    out: Path,
    *,
    architectures: Sequence[int] = (),
    widths: Sequence[int] = WIDTHS,
    tokens: int = 16384,
    batch: int = 64,
    llm_tokens: int = LLM_TOKENS,
    quick: bool = False,
    progress: Progress = lambda doing, done, total: None,
) -> dict[str, Any]:
    """Write ``summary.json`` and ``results.csv`` (its rows) into ``out`` and return the summary.

    Args:
        out: folder, made where it is not there; other files in it are left alone.
        architectures: compute capabilities whose tile tables are compiled; empty for all that have one.
        widths: D of the passes and bounds.
        tokens: T of them, all samples together.
        batch: B, samples of a step.
        llm_tokens: tokens that the language model reads of one sample, for the step share.
        quick: the middle width, the newest architecture at that width, no Inductor.
        progress: see :data:`Progress`.

    Returns:
        Beside what every summary has: ``settings``, ``ceilings``, ``notes``, ``rows`` (operator, width, dtype,
        direction, implementation, bytes, passes, bound_us), ``resources``, ``requests``, ``step_share``.

    Raises:
        OSError: ``out`` cannot be written.
        RuntimeError: a part that runs as a process of its own failed.
        ValueError: an architecture has no table.
    """
    out.mkdir(parents=True, exist_ok=True)
    known = tiles.architectures()
    for architecture in architectures:
        if architecture not in known:
            raise ValueError(f"architecture {architecture} has no tile table; there are {', '.join(map(str, known))}")
    chosen = sorted(set(architectures)) or known
    if quick:
        chosen, widths = chosen[-1:], [sorted(widths)[len(widths) // 2]]
    lengths = ragged_lengths(batch, 3, tokens)
    counts = [(width, operator) for width in widths for operator in OPERATORS]
    total = len(counts) + len(chosen) + 1
    rows: list[dict[str, Any]] = []
    notes = list(NOTES)
    resources: list[dict[str, Any]] = []
    # One process compiles and interprets while this one counts.
    with ThreadPoolExecutor(1) as beside, _cancelling(beside):
        extra = ["--width", str(widths[0])] if quick else []
        compiled = [beside.submit(_child, "static_resources", ["--arch", str(a), *extra], False) for a in chosen]
        interpreted = beside.submit(_child, "static_requests", [], True)
        for done, (width, operator) in enumerate(counts):
            progress(f"counting bytes of {operator} at width {width}", done, total)
            case = Case(operator, width, torch.bfloat16, "ragged", lengths)
            found, failed = _rows(case, quick)
            rows += found
            notes += failed
        for done, (architecture, job) in enumerate(zip(chosen, compiled, strict=True), start=len(counts)):
            progress(f"compiling the kernels of sm_{architecture}", done, total)
            resources += job.result()
        progress("counting requested bytes in Triton's interpreter", total - 1, total)
        requests = interpreted.result()
    progress("done", total, total)
    summary = {
        "kind": "predicted",
        "label": LABEL,
        **provenance(),
        "settings": {"tokens": tokens, "batch": batch, "llm_tokens": llm_tokens, "quick": quick},
        "ceilings": [asdict(device) for device in DATASHEETS],
        "notes": list(dict.fromkeys(notes)),
        "rows": rows,
        "resources": resources,
        "requests": requests,
        "step_share": [
            row
            for width in widths
            for device in DATASHEETS
            for row in step_share(_sizes(Case("", width, torch.bfloat16, "ragged", lengths)), llm_tokens, device)
        ],
    }
    _write(out / TABLE, table(rows))
    _write(out / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


@contextmanager
def _cancelling(executor: ThreadPoolExecutor) -> Iterator[None]:
    """After a failure, what was not started is not started."""
    try:
        yield
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise


def _sizes(case: Case) -> dict[str, Any]:
    """A case as keywords of the formulas; both gates act, as in the measured cases."""
    return {
        "tokens": case.tokens, "width": case.width, "element": case.dtype.itemsize, "batch": case.batch, "weighed": True
    }  # fmt: skip


def _rows(case: Case, quick: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of one operator at one width, and what could not be counted."""
    operator, sizes = case.operator, _sizes(case)
    full = formulas.sizes_of(**sizes)
    counts: dict[str, dict[formulas.Direction, int]] = {"eager": count_eager(case)}
    failed = []
    if not quick:
        counts["inductor"] = {}
        try:
            counts["inductor"] = count_inductor(case)
        except Exception as error:  # Inductor's inside may change between releases; the report does without
            reason = " ".join(str(error).split())[:200]
            failed.append(f"inductor was not counted for {operator}: {type(error).__name__}: {reason}")
    counts["fused"] = {d: formulas.bytes_moved(operator, d, **sizes) for d in formulas.DIRECTIONS}
    rows = []
    for direction in formulas.DIRECTIONS:
        done = formulas.operations(operator, direction, **sizes)
        for implementation, count in counts.items():
            moved = count.get(direction)
            row: dict[str, Any] = {
                "label": LABEL,
                "operator": operator,
                "width": case.width,
                "tokens": case.tokens,
                "dtype": dtype_name(case.dtype),
                "direction": direction,
                "implementation": implementation,
                "bytes": moved,
                "passes": None if moved is None else round(moved / full.stream, 2),
                "stream_passes": None,
                "requested_passes": None,
                "operations": done.total,
                "bound_us": None if moved is None else bounds_us(operator, direction, moved, sizes),
            }
            if implementation == "fused":
                asked = formulas.bytes_requested(operator, direction, **sizes)
                row["stream_passes"] = formulas.stream_passes(operator, direction, **sizes)
                row["requested_passes"] = round(asked / full.stream, 2)
            rows.append(row)
    return rows, failed


def _child(module: str, arguments: list[str], interpret: bool) -> Any:
    """What a module of this package, run as a process that interprets Triton or does not, writes as JSON."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    above = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (above, environment.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", f"{__package__}.{module}", "--json", str(result), *arguments]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        if ended.returncode:
            said = [line for line in ended.stderr.splitlines() if line.strip()]
            raise RuntimeError(f"{module} failed: {said[-1] if said else f'exit code {ended.returncode}'}")
        return json.loads(result.read_text(encoding="utf-8"))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV; a dictionary in a row becomes one column a key."""
    flat = []
    for row in rows:
        plain: dict[str, Any] = {}
        for key, value in row.items():
            if isinstance(value, dict):
                plain |= {f"{key} {inner}": number for inner, number in value.items()}
            else:
                plain[key] = value
        flat.append(plain)
    columns = list(dict.fromkeys(key for row in flat for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
