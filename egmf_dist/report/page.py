"""Everything of a run on one HTML page: no script, no network, no other file; text is shown as text, whatever it holds.

What a part says is put together here and in :mod:`egmf_dist.report.facts`; how it looks is ``page.html.j2`` alone. A
part whose data are not there is not on the page.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from egmf_dist.inference.conditions import conditions
from egmf_dist.report.answers import reliability_figure, scatter_figure
from egmf_dist.report.curves import TRAINING_PANELS, comparison_figure, is_number
from egmf_dist.report.facts import (
    calibration_facts,
    comparison_rows,
    different_settings,
    headlines,
    metric_table,
    provenance,
    settings_yaml,
    training_facts,
    validation_table,
)
from egmf_dist.report.gates import SIGNS, gate_tables, true_class
from egmf_dist.report.missing import DISTURBED, robustness_figure
from egmf_dist.report.read import RunResults
from egmf_dist.report.samples import Found, disagreements, errors, feature_picture, key_of
from egmf_dist.style import new_figure, png

TEMPLATE = "page.html.j2"
PIXELS = 98
"""CSS pixels to an inch of a figure: its letters are then as large as the page's, and legible on a telephone."""
SHARP = 170
"""Dots an inch in the page's pictures: twice as many as are shown, for screens that are that fine."""
LIKELIEST = 3


@dataclass(frozen=True)
class Picture:
    """A picture that is part of the page."""

    text: str
    """What it shows, for those who do not see it."""
    source: str
    """A ``data:`` URL."""
    width: int
    """CSS pixels."""


def render_page(runs: Sequence[RunResults], labels: Sequence[str], found: Found) -> str:
    """The whole page.

    Args:
        runs: the run, then those to show beside it.
        labels: their names.
        found: what the run's shards still say.
    """
    run = runs[0]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": written_number, "thousands": lambda value: f"{value:,}"}
    main, beside = headlines(run), None
    if len(runs) > 1:
        beside = {
            "labels": labels,
            "rows": comparison_rows(runs),
            "settings": different_settings(runs),
            "picture": picture(comparison_figure(runs, labels), "training loss, validation and metrics of the runs"),
        }
    return environment.get_template(TEMPLATE).render(
        name=run.name,
        headlines=main,
        intervals=any(one["interval"] for one in main),
        facts=training_facts(run, found),
        panels=_panels(run),
        validation=validation_table(run),
        splits=[_split(run, name, found) for name in sorted({*run.evaluations, *run.predictions, *run.robustness})],
        compare=beside,
        provenance=provenance(run),
        settings=settings_yaml(run),
    )


def picture(figure: Figure, text: str) -> Picture:
    """A figure as a part of the page."""
    return Picture(text, _url(png(figure, SHARP)), round(figure.get_figwidth() * PIXELS))


def written_number(value: object, digits: int = 3) -> str:
    """A number with so many decimals, the word for an undefined one, and anything else as it is."""
    if value is None:
        return "undefined"
    if not isinstance(value, float):
        return str(value)  # a label, or a count
    return f"{value:.{digits}f}" if is_number(value) else "undefined"


def _url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"


def _panels(run: RunResults) -> list[Picture]:
    if not (run.train or run.valid):
        return []
    pictures = []
    for name, draw in TRAINING_PANELS.items():
        if not (run.valid if name == "validation" else run.train):
            continue
        figure = new_figure(5.2, 3.1)
        draw(figure.subplots(), run)
        pictures.append(picture(figure, f"{name} over steps"))
    return pictures


def _split(run: RunResults, name: str, found: Found) -> dict[str, Any]:
    """What the page says of one evaluated split."""
    evaluation = run.evaluations.get(name, {"tasks": {}})
    rows = run.predictions.get(name, [])
    robustness = run.robustness.get(name, {"tasks": {}})
    tasks = list(dict.fromkeys([*evaluation["tasks"], *(row["task"] for row in rows), *robustness["tasks"]]))
    removed = conditions(evaluation) if evaluation.get("removed") else {}
    return {
        "name": name,
        "facts": [
            (key.replace("_", " "), evaluation[key])
            for key in ("checkpoint", "samples", "scoring", "prompts_cut")
            if evaluation.get(key) not in (None, "")
        ],
        "tasks": [
            _task(
                task,
                name,
                evaluation["tasks"].get(task, {}),
                [row for row in rows if row["task"] == task],
                found,
            )
            | {
                "conditions": removed.get(task),
                "robustness": _robustness(task, robustness["tasks"].get(task)),
            }
            for task in tasks
        ],
    }


def _task(task: str, split: str, result: dict[str, Any], rows: list[dict[str, Any]], found: Found) -> dict[str, Any]:
    labels = [str(label) for label in result.get("labels", ())]
    scatter = reliability = None
    numbers = [row for row in rows if not isinstance(row["truth"], str)]
    if numbers:
        truth, predicted = [row["truth"] for row in numbers], [row["predicted"] for row in numbers]
        figure = scatter_figure(task, split, result or None, truth, predicted)
        figure.set_size_inches(4.6, 3.9)
        figure.axes[0].set_title("", loc="left")
        scatter = picture(figure, f"{task}: predicted against true")
    if any(one["n"] for one in result.get("reliability") or ()):
        figure = reliability_figure(task, split, result["reliability"])
        reliability = picture(figure, f"{task}: accuracy by confidence")
    groups = [(kind, list(members.items())) for kind, members in (result.get("groups") or {}).items() if members]
    return {
        "name": task,
        "n": result.get("n", len(rows)),
        "collapsed": result.get("collapsed"),
        "metrics": metric_table(result),
        "confusion": _confusion(labels, result["confusion"]) if result.get("confusion") and result["n"] else None,
        "scatter": scatter,
        "reliability": reliability,
        "calibration": calibration_facts(result),
        "groups": groups,
        "gates": _gates(rows, labels),
        "errors": [_sample(split, row, labels, found) for row in errors(rows)],
        "disagreements": [_sample(split, row, labels, found) for row in disagreements(rows)],
    }


def _confusion(labels: list[str], counts: list[list[int]]) -> dict[str, Any]:
    rows = [
        (label, sum(line), [(count, count / max(sum(line), 1)) for count in line])
        for label, line in zip(labels, counts, strict=True)
    ]
    return {"labels": labels, "rows": rows}


def _gates(rows: list[dict[str, Any]], labels: Sequence[str]) -> list[dict[str, Any]]:
    """The fusion's diagnostics by true class and, where there are several, by language."""
    groupings = [("true class", [str(true_class(row["truth"])) for row in rows], list(labels) or list(SIGNS))]
    languages = [str(row.get("language", "")) for row in rows]
    if len(set(languages)) > 1:
        groupings.append(("language", languages, []))
    return [
        {
            "level": level,
            "by": by,
            "columns": columns,
            "rows": lines,
            "most": max([value for *_, means in lines for value in means], default=0) or 1.0,
        }
        for by, groups, order in groupings
        for level, columns, lines in gate_tables(rows, groups, order)
    ]


def _robustness(task: str, measured: dict[str, Any] | None) -> dict[str, Any] | None:
    if not measured:
        return None
    figures = {kind: robustness_figure(task, kind, measured) for kind in DISTURBED}
    lines = [("undisturbed", measured.get("clean"))]
    lines += [(f"without {stream}", value) for stream, value in (measured.get("removed") or {}).items()]
    lines += [(f"context {how}", value) for how, value in (measured.get("context") or {}).items()]
    lines += [(f"mean over the curve of {stream}", value) for stream, value in (measured.get("area") or {}).items()]
    if measured.get("area_all") is not None:
        lines.append(("mean over all curves", measured["area_all"]))
    return {
        "metric": measured.get("metric", ""),
        "pictures": [picture(f, f"{task}: {DISTURBED[kind]}") for kind, f in figures.items() if f is not None],
        "lines": lines,
        "conflict": list((measured.get("conflict") or {}).items()),
    }


def _sample(name: str, row: Mapping[str, Any], labels: Sequence[str], found: Found) -> dict[str, Any]:
    """One sample of a split's predictions as the page shows it."""
    sample = found.samples.get(key_of(name, row))
    text = row.get("text") or (sample.text if sample is not None else None)
    probabilities = row.get("probabilities") or []
    likeliest = []
    if len(labels) == len(probabilities) and isinstance(row["truth"], str):
        likeliest = sorted(zip(labels, probabilities, strict=True), key=lambda pair: -pair[1])[:LIKELIEST]
    speaker = row.get("speaker") or (sample.speaker if sample is not None else "")
    return {
        "id": row.get("id", ""),
        "language": row.get("language", ""),
        "speaker": speaker,
        "text": text,
        "text_known": sample is not None or "text" in row,
        "context": [] if sample is None else [(turn.speaker, turn.text) for turn in sample.context],
        "truth": row["truth"],
        "predicted": row["predicted"],
        "likeliest": likeliest,
        "without": list((row.get("without") or {}).items()),
        "gates": [(level, list(weights.items())) for level, weights in (row.get("gates") or {}).items() if weights],
        "features": []
        if sample is None
        else [(name, len(array), _url(feature_picture(array))) for name, array in sample.features.items()],
    }
