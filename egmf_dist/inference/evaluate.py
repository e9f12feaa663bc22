"""Evaluate a run's best adapter on a split: ``evaluation/SPLIT.json`` and ``evaluation/predictions-SPLIT.jsonl``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from egmf_dist import distributed
from egmf_dist.data.run_data import RunData
from egmf_dist.files import write_json, write_json_lines
from egmf_dist.inference.decode import decode_samples
from egmf_dist.inference.opened import Opened
from egmf_dist.inference.predictions import Prediction, calibrations_of, note_without, written
from egmf_dist.inference.score import detailed, evaluate_predictions
from egmf_shards import TEXT, ShardSet


def evaluate(opened: Opened, remove: Sequence[str], remove_each: bool, decode: bool = False) -> dict[str, Any]:
    """Score a split with the run's best adapter; every rank must call this.

    Args:
        opened: model and split.
        remove: modalities taken away from every sample; the result goes to ``SPLIT-without-A-B.json``.
        remove_each: also score with each modality of the run removed alone, under the key ``removed``.
        decode: also generate every answer freely, under the key ``greedy``.

    Returns:
        On every rank what ``evaluation/SPLIT.json`` holds.

    Raises:
        ShardError: a sample is damaged.
    """
    run, split, description = opened.run, opened.split, opened.description
    remove = list(dict.fromkeys(remove))

    def score(without: Sequence[str]) -> list[Prediction]:
        return opened.score(f"{split} without {', '.join(without)}" if without else split, without)

    began = time.perf_counter()
    rows = score(remove)
    seconds = time.perf_counter() - began
    greedy = {}
    if decode:
        batch_size = opened.config.evaluation.batch_size
        greedy = decode_samples(opened.module, opened.shards, opened.collator, batch_size, remove)
    without_each: dict[str, list[Prediction]] = {}
    if remove_each:
        without_each = {m: score([*remove, m]) for m in present_modalities(opened.data) if m not in remove}

    def judge() -> dict[str, Any]:
        tasks, chosen = opened.data.tasks, {"selected_by": description["selected_by"]}
        calibrations = calibrations_of(description)
        whole = detailed(rows, tasks, calibrations)
        result: dict[str, Any] = {
            "tasks": {name: result | chosen for name, result in whole.items()},
            "seed": opened.config.training.seed,
            "checkpoint": opened.checkpoint,
            "split": split,
            "samples": len(rows),
            "scoring": opened.scorer.way,
            "seconds": round(seconds, 3),
            "modalities": list(opened.data.modalities),
            "prompts_cut": sum("prompt_tokens_cut" in row for row in rows),
        }
        if remove:
            result["without"] = list(remove)
        if greedy:
            result["greedy"] = greedy
        if without_each:
            result["removed"] = {
                m: {"tasks": {name: result | chosen for name, result in evaluate_predictions(scored, tasks).items()}}
                for m, scored in without_each.items()
            }
        ceilings = construction_ceilings(opened.shards)
        if ceilings:
            result["ceilings"] = ceilings
        name = "-without-".join([split, "-".join(remove)]) if remove else split
        run.evaluations.mkdir(exist_ok=True)
        note_without(rows, without_each)
        # The predictions first, so that a result never stands without them.
        lines = [written(row, tasks[row["task"]], calibrations.get(row["task"])) for row in rows]
        write_json_lines(run.predictions(name), lines)
        write_json(run.evaluation(name), result)
        return result

    answer: dict[str, Any] = distributed.on_rank_zero(judge)
    return answer


def present_modalities(run_data: RunData) -> list[str]:
    """Text, and the feature modalities the run has."""
    return [m for m in run_data.modalities if m == TEXT or run_data.streams[m]]


def construction_ceilings(shards: ShardSet) -> dict[str, Any]:
    """The best possible scores by task, where the data is generated: of folders that were built alike.

    Where one of several folders with a task says something else, or nothing, none of them holds for all samples.
    """
    out: dict[str, Any] = {}
    for name in shards.tasks:
        holding = [m for m in shards.manifests if any(task["name"] == name for task in m["tasks"])]
        first, *others = [m.get("ceilings", {}).get(name) for m in holding]
        if first and all(other == first for other in others):
            out[name] = first
    return out
