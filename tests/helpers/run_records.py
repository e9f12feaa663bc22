"""What a run's ``metrics.jsonl`` says, as tests compare it."""

from __future__ import annotations

from pathlib import Path

from egmf_dist.run.folder import Run
from egmf_dist.run.records import read_records


def losses(run: Path) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm of every logged step."""
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_records(run / "metrics.jsonl") if r["kind"] == "train"]


def steps_of(run: Run, kind: str = "train") -> list[int]:
    """The steps of the records of a kind; none where the run has no records yet."""
    return [r["step"] for r in read_records(run.metrics) if r["kind"] == kind] if run.metrics.is_file() else []
