"""What a page says in words and tables: what was trained on what, metrics, comparison, where it all comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from egmf_dist.formats import KEY
from egmf_dist.metrics.by_task import HEADLINE, LOWER_IS_BETTER
from egmf_dist.report.read import RunResults, headline
from egmf_dist.report.samples import Found

Facts = list[tuple[str, str]]


def headlines(run: RunResults) -> list[dict[str, Any]]:
    """For each evaluated split and task its headline metric, interval, samples, and the alarm for one answer."""
    return [
        {
            "split": split,
            "task": task,
            "metric": main_metric(result),
            "value": result["metrics"].get(main_metric(result)),
            "interval": interval(result, main_metric(result)),
            "n": result.get("n"),
            "collapsed": result.get("collapsed"),
        }
        for split, evaluation in run.evaluations.items()
        for task, result in evaluation["tasks"].items()
    ]


def main_metric(result: Mapping[str, Any]) -> str:
    """The metric that a result is known by."""
    return HEADLINE.get(result.get("kind", ""), headline(result["metrics"]))


def interval(result: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    """The 95 % interval of a metric; None where there is none."""
    found = (result.get("intervals") or {}).get(metric)
    if not isinstance(found, list | tuple) or len(found) != 2 or None in found:
        return None
    return float(found[0]), float(found[1])


def training_facts(run: RunResults, found: Found) -> Facts:
    """What was trained on what; only what the run's files say."""
    sections = {name: part for name, part in run.settings.items() if isinstance(part, dict)}
    data, model = sections.get("data", {}), sections.get("model", {})
    backbone, training = sections.get("backbone", {}), sections.get("training", {})
    start: Mapping[str, Any] = run.starts[-1] if run.starts else {}
    done = max((record["step"] for record in [*run.train, *run.valid]), default=None)
    counts = ", ".join(f"{split} {n:,}" for split, n in found.counts.items())
    positions = [record["position"] for record in run.train if isinstance(record.get("position"), int)]
    selected = run.selected or {}
    chosen = [evaluation.get("checkpoint") for evaluation in run.evaluations.values()]
    kinds = found.tasks or {
        task: str(result.get("kind", ""))
        for evaluation in run.evaluations.values()
        for task, result in evaluation["tasks"].items()
    }
    streams = ", ".join(f"{name} ({'/'.join(map(str, dims))} wide)" for name, dims in found.streams.items())
    facts = [
        ("data", ", ".join(map(str, data.get("shards") or run.manifest.get("data") or ()))),
        ("tasks", ", ".join(f"{task} ({kind})" if kind else task for task, kind in kinds.items())),
        ("samples", counts),
        ("feature streams", streams),
        ("backbone", " - ".join(filter(None, [str(backbone.get("path") or ""), _after(start.get("backbone"))]))),
        ("tuning", _tuning(backbone)),
        ("parameters trained", _share(start.get("trained_parameters"), start.get("parameters"))),
        ("fusion", str(model.get("fusion") or "")),
        ("objective", str(training.get("objective") or "")),
        ("seed", _text(training.get("seed"))),
        ("steps", _share(done, start.get("steps", training.get("steps")))),
        ("samples consumed", f"{max(positions):,}" if positions else ""),
        ("global batch", _text(start.get("global_batch", training.get("global_batch")))),
        ("ranks, ZeRO stage, precision", _joined(start, ("ranks", "zero_stage", "precision"))),
        ("starts", _text(len(run.starts)) if len(run.starts) > 1 else ""),
        ("selected by", str(selected.get("selected_by") or "")),
        ("kept adapter", f"step {selected['step']}" if selected else str(next(filter(None, chosen), ""))),
        ("scoring", _after(start.get("scoring"))),
        ("kernels", str(start.get("kernels") or "")),
    ]
    return [(name, value) for name, value in facts if value]


def _tuning(backbone: Mapping[str, Any]) -> str:
    way = str(backbone.get("tuning") or "")
    if way != "lora":
        return way
    parts = [("rank", backbone.get("lora_rank")), ("alpha", backbone.get("lora_alpha"))]
    extras = [f"{name} {value}" for name, value in parts if value is not None]
    return ", ".join([way, *extras, *(["DoRA"] if backbone.get("lora_dora") else [])])


def _after(said: object) -> str:
    """What a printed line says behind its own name."""
    return str(said).split(": ", 1)[-1] if said else ""


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _share(part: object, whole: object) -> str:
    known = [f"{value:,}" for value in (part, whole) if isinstance(value, int)]
    return " of ".join(known)


def _joined(record: Mapping[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(str(record[key]) for key in keys if record.get(key) is not None)


def metric_table(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Metrics with intervals; a column each for the other readings of a regression, and for calibrated answers."""
    metrics = result.get("metrics")
    if not metrics:
        return None
    columns = {f"read as {name}": values for name, values in (result.get("readings") or {}).items()}
    calibrated = (result.get("calibrated") or {}).get("metrics")
    if calibrated:
        columns["calibrated"] = calibrated
    rows = [
        {
            "metric": metric,
            "lower": metric in LOWER_IS_BETTER,
            "value": value,
            "interval": interval(result, metric),
            "others": [values.get(metric, "") for values in columns.values()],
        }
        for metric, value in metrics.items()
    ]
    return {"columns": list(columns), "rows": rows, "intervals": any(row["interval"] for row in rows)}


def calibration_facts(result: Mapping[str, Any]) -> Facts:
    """How answers were calibrated, on what, and how often intervals of a regression hold the truth."""
    facts = {**(result.get("calibration") or {})}
    facts |= {key: value for key, value in (result.get("calibrated") or {}).items() if key != "metrics"}
    return [
        (key.replace("_", " "), f"{value:.3f}" if isinstance(value, float) else str(value))
        for key, value in facts.items()
        if isinstance(value, int | float | str)
    ]


def validation_table(run: RunResults) -> dict[str, Any] | None:
    """Every validation: step, score, each task's metrics, and which was kept."""
    if not run.valid:
        return None
    columns = list(
        dict.fromkeys(
            (task, metric)
            for record in run.valid
            for task, result in record.get("tasks", {}).items()
            for metric in result["metrics"]
        )
    )
    kept = run.selected
    rows = [
        {
            "step": record["step"],
            "kept": record is kept,
            "score": record.get("score"),
            "values": [
                record.get("tasks", {}).get(task, {}).get("metrics", {}).get(metric) for task, metric in columns
            ],
        }
        for record in run.valid
    ]
    return {"columns": [f"{task} {metric}" for task, metric in columns], "rows": rows}


def comparison_rows(runs: Sequence[RunResults]) -> list[dict[str, Any]]:
    """Headline metrics of several runs, a row for each split and task that at least one of them evaluated."""
    keys = dict.fromkeys(
        (split, task) for run in runs for split, evaluation in run.evaluations.items() for task in evaluation["tasks"]
    )
    rows = []
    for split, task in keys:
        results = [run.evaluations.get(split, {"tasks": {}})["tasks"].get(task) for run in runs]
        metric = main_metric(next(result for result in results if result))
        cells = [(r["metrics"].get(metric), interval(r, metric), r.get("n")) if r else None for r in results]
        known = [cell[0] for cell in cells if cell is not None and cell[0] is not None]
        best = (min if metric in LOWER_IS_BETTER else max)(known, default=None)
        rows.append({"split": split, "task": task, "metric": metric, "cells": cells, "best": best})
    return rows


def different_settings(runs: Sequence[RunResults]) -> list[tuple[str, list[str]]]:
    """The settings in which the runs differ, and each one's value."""
    flat = [
        {f"{section}.{key}": value for section, part in run.settings.items() if isinstance(part, dict)
         for key, value in part.items()}
        for run in runs
    ]  # fmt: skip
    keys = dict.fromkeys(key for part in flat for key in part)
    lines = [(key, [_text(part.get(key, "not set")) for part in flat]) for key in keys]
    return [(key, values) for key, values in lines if len(set(values)) > 1]


def provenance(run: RunResults) -> Facts:
    """Versions, hosts, hashes; where trackers know the run; when each start was."""
    manifest = run.manifest
    identity = manifest.get("identity") or {}
    backbone = identity.get("backbone") or {}
    facts = [("egmf-dist", _text(manifest.get("egmf_dist"))), ("Python", _text(manifest.get("python")))]
    facts += [(package, _text(version)) for package, version in (manifest.get("versions") or {}).items()]
    facts += [
        ("hosts", ", ".join(map(str, manifest.get("hosts") or ()))),
        ("index hash of the training split", _text(identity.get("data"))),
    ]
    facts += [(f"backbone, {key}", _text(value)) for key, value in backbone.items()]
    facts += [(name, _text(known.get("where"))) for name, known in run.trackers.items()]
    facts += [(f"start at step {start.get('step', 0)}", _text(start.get("time"))) for start in run.starts]
    return [(name, value) for name, value in facts if value]


def settings_yaml(run: RunResults) -> str:
    """The settings as ``config.yaml`` has them; empty where there is none."""
    shown = {name: value for name, value in run.settings.items() if name != KEY}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True) if shown else ""
