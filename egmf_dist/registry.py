"""Parts that a setting chooses by name, the user's own among them.

A name is one of ours, or ``MODULE:NAME`` of a module that can be imported on every host, from the working folder too
where all hosts share it: so every rank finds a user's fusion or objective by the settings, however it was started.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from egmf_dist.errors import EgmfError
from egmf_shards.messages import unbroken

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
        if "/" in module or module.endswith(".py"):
            raise EgmfError(f"{where}; MODULE is a module's name as `import` takes it, not a file's")
        try:
            found: Any = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # a module of one's own may fail in any way as it is imported
            kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
            raise EgmfError(f"{where}, which cannot be imported: {kind}{unbroken(str(error))}") from error
        if not callable(found):
            raise EgmfError(f"{where}, which is a {type(found).__name__}; it must be a class or a function")
        return found
