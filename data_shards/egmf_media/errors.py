"""The one error that this package raises for a user's mistake or a broken file; and that a clip lacks a modality."""

from __future__ import annotations

from typing import Any


class MediaError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what would be right."""


class AbsentError(Exception):
    """The clip does not have the modality; why. Nothing is wrong with it."""

    def __init__(self, reason: str, counts: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.counts = counts or {}
