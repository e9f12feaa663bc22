"""Errors whose message is the one line that the command line prints: what a user mends, and what a machine did."""

from __future__ import annotations

import errno

_OF_MACHINES = (
    errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNREFUSED,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ESHUTDOWN, errno.ENOMEM,
)  # fmt: skip


class EgmfError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what would be right."""


class MachineError(RuntimeError):
    """A machine failed, not its user: a process of it was killed, or its disk or file server does not answer. The
    message is one line. Started again it may go well, so who supervises a training starts it again."""


def is_machines(error: BaseException | None) -> bool:
    """Whether the system's error is of the kind that may be gone after a restart, on another machine above all; no
    room, no permission and no such file are not."""
    return isinstance(error, OSError) and error.errno in _OF_MACHINES
