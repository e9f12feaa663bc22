"""What ``egmf bench plan`` measures; a module of its own, because the command line reads it without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PlanBenchOptions:
    """What is measured."""

    cases: str | None = None
    """comma-separated: small-1, small-3, wide-1, wide-3; null: all"""
    clock: Literal["wall", "cpu"] = "wall"
    """what is counted: seconds that pass, or those that a rank computes, where something else keeps the machine busy"""
    steps: int = 24
    """steps of each training that are timed, half of them with the profiler: a multiple of 4"""
