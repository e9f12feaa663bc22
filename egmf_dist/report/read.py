"""What a run left on disk, read for drawing. Any part may be missing; a broken part is an error that names it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from egmf_dist.config.load import read_yaml
from egmf_dist.errors import EgmfError
from egmf_dist.formats import DamagedError, read_stamped
from egmf_dist.run.folder import ROBUSTNESS, Run
from egmf_dist.run.records import read_records
from egmf_dist.run.tracking import read_trackers


@dataclass(frozen=True)
class RunResults:
    """One run's records."""

    name: str
    """The folder's name."""
    train: list[dict[str, Any]] = field(default_factory=list)
    """Training records by step."""
    valid: list[dict[str, Any]] = field(default_factory=list)
    """Validation records by step."""
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For each evaluated split what ``evaluation/SPLIT.json`` holds."""
    predictions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """For each evaluated split one row per sample."""
    robustness: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For each split whose streams were disturbed what ``evaluation/SPLIT-robustness.json`` holds."""
    starts: list[dict[str, Any]] = field(default_factory=list)
    """A record per start, the newest last."""
    settings: dict[str, Any] = field(default_factory=dict)
    """``config.yaml`` as it stands there; empty where there is none."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """``manifest.json``; empty where there is none that can be read."""
    trackers: dict[str, dict[str, str]] = field(default_factory=dict)
    """Where trackers know the run, as ``trackers.json`` says."""

    @property
    def selected(self) -> dict[str, Any] | None:
        """The validation whose adapter was kept: the last one that was the best so far."""
        return next((record for record in reversed(self.valid) if record.get("best")), None)


def read_run(folder: Path) -> RunResults:
    """Read what there is to draw.

    Raises:
        EgmfError: the folder is missing, holds nothing to draw (then it says what to run first), or a file is broken.
    """
    run = Run(folder)
    if not folder.is_dir():
        raise EgmfError(f"{run}: no such run; give a run's folder, such as runs/demo")
    records = read_records(run.metrics) if run.metrics.is_file() else []
    before, after = run.predictions("*").name.split("*")
    results = RunResults(
        name=folder.resolve().name,
        train=_by_step(records, "train"),
        valid=_by_step(records, "valid"),
        evaluations={
            path.stem: _evaluation(path)
            for path in sorted(run.evaluations.glob("*.json"))
            if not path.stem.endswith(ROBUSTNESS)
        },
        predictions={
            path.name.removeprefix(before).removesuffix(after): _rows(path)
            for path in sorted(run.evaluations.glob(run.predictions("*").name))
        },
        robustness={
            path.stem.removesuffix(ROBUSTNESS): _json_with_tasks(path, "a measurement of robustness")
            for path in sorted(run.evaluations.glob(f"*{ROBUSTNESS}.json"))
        },
        starts=[record for record in records if record.get("kind") == "start"],
        settings={str(key): value for key, value in read_yaml(run.config).items()} if run.config.is_file() else {},
        manifest=_manifest(run),
        trackers=read_trackers(run),
    )
    if not (results.train or results.valid or results.evaluations or results.predictions or results.robustness):
        raise EgmfError(
            f"{run}: nothing to draw yet, neither {run.metrics.name} nor evaluation/SPLIT.json; "
            f"train first (egmf train --run {run} ...), then evaluate (egmf evaluate {run} --split test)"
        )
    return results


def headline(metrics: dict[str, float | None]) -> str:
    """The metric a task is known by: Corr for a regression, weighted F1 for a classification."""
    return "corr" if "corr" in metrics else "weighted_f1"


def _by_step(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Records of one kind in the order of their steps; of a step that was repeated after a resume, the last."""
    last = {record["step"]: record for record in records if record.get("kind") == kind}
    return [last[step] for step in sorted(last)]


def _evaluation(path: Path) -> dict[str, Any]:
    data = _json_with_tasks(path, "an evaluation")
    if not all("metrics" in result for result in data["tasks"].values()):
        raise EgmfError(f"{path}: not an evaluation (no tasks with metrics); evaluate that split again")
    return data


def _json_with_tasks(path: Path, what: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EgmfError(f"{path}: not JSON ({error}); evaluate that split again") from error
    tasks = data.get("tasks") if isinstance(data, dict) else None
    if not isinstance(tasks, dict) or not all(isinstance(result, dict) for result in tasks.values()):
        raise EgmfError(f"{path}: not {what} (no tasks with metrics); evaluate that split again")
    return dict(data)


def _manifest(run: Run) -> dict[str, Any]:
    try:
        return read_stamped(run.manifest)
    except DamagedError:
        return {}


def _rows(path: Path) -> list[dict[str, Any]]:
    """A split's predictions; each with ``nth``, which of the task's samples of one id it is: folders may share ids."""
    rows = []
    seen: Counter[tuple[str, str]] = Counter()
    # Not splitlines: it ends a line also at signs that a text may hold (U+2028, U+0085).
    for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), start=1):
        try:
            row = json.loads(line)
            missing = {"task", "truth", "predicted"} - set(row)
        except (ValueError, TypeError) as error:
            raise EgmfError(f"{path}, line {number}: not JSON ({error}); evaluate that split again") from error
        if missing:
            raise EgmfError(f"{path}, line {number}: lacks {', '.join(sorted(missing))}; evaluate that split again")
        key = str(row["task"]), str(row.get("id", ""))
        rows.append(row | {"nth": seen[key]})
        seen[key] += 1
    return rows
