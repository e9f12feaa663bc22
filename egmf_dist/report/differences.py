"""Whether two runs differ: their predictions on the same samples, by a paired bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from egmf_dist.data.run_data import RunData
from egmf_dist.metrics.bootstrap import compare
from egmf_dist.metrics.by_task import HEADLINE
from egmf_dist.model.adapter import describe_best
from egmf_dist.report.read import read_run
from egmf_dist.run.folder import Run

ALPHA = 0.05
"""A difference with a smaller p is called one."""


def differences(run: Path, others: Sequence[Path]) -> list[dict[str, Any]]:
    """For each other run, split and task that both have predictions of, the difference of the headline metric.

    Args:
        run: a run's folder.
        others: runs that it is compared with.

    Returns:
        Rows of ``other``, ``split``, ``task``, ``n`` (samples that both answered), ``metric``, ``difference`` (the
        run's minus the other's), ``interval`` (95 %), ``p`` and ``differs``; with too few dialogues the first two are
        None.

    Raises:
        EgmfError: a folder is no run, has no adapter yet, or was evaluated on other data.
    """
    found: list[dict[str, Any]] = []
    if not others:
        return found
    own = read_run(run)
    for other in others:
        theirs = read_run(other)
        shared = sorted(set(own.predictions) & set(theirs.predictions))
        tasks = RunData.from_json(describe_best(Run(run))[1]["data"]).tasks if shared else {}
        for split in shared:
            for name, task in tasks.items():
                result = compare(task, own.predictions[split], theirs.predictions[split])
                metric = HEADLINE[task.kind]
                if metric in result["metrics"]:
                    known = result["metrics"][metric]
                    row = {"other": str(other), "split": split, "task": name, "n": result["n"], "metric": metric}
                    found.append(row | known | {"differs": known["p"] is not None and known["p"] < ALPHA})
    return found


def sentence(row: dict[str, Any]) -> str:
    """One of them in words."""
    what = f"{row['split']}, {row['task']}: {row['metric']} {row['difference']:+.3f} against {row['other']}"
    if row["p"] is None:
        return f"{what} ({row['n']} samples): too few dialogues to say whether that is a difference"
    low, high = row["interval"]
    verdict = "a difference" if row["differs"] else "no difference that the samples show"
    return f"{what} (95 %: {low:+.3f} to {high:+.3f}, p {row['p']:.3f}, {row['n']} samples): {verdict}"
