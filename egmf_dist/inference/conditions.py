"""An evaluation by condition: with everything, and without each modality, beside the best possible where it is known.

The terminal's table and the report's picture show these rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from egmf_dist.metrics.by_task import HEADLINE
from egmf_shards import TEXT


@dataclass(frozen=True)
class Condition:
    """One scoring of one task."""

    label: str
    """``all``, or ``without`` and what was taken away."""
    measured: float | None
    """The task's headline metric; None where it is undefined or was not measured."""
    ceiling: float | None
    """The best possible by the data's construction; None for data that was not generated."""


def conditions(evaluation: Mapping[str, Any]) -> dict[str, tuple[str, list[Condition]]]:
    """For each task its headline metric and conditions, the evaluation itself first.

    Args:
        evaluation: what ``evaluation/SPLIT.json`` holds.
    """
    gone, removed = set(evaluation.get("without", ())), evaluation.get("removed") or {}
    scorings = [(gone, evaluation), *((gone | {m}, part) for m, part in removed.items())]
    # An evaluation of before does not say which modalities its run had; the names are in what it took away.
    others = sorted((gone | removed.keys()) - {TEXT})
    modalities = evaluation.get("modalities", [TEXT, *others])
    out = {}
    for name, task in evaluation["tasks"].items():
        metric = HEADLINE[task["kind"]]
        ceilings: Mapping[str, Any] = (evaluation.get("ceilings") or {}).get(name, {})
        rows = []
        for absent, scored in scorings:
            result = scored["tasks"].get(name)
            rows.append(
                Condition(
                    label=f"without {'+'.join(m for m in modalities if m in absent)}" if absent else "all",
                    measured=result["metrics"].get(metric) if result else None,
                    ceiling=ceilings.get("+".join(m for m in modalities if m not in absent)),
                )
            )
        out[name] = (metric, rows)
    return out
