"""``egmf export``: a run's best adapter as a folder to hand on, with a model card."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from egmf_dist.config import Config, config_from_saved
from egmf_dist.data.run_data import RunData
from egmf_dist.errors import EgmfError
from egmf_dist.files import own_name, sync_tree, writing
from egmf_dist.formats import TRAINED_FILE
from egmf_dist.inference.portable import ADAPTER, BACKBONE, CARD, check_backbone, is_portable, write_portable
from egmf_dist.model.adapter import best_adapter
from egmf_dist.run.folder import Run
from egmf_dist.run.identity import is_folder
from egmf_dist.run.places import locate_backbone
from egmf_shards import CLASSIFICATION


def export(run: Run, out: Path, merge: bool = False, backbone: str | None = None) -> dict[str, Any]:
    """Write a run's best adapter as a folder that :func:`egmf_dist.load` reads; see :mod:`.portable`.

    Args:
        run: a trained run.
        out: the folder to make.
        merge: also the LLM with its changes in it.
        backbone: where the LLM lies now; None: as the run says.

    Returns:
        What its ``egmf.json`` holds.

    Raises:
        EgmfError: nothing is trained yet, ``out`` exists, or the LLM is another than the run's.
    """
    if out.exists():
        what = "an export lies there" if is_portable(out) else "it exists"
        raise EgmfError(f"--out {out}: {what}; name another folder, or remove it first")
    with best_adapter(run) as adapter:
        about = adapter.description
        config, then = config_from_saved(about["config"]), about.get("identity", {}).get("backbone")
        path = locate_backbone(run, config.backbone.path, backbone, is_folder(then or {}))
        # Absolute: who loads it works in another folder.
        path = str(Path(path).absolute()) if Path(path).is_dir() else path
        commit = (then or {}).get("commit") if backbone is None else None
        own = replace(config.backbone, path=path, revision=commit or config.backbone.revision)
        config = replace(config, backbone=own)
        check_backbone(config, then, f"run {run}", "--backbone FOLDER")
        weights = load_file(adapter.folder / TRAINED_FILE)
        temporary = own_name(out)
        with writing(temporary, f"export {out}", then="export again"):
            temporary.mkdir(parents=True)
            description = write_portable(temporary, config, about, weights, merge)
            card = model_card(config, description, figures(run, adapter.name), out.name, temporary)
            (temporary / CARD).write_text(card, encoding="utf-8")
            sync_tree(temporary)
            os.rename(temporary, out)
    return description


def figures(run: Run, adapter: str) -> dict[str, Any]:
    """By split what an evaluation of this adapter found, with all modalities."""
    found = {}
    for split in ("valid", "test"):
        path = run.evaluation(split)
        if path.is_file():
            result = json.loads(path.read_text(encoding="utf-8"))
            if result.get("checkpoint") == f"{run.adapters.name}/{adapter}":
                found[split] = result
    return found


def model_card(
    config: Config, description: Mapping[str, Any], found: Mapping[str, Any], name: str, folder: Path
) -> str:
    """Markdown: what it answers, how it is used, on what it was trained, what it scored, whose terms apply."""
    data, trained = RunData.from_json(description["data"]), description["trained"]
    parts = []
    if (folder / ADAPTER).is_dir():
        parts.append(f"`{ADAPTER}/` is PEFT's own folder: `PeftModel.from_pretrained` puts it on the plain LLM.")
    if (folder / BACKBONE).is_dir():
        parts.append(f"`{BACKBONE}/` is the LLM with what was trained of it.")
    streams = [f"{stream} ({' or '.join(map(str, widths))} numbers a frame)" for stream, widths in data.streams.items()]
    return _CARD.format(
        name=name,
        parts="\n".join(parts) or "The LLM is as it was.",
        tasks="\n".join(
            f"| {task.name} | {', '.join(task.languages)} | "
            + (", ".join(task.labels) if task.kind == CLASSIFICATION else f"{task.low} to {task.high} by {task.step}")
            + " |"
            for task in data.tasks.values()
        ),
        reads=" and ".join(["text", *streams]),
        path=config.backbone.path,
        tuning=config.backbone.tuning,
        step=trained.get("step", "?"),
        seed=description["seed"],
        precision=description["precision"],
        selected_by=trained.get("selected_by", "?"),
        calibration=_calibration(description.get("calibration") or {}),
        figures=_table(found),
    )


_CARD = """# {name}

Emotion and sentiment from what is said, heard and seen: EGMF (expert-guided multimodal fusion, arXiv 2601.07565) before
a large language model, made with egmf-dist.

## Use
```python
from egmf_dist import load
model = load("{name}")
model.predict(["I got the job!"])
```
It reads {reads}. What an utterance lacks is absent, never zeros.
{parts}

## What it answers
| task | languages | legal answers |
|---|---|---|
{tasks}

## Training
LLM `{path}`, tuning {tuning}; step {step}, seed {seed}, {precision}; chosen by {selected_by}.
{calibration}

## Figures
{figures}

## Terms
The LLM's own licence applies to it and to what was made from it, the data sets' terms to what was learnt from them.
Look them up before handing this on.
"""


def _calibration(fitted: Mapping[str, Any]) -> str:
    if not fitted:
        return "Probabilities and numbers are as the model states them: it was not calibrated."
    parts = [
        f"{name}: temperature {own['temperature']:.3g}"
        + (
            f", value = {own['intercept']:.3g} + {own['slope']:.3g} x"
            if own["slope"] != 1.0 or own["intercept"]
            else ""
        )
        + f" ({own['samples']} validation samples)"
        for name, own in fitted.items()
    ]
    return f"Answers are calibrated: {'; '.join(parts)}."


def _table(found: Mapping[str, Any]) -> str:
    def line(split: str, name: str, metric: str, task: Mapping[str, Any]) -> str:
        value, sure = task["metrics"][metric], (task.get("intervals") or {}).get(metric)
        after = (task.get("calibrated") or {}).get("metrics", {}).get(metric)
        measured = "undefined" if value is None else f"{value:.3f}"
        between = f"{sure[0]:.3f} to {sure[1]:.3f}" if sure else ""
        calibrated = "" if after is None else f"{after:.3f}"
        return f"| {split} | {name} | {metric} | {task['n']} | {measured} | {between} | {calibrated} |"

    rows = [
        line(split, name, metric, task)
        for split, result in found.items()
        for name, task in result["tasks"].items()
        for metric in task["metrics"]
    ]
    if not rows:
        return "None: the run was not evaluated before it was exported (`egmf evaluate`)."
    return "\n".join(
        ["| split | task | metric | n | measured | 95 % | calibrated |", "|---|---|---|---|---|---|---|", *rows]
    )
