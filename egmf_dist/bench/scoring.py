"""What an answer costs: all legal answers in one pass over their tree, one forward each, and greedy generation.

They take turns over the same samples on one rank, with one model of random weights; a figure is the median of the
rounds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from egmf_dist import distributed
from egmf_dist.bench.backbones import write_backbone
from egmf_dist.bench.contestants import Read
from egmf_dist.bench.dialogues import NUMBERS, TASK, write_dialogues
from egmf_dist.bench.machine import machine, wait_for_device
from egmf_dist.bench.score_options import ScoringOptions
from egmf_dist.build import build_egmf
from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.errors import EgmfError
from egmf_dist.inference.decode import GreedyDecoder
from egmf_dist.inference.scorer import SequenceScorer, TreeScorer, score
from egmf_shards import Sample, Task

KIND = "scoring"
TITLES = {
    "tree": "every legal answer, one pass over their tree",
    "sequence": "every legal answer, a forward each",
    "greedy": "one answer, generated greedily",
}
NOTES = (
    "One rank; dialogues of MELD's lengths with 3 turns of context, pseudo tokens first; batches of 16.",
    "sequence reads the prompt again for each legal answer, 16 sequences in a forward.",
    "greedy generates as many tokens as a legal answer has in the mean, and the end of sequence, with a cache of keys "
    "and values; it gives one answer and no probability of the others.",
)
_BATCH = 16


def measure_scoring(out: Path, options: ScoringOptions, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Measure, in a process that is a world of one rank (the environment says so).

    Args:
        out: folder that is there; what is made lies in one inside it and is removed.
        options: what.
        progress: called with what is done, how many parts are, and how many there are.

    Returns:
        The summary.

    Raises:
        EgmfError: an option that does not fit.
    """
    if options.samples < _BATCH or options.samples % _BATCH:
        raise EgmfError(f"--samples is {options.samples}; it must be a multiple of {_BATCH}, the batch")
    if options.rounds < 1:
        raise EgmfError(f"--rounds is {options.rounds}; it must be 1 or more")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    parts, done = 1 + 2 * len(TITLES) * (options.rounds + 1), 0

    def doing(what: str) -> None:
        nonlocal done
        progress(what, done, parts)
        done += 1

    with tempfile.TemporaryDirectory(prefix=".score-", dir=out) as folder, distributed.process_group():
        doing("making the backbone")
        backbone = Path(folder, "backbone")
        made = write_backbone(backbone, options.layers, options.backbone)
        for task in (TASK, NUMBERS):
            rows += _of_task(Path(folder, task.name), task, backbone, options, doing)
    return {
        "kind": KIND,
        "machine": machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu, one thread",
        "backbone": made.title,
        "options": asdict(options),
        "ratios": _ratios(rows),
        "figures": {f"{row['answers']}.{row['way']}.ms_a_sample": row["ms_a_sample"] for row in rows},
        "notes": list(NOTES),
        "rows": rows,
    }


def _of_task(
    data: Path, task: Task, backbone: Path, options: ScoringOptions, doing: Callable[[str], None]
) -> list[dict[str, Any]]:
    write_dialogues(data, options.samples, task=task)
    config = Config(
        data=DataConfig(shards=[str(data)], context_turns=3, max_text_tokens=96, workers=0),
        backbone=BackboneConfig(path=str(backbone), lora_rank=16, lora_alpha=32),
        model=ModelConfig(),
        training=TrainingConfig(precision="bf16" if torch.cuda.is_available() else "fp32", zero_stage=1),
    )
    read = Read(config)
    model = build_egmf(config, read.capabilities, read.data).to(read.device).eval()
    tree = TreeScorer(read.collator, read.capabilities, _BATCH)
    sequence = SequenceScorer(read.collator, read.capabilities, _BATCH)
    greedy = GreedyDecoder(read.collator)
    legal = read.collator.answers[task.name, "en"]
    greedy.most = round(statistics.mean(map(len, legal))) + 1
    ones = [1.0] * _BATCH

    def generate(samples: list[Sample]) -> None:
        with torch.no_grad():
            model(greedy.prepare(samples, ones).to(read.device), greedy)

    ways: dict[str, Callable[[list[Sample]], Any]] = {
        "tree": lambda samples: score(tree, model, samples, ones),
        "sequence": lambda samples: score(sequence, model, samples, ones),
        "greedy": generate,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(-1, options.rounds):
        for way, once in ways.items():
            doing(f"{len(legal)} answers: {TITLES[way]}")
            chosen = read.samples[:_BATCH] if number < 0 else read.samples  # the first time warms up
            wait_for_device()
            start = time.perf_counter()
            for first in range(0, len(chosen), _BATCH):
                once(chosen[first : first + _BATCH])
            wait_for_device()
            if number >= 0:
                seconds[way].append((time.perf_counter() - start) / len(chosen))
    return [
        {
            "answers": len(legal),
            "way": way,
            "title": TITLES[way],
            "ms_a_sample": 1e3 * statistics.median(own),
            "min": 1e3 * min(own),
            "max": 1e3 * max(own),
        }
        for way, own in seconds.items()
    ]


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How many times faster the tree is than a forward each, and how many times longer than greedy generation."""
    cost = {(row["answers"], row["way"]): row["ms_a_sample"] for row in rows}
    found = {}
    for answers in sorted({row["answers"] for row in rows}):
        found[f"sequence_vs_tree_{answers}"] = round(cost[answers, "sequence"] / cost[answers, "tree"], 3)
        found[f"tree_vs_greedy_{answers}"] = round(cost[answers, "tree"] / cost[answers, "greedy"], 3)
    return found
