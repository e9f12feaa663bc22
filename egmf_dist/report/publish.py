"""A report, and the figures of evaluations, handed on to the trackers that know a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from egmf_dist.config import load_run_config
from egmf_dist.report.read import read_run
from egmf_dist.run.folder import Run, step_of
from egmf_dist.run.records import ended, read_records
from egmf_dist.run.tracking import Trackers, numbers_of_tasks, read_trackers


def publish(folder: Path, files: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Attach files to the run in every tracker, and each evaluation's metrics at the step of the adapter it measured.

    Args:
        folder: the run's folder; where it has no ``trackers.json`` nothing is done.
        files: of the run's folder, as :func:`egmf_dist.report.write_report` gives them.

    Returns:
        A line for each tracker that has them, and one for what kept others from it.

    Raises:
        EgmfError: the run's settings cannot be read.
    """
    run = Run(folder)
    known = read_trackers(run)
    if not known:
        return [], []
    if run.lock.exists():
        return [], [f"{run} is being trained: a report after its end goes to {', '.join(known)}"]
    config = load_run_config(run.config)
    trackers = Trackers(run, replace(config, logging=replace(config.logging, to=list(known))), 0)
    for split, evaluation in read_run(folder).evaluations.items():
        step = step_of(Path(str(evaluation.get("checkpoint"))).name) or 0
        trackers.add(step, numbers_of_tasks(split, evaluation["tasks"]))
    trackers.attach(files)
    # A tracker shows the run again as it stood: a report does not make a training that failed a finished one.
    trackers.close(finished=ended(read_records(run.metrics)))
    complaints = trackers.complaints()
    return [f"{name}: {where}" for name, where in trackers.where.items()], complaints
