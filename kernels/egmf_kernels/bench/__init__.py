"""What the kernels cost: predicted without a GPU (:mod:`.static`), measured with one (:mod:`.measure`).

Both write ``summary.json``: ``kind`` ("predicted" or "measured"), ``label``, ``machine``, ``versions``, ``commit``,
``date``, ``rows`` (one a case), and whatever else the kind has to say.
"""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def provenance() -> dict[str, Any]:
    """Where and from what a report comes: ``machine``, ``versions``, ``commit``, ``date`` (UTC)."""
    import torch
    import triton

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "machine": f"{platform.system()} {platform.machine()}, {device}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__},
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def commit() -> str:
    """The commit of the checkout this file belongs to, ``+`` behind it where files were changed, else "unknown"."""
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie in another checkout
    return (tracked and _git("describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*")) or "unknown"


def _git(*arguments: str) -> str:
    """What git says, or nothing where it fails."""
    try:
        said = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""
