"""What measurements become: rows of a table, the targets they are held to, and the choices ``auto`` draws from them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from egmf_kernels.bench.cases import Case, dtype_name
from egmf_kernels.bench.measure_time import Memory, Rates, Timing
from egmf_kernels.tools import formulas

Row = dict[str, Any]
COLUMNS = (
    "operator", "width", "dtype", "layout", "direction", "implementation", "correct", "ms", "ms_low", "ms_high",
    "gb_per_s", "tflops", "percent_of_roofline", "peak_mib", "saved_mib", "speedup_over_eager", "speedup_over_compile",
    "tokens", "batch", "shape", "timing",
)  # fmt: skip
DIRECTIONS = ("forward", "backward", "both")
MEMORY_BOUND = ("ragged_pool_gate", "hier_gate_mix_norm", "ms_dwconv")
COPY_TARGET = 85.0
MATMUL_TARGET = 60.0


def cost(case: Case, direction: str, table: dict[str, Any] | None) -> tuple[int, int]:
    """Compulsory bytes and matrix-product operations of the fused operator."""
    parts: tuple[formulas.Direction, ...] = ("forward", "backward")
    if direction != "both":
        parts = ("forward",) if direction == "forward" else ("backward",)
    sizes = {
        "tokens": case.tokens, "width": case.width, "element": case.dtype.itemsize, "batch": case.batch,
        "modalities": case.modalities, "experts": case.experts, "queries": case.queries, "weighed": True,
        "table": table,
    }  # fmt: skip
    moved = sum(formulas.bytes_moved(case.operator, part, **sizes) for part in parts)
    return moved, sum(formulas.operations(case.operator, part, **sizes).matrix for part in parts)


def case_rows(
    case: Case,
    correct: bool,
    times: dict[str, dict[str, Timing]],
    memories: dict[str, Memory],
    method: str,
    rates: Rates | None,
    table: dict[str, Any] | None,
) -> list[Row]:
    """Rows of one case; every implementation's rates count the fused operator's compulsory bytes and products.

    Backward is both directions less forward. A rehearsal has no times and no rates; a case that is not correct has no
    speed-up.

    Args:
        case: what was run.
        correct: whether the fused operator passed the gate on these very inputs.
        times: implementation -> "forward" and "both"; empty in a rehearsal.
        memories: implementation -> memory; empty in a rehearsal.
        method: how the times were taken.
        rates: the measured ceilings.
        table: the tile table in use.
    """
    found = []
    for name in times:
        for direction in DIRECTIONS:
            row: Row = dict.fromkeys(COLUMNS)
            row |= {
                "operator": case.operator, "width": case.width, "dtype": dtype_name(case.dtype), "layout": case.layout,
                "direction": direction, "implementation": name, "correct": correct, "tokens": case.tokens,
                "batch": case.batch, "shape": case.shape, "timing": method,
            }  # fmt: skip
            if name in memories and direction == "both":
                row |= {"peak_mib": memories[name].peak, "saved_mib": memories[name].saved}
            if times[name] and rates is not None:
                row |= _rates_of(case, times[name], direction, rates, table)
            found.append(row)
    by_key = {(row["implementation"], row["direction"]): row for row in found}
    for row in found:
        if row["implementation"] == "fused" and correct:
            for other in ("eager", "compile"):
                baseline = by_key.get((other, row["direction"]))
                if baseline is not None and baseline["ms"] and row["ms"]:
                    row[f"speedup_over_{other}"] = baseline["ms"] / row["ms"]
    return found


def _rates_of(
    case: Case, times: dict[str, Timing], direction: str, rates: Rates, table: dict[str, Any] | None
) -> dict[str, Any]:
    if direction == "backward":
        ms = times["both"].median - times["forward"].median
        spread: dict[str, Any] = {}
    else:
        ms = times[direction].median
        spread = {"ms_low": times[direction].low, "ms_high": times[direction].high}
    if ms <= 0:
        return {}
    moved, done = cost(case, direction, table)
    bound = max(moved / rates.copy, done / rates.matmul)
    return spread | {
        "ms": ms,
        "gb_per_s": moved / ms / 1e6,
        "tflops": done / ms / 1e9 if done else None,
        "percent_of_roofline": 100 * bound / (ms / 1e3),
    }


def choices(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """``choices`` of a tile table (:mod:`egmf_kernels.tiles`): where the reference compiled is the better choice.

    It is where, at any layout of a width and number of tokens, the fused operator was slower than torch.compile in
    forward or in both directions, or was not correct. Between two measured numbers of tokens the border lies at their
    geometric mean; the smallest and the largest measured speak for what lies beyond them.
    """
    worse: dict[tuple[str, int], dict[int, bool]] = {}
    for row in rows:
        if row["implementation"] != "fused" or row["direction"] == "backward":
            continue
        gain = row["speedup_over_compile"]
        if gain is None and row["correct"]:
            continue
        by_tokens = worse.setdefault((row["operator"], row["width"]), {})
        by_tokens[row["tokens"]] = by_tokens.get(row["tokens"], False) or not row["correct"] or gain < 1
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for (operator, width), by_tokens in worse.items():
        words = [(tokens, "compile" if by_tokens[tokens] else "triton") for tokens in sorted(by_tokens)]
        pairs: list[list[Any]] = []
        for (tokens, word), (following, other) in pairwise([*words, (0, "")]):
            if word != other:
                pairs.append([math.isqrt(tokens * following) if other else None, word])
        found.setdefault(operator, {}).setdefault("16", {})[str(width)] = pairs
    return found


def targets(rows: Sequence[Row], rates: Rates | None) -> list[dict[str, Any]]:
    """Each target with what was reached; ``met`` is None where nothing was measured.

    Rates are held against their targets on large streams, speed-ups over torch.compile at the model's shapes as well.
    """
    found = []
    for operator in MEMORY_BOUND:
        for direction in ("forward", "backward"):
            seen = [
                100 * row["gb_per_s"] * 1e9 / rates.copy if rates and row["gb_per_s"] else None
                for row in _fused(rows, operator, direction)
            ]
            name = f"{operator} {direction}: lowest % of the copy rate over widths and layouts"
            found.append(_target(name, f">= {COPY_TARGET:g}", seen, COPY_TARGET))
    for direction in ("forward", "backward"):
        seen = [
            100 * row["tflops"] * 1e12 / rates.matmul if rates and row["tflops"] else None
            for row in _fused(rows, "gated_tri_proj", direction)
            if row["width"] == 512
        ]
        name = f"gated_tri_proj d=512 {direction}: lowest % of the matmul rate over layouts"
        found.append(_target(name, f">= {MATMUL_TARGET:g}", seen, MATMUL_TARGET))
    for shape, where in (("stream", "large streams"), ("model", "the model's shapes")):
        gains = [
            row["speedup_over_compile"]
            for row in rows
            if (row["implementation"], row["shape"]) == ("fused", shape) and row["direction"] != "backward"
        ]
        found.append(_target(f"fused, {where}: lowest speed-up over torch.compile", ">= 1", gains, 1.0))
    return found


def _fused(rows: Sequence[Row], operator: str, direction: str) -> list[Row]:
    wanted = (operator, direction, "fused", "stream")
    return [row for row in rows if (row["operator"], row["direction"], row["implementation"], row["shape"]) == wanted]


def _target(name: str, wanted: str, seen: Sequence[float | None], least: float) -> dict[str, Any]:
    numbers = [value for value in seen if value is not None]
    complete = bool(numbers) and len(numbers) == len(seen)
    value = min(numbers) if numbers else None
    met = bool(value is not None and value >= least) if complete else (False if value and value < least else None)
    return {"name": name, "target": wanted, "value": value, "met": met}


def line(row: Row) -> str:
    """One row as text."""

    def number(key: str, form: str) -> str:
        return "-" if row[key] is None else format(row[key], form)

    return (
        f"{row['operator']:19} d={row['width']:<5}T={row['tokens']:<7}{row['layout']:7} {row['direction']:9}"
        f"{row['implementation']:8} "
        f"{'' if row['correct'] else 'RED '}{number('ms', '.3f'):>8} ms {number('gb_per_s', '.0f'):>5} GB/s "
        f"{number('tflops', '.0f'):>4} TFLOP/s {number('percent_of_roofline', '.0f'):>4} % "
        f"x{number('speedup_over_eager', '.2f')} eager x{number('speedup_over_compile', '.2f')} compile"
    )


def launch_line(found: dict[str, Any]) -> str:
    """The launches of one case as text: kernel, microseconds (- where not timed) and grid."""
    parts = [
        f"{one['kernel']} {'-' if one['us'] is None else one['us']} us {'x'.join(map(str, one['grid']))}"
        for one in found["launches"]
    ]
    where = f"{found['operator']} d={found['width']} T={found['tokens']} {found['layout']}"
    return f"launches {where}: {', '.join(parts)}"


def short_table(summary: dict[str, Any]) -> list[str]:
    """The summary as lines: targets, what is red, one line per fused case with its speed-ups."""
    found = [f"{summary['label']}; commit {summary['commit']}; {summary['date']}"]
    found += [line(row) for row in summary["rows"] if row["implementation"] == "fused" and row["ms"]]
    for target in summary["targets"]:
        value = "not measured" if target["value"] is None else f"{target['value']:.2f}"
        met = {None: "open", True: "met", False: "MISSED"}[target["met"]]
        found.append(f"target {target['name']} {target['target']}: {value}, {met}")
    found += [
        f"share of a step, d={row['width']} T={row['tokens']}, 7B language model {row['llm_weights']}: "
        f"kernels {row['kernels_percent']} %"
        for row in summary["step_share"]
    ]
    found += summary["left_out"] + summary["red"]
    return [*found, f"{len(summary['rows'])} rows; {'all correct' if summary['correct'] else 'NOT ALL CORRECT'}"]


def write(out: Path, summary: dict[str, Any], detail: dict[str, Any]) -> None:
    """``summary.json``, ``results.json`` (summary and every detail), ``results.csv``; each complete or not there."""
    out.mkdir(parents=True, exist_ok=True)
    _replace(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    _replace(out / "results.json", json.dumps(summary | detail, indent=1) + "\n")
    temporary = out / "results.csv.part"
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(summary["rows"])
    temporary.replace(out / "results.csv")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
