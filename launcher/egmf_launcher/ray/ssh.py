"""A command of this interpreter's on another machine, through ssh."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from egmf_launcher.ray.environment import FORWARDED_PREFIXES


def remote_command(host: str, words: Sequence[str], gpus: Sequence[int] = ()) -> list[str]:
    """``python WORDS`` on a host. What the far shell reads is quoted; ``--`` ends ssh's options.

    Args:
        host: its name, as :func:`egmf_launcher.hostfile.parse_hostfile` let it through.
        words: what follows the interpreter, whose path must be the same there.
        gpus: which of that machine's it shall see; all without any.
    """
    forwarded = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(FORWARDED_PREFIXES))
    if gpus:
        forwarded.append(f"CUDA_VISIBLE_DEVICES={','.join(map(str, gpus))}")
    options = ["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15"]
    return ["ssh", *options, "--", host, shlex.join(["env", *forwarded, sys.executable, *words])]
