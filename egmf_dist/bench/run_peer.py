"""Start one reader's script, wait for its line of JSON, leave no process of it behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egmf_dist.errors import EgmfError

SECONDS = 900.0
"""Longer than any reader needs for one process."""
# One thread a process, as in training; nothing asks the network or reports use.
QUIET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_AUTH_MODE": "disabled",
    "TOKENIZERS_PARALLELISM": "false",
}


def run_peer(
    python: Path | str,
    script: Path,
    arguments: Mapping[str, Any],
    environment: Mapping[str, str],
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """The JSON object that ``python script JSON`` prints; :mod:`.peers.protocol` says what is in both.

    Raises:
        EgmfError: it failed, printed something else or took too long; the message is the last line it wrote.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [str(python), str(script), json.dumps({**arguments, "started": time.time()})],
            env={**environment, **QUIET},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise EgmfError(f"not finished after {seconds:g} s") from error
        finally:
            _end(process)
        if process.returncode == 0:
            try:
                result = json.loads(said)
                if isinstance(result, dict):
                    return result
            except ValueError:
                pass
        errors.seek(0)
        raise EgmfError(_last_line(errors.read()) or f"exit code {process.returncode} without a message")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process's group: workers outlive a reader that is stopped."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(text: bytes) -> str:
    lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
    # The warning of multiprocessing's tracker comes after the error itself.
    said = [line for line in lines if "resource_tracker" not in line]
    return said[-1][:300] if said else ""
