"""Parts that a setting chooses by name, the user's own among them.

A name is one of ours, or ``MODULE:NAME`` of an importable module: so that every rank, on whatever host and however it
was started, finds a user's fusion or objective without being told of it in another way than by the settings.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from egmf_dist.errors import EgmfError

T = TypeVar("T")


class Registry(Generic[T]):
    """What a setting may name.

    Args:
        setting: ``section.key``, for messages.
        known: our own parts, ``MODULE:NAME`` by the name that users write; imported when they are asked for.
    """

    def __init__(self, setting: str, known: Mapping[str, str]) -> None:
        self.setting, self.known = setting, dict(known)

    def find(self, name: str) -> T:
        """The part of that name.

        Raises:
            EgmfError: there is none; says which there are.
        """
        place = self.known.get(name, name)
        module, _, attribute = place.partition(":")
        where = f"config: {self.setting} is {name!r}"
        if not module or not attribute:
            raise EgmfError(f"{where}; it must be one of {', '.join(self.known)}, or MODULE:NAME of your own")
        try:
            found: Any = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise EgmfError(f"{where}, which cannot be imported: {' '.join(str(error).split())}") from error
        return found
