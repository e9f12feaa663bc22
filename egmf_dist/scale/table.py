"""Sizes of backbones over numbers of GPUs: of each the settings that are advised, and what they are predicted to give.

Each rank's share of a global batch stays the configuration's (weak scaling). A size is rehearsed once, under stage 1;
what another stage, offloading or another number of ranks comes to follows by the advice's formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from egmf_dist.bench.backbones import SHAPES
from egmf_dist.config import Config
from egmf_dist.errors import EgmfError
from egmf_dist.scale.advice import Machines, Work, advise
from egmf_dist.scale.hardware import GIB
from egmf_dist.scale.loader import Loader
from egmf_dist.scale.memory import Sizes, Way, parts_to_rehearse, sizes_of
from egmf_dist.scale.rehearsal import deeper, rehearse

KIND = "plan-table"
SIZES = ("gemma3-270m", "qwen2.5-0.5b", "qwen2.5-7b", "qwen2.5-32b", "qwen2.5-72b")
WORLDS = (1, 8, 64, 256, 1024)
"""Numbers of GPUs."""


def table(
    config: Config,
    machines: Machines,
    loader: Loader,
    say: Callable[[str], None],
    sizes: Sequence[str] = SIZES,
) -> list[dict[str, Any]]:
    """A row for each size of backbone and number of GPUs; everything predicted.

    Args:
        config: its settings but for the backbone's; a rank's share is ``training.global_batch`` by the ranks of
            ``machines``.
        machines: the kind of machine; ``ranks_per_host`` GPUs are one host.
        loader: what reading costs.
        say: called with what is done.
        sizes: of :data:`egmf_dist.bench.backbones.SHAPES`.

    Raises:
        EgmfError: a global batch that the ranks do not share evenly, or a rehearsal that failed.
    """
    share, rest = divmod(config.training.global_batch, machines.ranks)
    if rest or not share:
        raise EgmfError(
            f"training.global_batch is {config.training.global_batch}; --table needs as many samples on each of "
            f"{machines.ranks} ranks"
        )
    rows = []
    for shape in sizes:
        title, make = SHAPES[shape]
        layers = int(make().num_hidden_layers)
        say(f"rehearsing {title}: 2 and 4 of {layers} layers")
        shallow = rehearse(parts_to_rehearse(config, machines.ranks, layers), shape)
        whole = shallow[0] if layers == shallow[0].layers else deeper(shallow[0], shallow[1], layers)
        formulas = sizes_of(shallow, whole, config)
        reading = loader.waits(share)
        work = Work(whole.step, whole.micro_batches, share, config.backbone.tuning != "full", False, reading)
        tokens = whole.tokens / whole.samples * share
        for ranks in WORLDS:
            hosts = -(-ranks // machines.ranks_per_host)
            world = replace(machines, hosts=hosts, ranks_per_host=ranks // hosts)
            rows.append({"backbone": shape, "GPUs": ranks, **_cell(formulas, work, world, loader, tokens)})
    return _with_efficiency(rows)


def _cell(sizes: Sizes, work: Work, world: Machines, loader: Loader, tokens: float) -> dict[str, Any]:
    advice = advise(sizes, work, world)
    if advice.best is None:
        least = min(advice.judged, key=lambda one: one.parts.whole)
        return {
            "settings": f"nothing fits: {least.parts.whole / GIB:.0f} GiB at least",
            "gib": least.parts.whole / GIB,
            "step_s": None,
            "tokens_per_s_a_gpu": None,
            "samples_per_s": None,
            "mfu": None,
            "binds": "memory",
            "figures": "predicted",
        }
    best = advice.best
    rate, binds = work.samples * world.ranks / best.time.step, best.time.binds
    if loader.binds(rate, world.hosts, world.ranks_per_host):
        rate, binds = loader.most(world.hosts, world.ranks_per_host), "loader"
    seconds = work.samples * world.ranks / rate
    return {
        "settings": short(best.way),
        "gib": best.parts.whole / GIB,
        "step_s": seconds,
        "tokens_per_s_a_gpu": tokens / seconds,
        "samples_per_s": rate,
        "mfu": work.count.flops / seconds / world.hardware.flops,
        "binds": binds,
        "figures": "predicted",
    }


def _with_efficiency(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Samples a second of a GPU against the most that any number of them gives with this backbone."""
    best: dict[str, float] = {}
    for row in rows:
        if row["samples_per_s"] is not None:
            best[row["backbone"]] = max(best.get(row["backbone"], 0.0), row["samples_per_s"] / row["GPUs"])
    for row in rows:
        rate = row["samples_per_s"]
        row["efficiency"] = None if rate is None else rate / row["GPUs"] / best[row["backbone"]]
    return rows


def short(way: Way) -> str:
    """Settings in few words."""
    words = [f"stage {way.stage}"]
    words += [f"hpZ {way.hpz}"] if way.hpz > 1 else []
    words += ["4 bits"] if way.quantised else []
    words += ["layers again"] if way.checkpointing else []
    words += [f"micro-batch / {way.micro}"] if way.micro > 1 else []
    words += [f"offload {way.offload}"] if way.offload != "none" else []
    return ", ".join(words)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as a page has it, a row a backbone and a column a number of GPUs. A cell: settings; GiB of a GPU;
    tokens/s of a GPU; MFU; what binds."""
    lines = [f"| predicted | {' | '.join(_gpus(n) for n in WORLDS)} |", f"|---|{'---|' * len(WORLDS)}"]
    for shape in dict.fromkeys(row["backbone"] for row in rows):
        cells = [_words(row) for row in rows if row["backbone"] == shape]
        lines.append(f"| {SHAPES[shape][0]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _gpus(number: int) -> str:
    return "1 GPU" if number == 1 else f"{number:,} GPUs"


def _words(row: dict[str, Any]) -> str:
    if row["step_s"] is None:
        return f"predicted: {row['settings']}"
    rate = float(f"{row['tokens_per_s_a_gpu']:.3g}")
    return f"predicted: {row['settings']}; {row['gib']:.0f} GiB; {rate:,.0f}; {row['mfu']:.2f}; {row['binds']}"
