"""``egmf bench kernels``: measured where there is a GPU, predicted where there is none; tables, files and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from egmf_dist.errors import EgmfError
from egmf_launcher.bench_report import kind_before, make_folder, make_table, new_console, picked, progress_bar

MEASURED_SECONDS, QUICK_SECONDS = 480.0, 240.0


def bench_kernels(out: Path, architectures: Sequence[str] = (), *, trace: bool = False, quick: bool = False) -> int:
    """Write ``summary.json``, ``results.csv`` and pictures into ``out`` and print tables; returns the exit code.

    Args:
        out: folder; made where it is not there, and other files in it stay.
        architectures: compute capabilities (``80``, ``90``) to compile for; empty for all with a tile table.
        trace: also write Chrome traces (with a GPU).
        quick: one width and architecture and no Inductor; with a GPU, four minutes of measuring.

    Returns:
        0, or 1 where a measured result is not correct.

    Raises:
        EgmfError: an option that does not fit the machine, an unknown architecture, an ``out`` that cannot be written
            or holds measured results that a prediction would replace.
    """
    import torch

    console = new_console()
    measured = torch.cuda.is_available()
    if trace and not measured:
        raise EgmfError("--trace needs a CUDA device, and there is none; leave it out for the predicted report")
    if architectures and measured:
        raise EgmfError(
            "--arch chooses what the predicted report compiles; with a CUDA device kernels are measured on it"
        )
    chosen = _capabilities(architectures)
    _prepare(out, measured)
    summary = _measure(out, trace, quick, console) if measured else _predict(out, chosen, quick, console)
    from egmf_dist.report.kernels import write_kernel_report

    pictures = write_kernel_report(summary, out)
    for table in _tables(summary):
        console.print(table)
    for kernel in summary.get("resources", []):
        for complaint in kernel["complaints"]:
            what = f"sm_{kernel['architecture']} {kernel['kernel']}, {kernel['bits']} bits, width {kernel['width']}"
            console.print(f"warning: {what}: {complaint}", markup=False)
    for note in summary.get("notes", []):
        console.print(f"- {note}", markup=False)
    written = ", ".join(path.name for path in (out / "summary.json", out / "results.csv", *pictures))
    console.print(f"{summary['label']}; written to {out}: {written}", markup=False)
    return 1 if summary.get("correct") is False else 0


def _capabilities(architectures: Sequence[str]) -> list[int]:
    from egmf_kernels import tiles

    known = tiles.architectures()
    for name in architectures:
        if name not in map(str, known):
            raise EgmfError(f"--arch is {name!r}; there are tile tables for {', '.join(map(str, known))}")
    return [int(name) for name in architectures]


def _prepare(out: Path, measured: bool) -> None:
    """The folder exists afterwards; a prediction does not take the place of what a GPU measured."""
    make_folder(out)
    kind = None if measured else kind_before(out)
    if kind == "":
        raise EgmfError(f"{out / 'summary.json'}: not a report of egmf bench kernels; give --out another folder")
    if kind == "measured":
        raise EgmfError(
            f"{out / 'summary.json'}: holds what a GPU measured; give --out another folder for a prediction"
        )


def _measure(out: Path, trace: bool, quick: bool, console: Console) -> dict[str, Any]:
    from egmf_kernels.bench.measure import Options, measure_all
    from egmf_kernels.bench.static_roofline import measured_share

    seconds = QUICK_SECONDS if quick else MEASURED_SECONDS
    with console.status("measuring") as status:

        def say(line: str) -> None:
            console.print(line, markup=False)
            status.update(f"measuring: {escape(line[:100])}")

        summary = measure_all(out, Options(seconds=seconds, trace=trace, quick=quick), say)
    return summary | {"step_share": measured_share(summary)}


def _predict(out: Path, architectures: Sequence[int], quick: bool, console: Console) -> dict[str, Any]:
    from egmf_kernels.bench.static import static_report

    with progress_bar(console) as progress:
        return static_report(out, architectures=architectures, quick=quick, progress=progress)


def _tables(summary: dict[str, Any]) -> Iterable[Table]:
    label, rows = summary["label"], summary["rows"]
    if summary["kind"] == "predicted":
        yield make_table(f"{label}: passes over one T x D stream", _passes(rows))
        yield make_table(f"{label}: roofline bounds in microseconds (datasheet ceilings)", _bounds(rows))
        # A pooling kernel takes fewer rows at a time for 8 queries than for 4, and is compiled for both.
        blocks = [row | {"rows": _first(row["tile"], "BT", "BM", "CHUNKS")} for row in summary["resources"]]
        yield make_table(f"{label}: what the compiler made of the kernels", picked(_RESOURCES, blocks))
        requests = "requested bytes, counted in Triton's interpreter, and what the formulas say"
        yield make_table(f"{label}: {requests}", picked(_REQUESTS, summary["requests"]))
    else:
        fused = [row for row in rows if row["implementation"] == "fused"]
        yield make_table(label, picked(_MEASURED, fused))
        yield make_table(f"{label}: targets", picked(_TARGETS, summary.get("targets", [])))
    share = "microseconds and share of a training step, beside a 7B language model at its bound"
    yield make_table(f"{label}: {share}", picked(_SHARE, summary.get("step_share", [])))


# Key of a row -> heading.
_RESOURCES = {
    "architecture": "sm", "kernel": "kernel", "bits": "bits", "width": "width", "rows": "rows", "registers": "regs",
    "spills": "spills", "shared": "shared", "widest_load": "load", "matrix": "matrix",
}  # fmt: skip
_REQUESTS = {
    "operator": "operator", "direction": "direction", "tokens": "tokens", "width": "width",
    "counted_bytes": "counted", "formula_bytes": "formula",
}  # fmt: skip
_MEASURED = {
    "operator": "operator", "width": "width", "tokens": "tokens", "layout": "layout", "direction": "direction",
    "implementation": "runs", "correct": "correct", "ms": "ms", "gb_per_s": "GB/s", "tflops": "TFLOP/s",
    "percent_of_roofline": "% roof", "peak_mib": "peak MiB", "saved_mib": "saved MiB", "speedup_over_eager": "x eager",
    "speedup_over_compile": "x compile",
}  # fmt: skip
_TARGETS = {"name": "target", "target": "wanted", "value": "value", "met": "met"}
_SHARE = {
    "device": "device", "width": "width", "tokens": "tokens", "llm_tokens": "LLM tokens", "llm_weights": "LLM weights",
    "kernels_us": "kernels", "torch_us": "torch", "llm_us": "LLM", "kernels_percent": "kernels %",
    "block_percent": "block %",
}  # fmt: skip


def _passes(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """An operator, width and direction a row, an implementation a column."""
    table: dict[tuple[str, int, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["operator"], row["width"], row["direction"])
        line = table.setdefault(key, dict(zip(("operator", "width", "direction"), key, strict=True)))
        line[row["implementation"]] = row["passes"]
        if row["implementation"] == "fused":
            line |= {"streams": row["stream_passes"], "requested": row["requested_passes"]}
    return list(table.values())


def _bounds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fused operators, a column a device."""
    return [
        {"operator": row["operator"], "width": row["width"], "direction": row["direction"]}
        | {"MB": row["bytes"] / 1e6, "GFLOP": row["operations"] / 1e9}
        | row["bound_us"]
        for row in rows
        if row["implementation"] == "fused"
    ]


def _first(tile: Mapping[str, Any], *names: str) -> Any:
    return next((tile[name] for name in names if name in tile), None)
