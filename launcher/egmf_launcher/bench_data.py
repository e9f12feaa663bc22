"""``egmf bench data``: this project's reader beside other libraries'; tables, files and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from egmf_launcher.bench_report import (
    make_table,
    new_console,
    own_folder,
    picked,
    progress_bar,
    say_notes,
    write_files,
)


def bench_data(
    out: Path,
    *,
    samples: int | None = None,
    quick: bool = False,
    peers: Sequence[str] | None = None,
    environments: str | None = None,
) -> int:
    """Write ``summary.json``, ``results.csv`` and ``readers.png`` into ``out`` and print tables.

    Args:
        out: folder; made where it is not there, and other files in it stay.
        samples: how many of 27 KB, and an eighth of it of 300 KB; None for 8,000, or 1,000 if ``quick``.
        quick: one round, short passes.
        peers: libraries to compare with; None for all.
        environments: folder of the libraries' virtual environments, built where they are not there; None for
            ``egmf/bench`` in the user's cache folder; empty: they run in this environment.

    Returns:
        0, or 1 where a reader delivered wrong data.

    Raises:
        EgmfError: an option that does not fit, an ``out`` that cannot be written or holds another report.
    """
    from egmf_dist.bench.data import KIND, PEER_NAMES, READERS, measure_data
    from egmf_dist.bench.environments import default_folder
    from egmf_dist.report.data_bench import write_data_report

    console = new_console()
    own_folder(out, [KIND], "egmf bench data")
    with progress_bar(console) as progress:
        summary = measure_data(
            out,
            samples=samples,
            quick=quick,
            peers=PEER_NAMES if peers is None else list(dict.fromkeys(peers)),
            environments=_folder(environments, default_folder()),
            progress=progress,
            say=lambda line: console.print(line, markup=False),
        )
    titles = {name: reader.title for name, reader in READERS.items()}
    written = [*write_files(summary, out), write_data_report(summary, out, titles)]
    for size in summary["samples"]:
        payload = f"{summary['samples'][size]} samples of {summary['payload_bytes'][size] / 1000:.0f} KB"
        console.print(
            make_table(f"samples/s; {payload}, batches of 32; {summary['machine']}", _readers(summary, size, titles))
        )
    shards = summary["first_batch"][0]["shards"]
    first = [row | {"reader": titles[row["reader"]]} for row in summary["first_batch"]]
    console.print(make_table(f"first batch of {shards} shards, seconds", picked(_FIRST, first)))
    for name, ratio in summary["ratios"].items():
        if ratio is not None:
            console.print(f"{name}: {ratio:.2f} (27 KB, warm)", markup=False)
    say_notes(console, summary, out, written)
    return 0 if summary["correct"] else 1


def _folder(given: str | None, default: Path) -> Path | None:
    if given is None:
        return default
    return Path(given).absolute() if given else None


_FIRST = {"reader": "reader", "first_batch_s": "open to first batch", "imports_s": "imports"}


def _readers(summary: dict[str, Any], size: str, titles: dict[str, str]) -> list[dict[str, Any]]:
    """A reader a line: its best way warm, its best way cold."""
    rows = [row for row in summary["rows"] if row["size"] == size]
    ours = next(
        (r["samples_per_s"] for r in rows if r["reader"] == "ours" and r["state"] == "warm" and r["best"]), None
    )
    table = []
    for name in dict.fromkeys(row["reader"] for row in rows):
        own = [row for row in rows if row["reader"] == name]
        best: dict[str, dict[str, Any]] = {row["state"]: row for row in own if row["best"]}
        warm, cold = best.get("warm", {}), best.get("cold", {})
        speed = warm.get("samples_per_s")
        table.append(
            {
                "reader": titles[name],
                "best of": warm.get("way"),
                "warm": speed,
                "min - max": f"{warm['min']:.0f} - {warm['max']:.0f}" if warm else None,
                "MB/s": warm.get("mb_per_s"),
                "ours is": f"{ours / speed:.2f} x" if ours and speed else None,
                "best of (cold)": cold.get("way"),
                "cold": cold.get("samples_per_s"),
                "MB/s (cold)": cold.get("mb_per_s"),
                "first batch, s": cold.get("first_batch_s"),
            }
        )
    return table
