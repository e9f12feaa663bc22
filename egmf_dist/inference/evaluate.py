"""Evaluate a run's best adapter on a split: ``evaluation/SPLIT.json`` and ``evaluation/predictions-SPLIT.jsonl``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.progress import Progress

from egmf_dist import distributed
from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.config import Config, config_from_saved
from egmf_dist.data.run_data import RunData, open_split
from egmf_dist.engine import deepspeed_settings, initialise_for_scoring, partitioned_loading
from egmf_dist.errors import EgmfError
from egmf_dist.files import write_json, write_json_lines
from egmf_dist.inference.predictions import Prediction, note_without, written
from egmf_dist.inference.score import evaluate_predictions, score_samples
from egmf_dist.inference.scorer import check_samples, choose_scorer
from egmf_dist.model.adapter import best_adapter
from egmf_dist.model.identity import backbone_identity
from egmf_dist.model.trained import load_trained
from egmf_dist.run.folder import Run
from egmf_dist.run.identity import Identity, check_identity
from egmf_dist.run.places import Places
from egmf_shards import TEXT, ShardSet


def evaluate(
    run: Run,
    split: str,
    remove: Sequence[str],
    remove_each: bool,
    places: Places,
    evaluation: Mapping[str, Any],
    console: bool = True,
) -> dict[str, Any]:
    """Score a split with the run's best adapter; every rank must call this.

    Args:
        run: the run.
        split: ``valid`` or ``test`` (``train`` works too).
        remove: modalities taken away from every sample; the result goes to ``SPLIT-without-A-B.json``.
        remove_each: also score with each modality of the run removed alone, under the key ``removed``.
        places: where data and backbone lie now.
        evaluation: settings of that section instead of the run's.
        console: rank 0 shows progress.

    Returns:
        On every rank what ``evaluation/SPLIT.json`` holds.

    Raises:
        EgmfError: nothing is trained yet, a modality does not exist, or data or backbone are not those of the run.
        ShardError: the split is missing or damaged.
    """
    with best_adapter(run) as adapter:
        description = adapter.description
        saved = description["config"]
        saved = saved | {"evaluation": saved.get("evaluation", {}) | evaluation}
        config = places.put_into(config_from_saved(saved))
        run_data = RunData.from_json(description["data"])
        remove = list(dict.fromkeys(remove))
        check_modalities(remove, run_data)
        check_trained(run, config, description)
        shards = open_split(config, split)
        capabilities, collator = read_backbone(config, run_data)
        settings = deepspeed_settings(config, 1)
        with partitioned_loading(config, settings):
            model = build_egmf(config, capabilities, run_data)
        load_trained(model, adapter.folder)
    kernels = model.describe_kernels(distributed.device())
    if console and distributed.rank() == 0:
        print(kernels, flush=True)
    module = initialise_for_scoring(config, model, settings)
    samples = check_samples(shards, range(len(shards)), collator)
    scorer, scoring = choose_scorer(config.evaluation, module, capabilities, collator, samples)
    if console and distributed.rank() == 0:
        print(scoring, flush=True)

    def score(without: Sequence[str]) -> list[Prediction]:
        what = f"{split} without {', '.join(without)}" if without else split
        if console and distributed.rank() == 0 and not os.isatty(1):
            print(f"scoring {what}: {len(shards)} samples", flush=True)
        with Progress(disable=not (console and distributed.rank() == 0 and os.isatty(1))) as bar:
            task = bar.add_task(f"scoring {what}", total=None)

            def advance(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            return score_samples(module, shards, scorer, config.evaluation.batch_size, remove=without, progress=advance)

    rows = score(remove)
    without_each: dict[str, list[Prediction]] = {}
    if remove_each:
        without_each = {m: score([*remove, m]) for m in present_modalities(run_data) if m not in remove}

    def judge() -> dict[str, Any]:
        def tasks(scored: Sequence[Prediction]) -> dict[str, Any]:
            results = evaluate_predictions(scored, run_data.tasks)
            return {name: result | {"selected_by": description["selected_by"]} for name, result in results.items()}

        result: dict[str, Any] = {
            "tasks": tasks(rows),
            "seed": config.training.seed,
            "checkpoint": f"{run.adapters.name}/{adapter.name}",
            "split": split,
            "samples": len(rows),
            "scoring": scorer.way,
            "modalities": list(run_data.modalities),
            "prompts_cut": sum("prompt_tokens_cut" in row for row in rows),
        }
        if remove:
            result["without"] = list(remove)
        if without_each:
            result["removed"] = {m: {"tasks": tasks(scored)} for m, scored in without_each.items()}
        ceilings = construction_ceilings(shards)
        if ceilings:
            result["ceilings"] = ceilings
        name = "-without-".join([split, "-".join(remove)]) if remove else split
        run.evaluations.mkdir(exist_ok=True)
        note_without(rows, without_each)
        # The predictions first, so that a result never stands without them.
        write_json_lines(run.predictions(name), [written(row) for row in rows])
        write_json(run.evaluation(name), result)
        return result

    answer: dict[str, Any] = distributed.on_rank_zero(judge)
    return answer


def check_trained(run: Run, config: Config, description: Mapping[str, Any]) -> None:
    """Refuse to evaluate a run's adapter with other data or another backbone than it was trained with.

    Args:
        run: for the message.
        config: the run's settings, with the places in which data and backbone lie now.
        description: the adapter's; version 1 names no data, which is then not compared.

    Raises:
        EgmfError: the first that differs.
        ShardError: a folder of shards cannot be opened.
    """
    now = backbone_identity(config.backbone)
    if "identity" not in description:
        part = {"world_size": 0, "data": "", "seed": 0, "backbone": description.get("backbone")}
        then = Identity.from_json(part, f"run {run}: its adapter")
        return check_identity(then, replace(then, backbone=now), f"run {run}", ("backbone",), "")
    then = Identity.from_json(description["identity"], f"run {run}: its adapter")
    # Only the index counts here: training shards may be gone by the time the test split is scored.
    tolerant = replace(config, data=replace(config.data, bad_samples="skip"))
    found = replace(then, data=open_split(tolerant, "train").index_hash, backbone=now)
    return check_identity(then, found, f"run {run}", ("data", "backbone"), "")


def check_modalities(remove: Sequence[str], run_data: RunData) -> None:
    """Refuse to take away what no sample has.

    Raises:
        EgmfError: names the modality, and those there are.
    """
    odd = [m for m in remove if m not in run_data.modalities]
    if odd:
        known = ", ".join(run_data.modalities)
        raise EgmfError(f"evaluate: modality {odd[0]!r} does not exist; remove any of {known}")


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
