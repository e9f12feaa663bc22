"""What a setting's field says beside its type: what its value must be, and what a resumed run may change.

Both stand in the field's metadata; :mod:`egmf_dist.config.check` and :mod:`egmf_dist.run.folder` ask for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

ON_RESUME = "on_resume"
"""Key of a field's metadata: ``free`` or ``place``; a field without it is fixed for a run's life."""
PLACE = {ON_RESUME: "place"}
"""Metadata of a field that says where something lies; a resumed run may name another place of the same."""

MUST = "must"
"""Key of a field's metadata: a :class:`Must`."""


class Must(NamedTuple):
    """What a value must be; null is asked nothing where the field allows it."""

    holds: Callable[[Any], bool]
    right: str
    """In words, as an error's end: ``it must be ...``."""


def at_least(bound: float, right: str | None = None) -> Must:
    """``bound`` or more."""
    return Must(lambda value: value >= bound, right or f"{bound} or more")


def above(bound: float, right: str | None = None) -> Must:
    """More than ``bound``."""
    return Must(lambda value: value > bound, right or f"above {bound}")


def within(low: float, high: float, right: str) -> Must:
    """From ``low`` to ``high``, both included."""
    return Must(lambda value: low <= value <= high, right)


def fixed(default: T, must: Must) -> T:
    """A field with a rule that a resumed run may not change."""
    value: T = field(default=default, metadata={MUST: must})
    return value


def free(default: T, must: Must | None = None) -> T:
    """A field that a resumed run may change."""
    value: T = field(default=default, metadata={ON_RESUME: "free", **({} if must is None else {MUST: must})})
    return value
