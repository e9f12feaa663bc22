"""Evaluate a run's best adapter on a split: ``evaluation/SPLIT.json`` and ``evaluation/predictions-SPLIT.jsonl``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from egmf_dist import distributed
from egmf_dist.config import config_from_dict
from egmf_dist.data.run_data import RunData, open_split
from egmf_dist.errors import EgmfError
from egmf_dist.inference.score import Prediction, evaluate_predictions, score_samples
from egmf_dist.model.backbone import load_tokenizer
from egmf_dist.model.build import build_egmf, load_trained
from egmf_dist.training.checkpoint import find_best, write_json
from egmf_dist.training.engine import deepspeed_settings, initialise_for_scoring, partitioned_loading
from egmf_shards import ShardSet
from egmf_shards.sample import MODALITIES


def evaluate(run: Path, split: str, remove: Sequence[str], remove_each: bool, console: bool = True) -> dict[str, Any]:
    """Score a split with the run's best adapter; every rank must call this.

    Args:
        run: the run's folder.
        split: ``valid`` or ``test`` (``train`` works too).
        remove: modalities taken away from every sample; the result goes to ``SPLIT-without-A-B.json``.
        remove_each: also score with each modality of the run removed alone, under the key ``removed``.
        console: rank 0 shows progress.

    Returns:
        On every rank what ``evaluation/SPLIT.json`` holds.

    Raises:
        EgmfError: nothing is trained yet, or a modality does not exist.
        ShardError: the split is missing or damaged.
    """
    odd = [m for m in remove if m not in MODALITIES]
    if odd:
        raise EgmfError(f"evaluate: modality {odd[0]!r} does not exist; remove any of {', '.join(MODALITIES)}")
    folder, description = find_best(run)
    config = config_from_dict(description["config"])
    run_data = RunData.from_json(description["data"])
    shards = open_split(config, split)
    tokenizer = load_tokenizer(config.backbone)
    collator = run_data.collator(tokenizer, config.data)
    settings = deepspeed_settings(config, 1)
    with partitioned_loading(config, settings):
        model = build_egmf(config, tokenizer, run_data.tasks, run_data.languages, run_data.dims)
    load_trained(model, folder)
    module = initialise_for_scoring(config, model, settings)

    def score(without: Sequence[str]) -> list[Prediction]:
        what = f"{split} without {', '.join(without)}" if without else split
        with Progress(disable=not (console and distributed.rank() == 0 and os.isatty(1))) as bar:
            task = bar.add_task(f"scoring {what}", total=None)

            def advance(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            return score_samples(
                module, shards, collator, config.evaluation.batch_size, remove=without, progress=advance
            )

    rows = score(remove)
    without_each = (
        {m: score([*remove, m]) for m in present_modalities(run_data) if m not in remove} if remove_each else {}
    )
    result: dict[str, Any] | None = None
    if distributed.rank() == 0:
        selected_by = description["selected_by"]
        result = {
            "tasks": with_selection(evaluate_predictions(rows, run_data.tasks), selected_by),
            "seed": config.training.seed,
            "checkpoint": f"{folder.parent.name}/{folder.name}",
            "split": split,
            "samples": len(rows),
        }
        if remove:
            result["without"] = list(remove)
        if without_each:
            result["removed"] = {
                m: {"tasks": with_selection(evaluate_predictions(r, run_data.tasks), selected_by)}
                for m, r in without_each.items()
            }
        ceilings = construction_ceilings(shards)
        if ceilings:
            result["ceilings"] = ceilings
        name = "-without-".join([split, "-".join(remove)]) if remove else split
        write_evaluation(run, name, result, rows)
    answer: dict[str, Any] = distributed.broadcast_object(result)
    return answer


def present_modalities(run_data: RunData) -> list[str]:
    """Text, and the feature modalities the run has."""
    return [m for m in MODALITIES if m == "text" or run_data.dims.get(m, 0)]


def with_selection(results: dict[str, Any], selected_by: str) -> dict[str, Any]:
    """Say in every result which split and metric chose the checkpoint."""
    return {name: result | {"selected_by": selected_by} for name, result in results.items()}


def construction_ceilings(shards: ShardSet) -> dict[str, Any]:
    """The best possible scores, where the data is generated and its manifest knows them."""
    out: dict[str, Any] = {}
    for manifest in shards.manifests:
        out.update(manifest.get("ceilings", {}))
    return out


def write_evaluation(run: Path, name: str, result: dict[str, Any], rows: Sequence[Prediction]) -> None:
    """Write both files; the predictions first, so that a result never stands without them."""
    folder = run / "evaluation"
    folder.mkdir(exist_ok=True)
    path = folder / f"predictions-{name}.jsonl"
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    os.replace(temporary, path)
    write_json(folder / f"{name}.json", result)
