"""The same step on other numbers of hosts: each rank's share stays what it is (weak scaling)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from egmf_dist.scale.advice import Machines
from egmf_dist.scale.loader import Loader
from egmf_dist.scale.rehearsal import Rehearsal
from egmf_dist.scale.timing import for_ranks, step_time

MOST_RANKS = 1024


def sweep(whole: Rehearsal, machines: Machines, samples: float, loader: Loader) -> list[dict[str, Any]]:
    """A row for 1, 2, 4, ... hosts up to :data:`MOST_RANKS` ranks.

    ``efficiency`` is samples a second of a rank against those on one host; ``binds`` is compute, host, link, offload or
    loader. What a rank holds of sharded weights shrinks with the ranks and is not swept.

    Args:
        whole: a rank's step.
        machines: where.
        samples: of a rank's step, on the average.
        loader: what reading costs.
    """
    rows: list[dict[str, Any]] = []
    hosts = 1
    while hosts * machines.ranks_per_host <= max(MOST_RANKS, machines.ranks_per_host):
        ranks = hosts * machines.ranks_per_host
        count = for_ranks(whole.step, whole.ranks, ranks)
        reading = loader.waits(whole.samples)
        time = step_time(count, machines.hardware, hosts, machines.ranks_per_host, reading=reading)
        rate, binds = samples * ranks / time.step, time.binds
        if loader.binds(rate, hosts, machines.ranks_per_host):
            rate, binds = loader.most(hosts, machines.ranks_per_host), "loader"
        rows.append({"hosts": hosts, "ranks": ranks, "step_s": time.step, "samples_per_s": rate, "binds": binds})
        hosts *= 2
    for row in rows:
        row["efficiency"] = row["samples_per_s"] / row["ranks"] / (rows[0]["samples_per_s"] / rows[0]["ranks"])
    return rows


def draw(rows: list[dict[str, Any]], title: str, out: Path) -> Path:
    """Draw ``sweep.png`` into ``out``, which is there: predicted efficiency, coloured by what binds."""
    from egmf_dist.style import COLOURS, FONT, new_figure, plain, save, tidy

    figure = new_figure(8, 4.2)
    axes = figure.subplots()
    axes.plot([r["ranks"] for r in rows], [r["efficiency"] for r in rows], color="#888888", linewidth=1)
    kinds = list(dict.fromkeys(row["binds"] for row in rows))
    for number, kind in enumerate(kinds):
        own = [row for row in rows if row["binds"] == kind]
        axes.scatter(
            [r["ranks"] for r in own],
            [r["efficiency"] for r in own],
            color=COLOURS[number],
            label=plain(kind),
            zorder=3,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks([r["ranks"] for r in rows], [str(r["ranks"]) for r in rows])
    axes.set_ylim(0, 1.1)
    axes.legend(title="a step waits for", fontsize=FONT - 3, frameon=False)
    tidy(axes, title, "ranks", "predicted efficiency")
    return save(figure, out / "sweep.png")
