"""Command lines as lists of words, and taking options out of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

RANK_OPTIONS = ("--local_rank", "--local-rank")
"""What DeepSpeed's launcher adds to the command line of each rank; LOCAL_RANK in the environment says the same."""


class CommandLine(tuple[str, ...]):
    """Everything after ``egmf``, for a verb that starts itself again: as a parameter it makes no option."""


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
