"""What the input of ``egmf predict`` says is right, and of which task: what cannot be used is said, never a failure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from egmf_shards import Task
from egmf_shards.format.rules import target_fault, target_type_fault
from egmf_shards.messages import shown


class Truth(NamedTuple):
    """Of one utterance."""

    right: Mapping[str, str | float] = {}
    """By task the right answer: a label or a number; empty where none is known."""
    unused: str = ""
    """Why what was given is none; empty where nothing was given."""


def truth_of(label: Any, value: Any, name: str | None, language: str, tasks: Mapping[str, Task]) -> Truth:
    """The right answer, of the task that is named or of the only one that could have it.

    Args:
        label: a class's key as the input has it, of whatever type; None: none is given.
        value: a number, likewise.
        name: the task; None: it is not named.
        language: of the utterance: what is not asked in it is not answered.
        tasks: the model's.
    """
    if label is None and value is None:
        return Truth()
    fault = target_type_fault(label, value)
    if fault:
        return Truth(unused=fault)
    right = label if value is None else value
    if name is not None:
        if name not in tasks:
            return Truth(unused=f"task {shown(name)} is none of the model's")
        fault = target_fault(tasks[name], label, value)
        return Truth(unused=fault) if fault else Truth({name: _kept(right)})
    holding = [
        own for own, task in tasks.items() if language in task.languages and not target_fault(task, label, value)
    ]
    if len(holding) == 1:
        return Truth({holding[0]: _kept(right)})
    given = f"{'label' if value is None else 'value'} {shown(right)}"
    if holding:
        return Truth(unused=f"{given} may be the answer of {' or '.join(holding)}: name its task")
    return Truth(unused=f"{given} is no answer of a task that is asked in {language!r}")


def _kept(right: str | float) -> str | float:
    return right if isinstance(right, str) else float(right)
