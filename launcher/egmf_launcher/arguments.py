"""Command lines as lists of words, before anything parses them."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def without_options(arguments: Sequence[str], names: Collection[str]) -> list[str]:
    """The command line without the options ``names`` and their values, as ``--name VALUE`` or ``--name=VALUE``."""
    rest: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in names:
            skip = True
        elif not argument.startswith(tuple(f"{name}=" for name in names)):
            rest.append(argument)
    return rest
