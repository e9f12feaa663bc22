"""Which failures are the user's to mend, which are ours, and the one line each prints.

Exit codes: 2 for bad input (a user's mistake, named with what would be right); 75 for a training that was told to stop,
has saved its checkpoint and can be started again (sysexits.h's EX_TEMPFAIL); 1 for everything else.
"""

from __future__ import annotations

import sys
import traceback

from egmf_dist.errors import EgmfError, MachineError
from egmf_media.errors import MediaError
from egmf_shards.errors import ShardError
from egmf_shards.messages import unbroken

USER_ERRORS = (EgmfError, ShardError, MediaError)
USER_EXIT = 2
FAILURE_EXIT = 1
STOPPED_EXIT = 75


class LaunchError(RuntimeError):
    """Ranks could not be started, or one died, for a reason that is not a wrong argument. The message is one line."""


SAY_IT_ALL = (*USER_ERRORS, LaunchError, MachineError)
"""Errors whose message is enough: neither their type nor a traceback explains more."""


class WorkerFailedError(LaunchError):
    """A worker died or raised something that is not the user's mistake; the message names its logs, which are kept."""


class RankError(EgmfError):
    """A user's error that a rank other than 0 met inside the job; the message begins with ``rank N: ``.

    Whatever such a rank meets before the job, rank 0 meets, too, and says.
    """


def one_line(error: BaseException) -> str:
    """The error's message without its line breaks; the type comes first where the message alone would not explain."""
    text = unbroken(str(error))
    if isinstance(error, SAY_IT_ALL) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def report(error: BaseException, *, debug: bool, program: str = "egmf") -> int:
    """Print ``program: error: ...`` on stderr (with ``debug`` the traceback before it) and return the exit code."""
    if debug:
        traceback.print_exception(error)
    hint = "" if debug or isinstance(error, SAY_IT_ALL) else " (--debug shows the traceback)"
    print(f"{program}: error: {one_line(error)}{hint}", file=sys.stderr, flush=True)
    return USER_EXIT if isinstance(error, USER_ERRORS) else FAILURE_EXIT
