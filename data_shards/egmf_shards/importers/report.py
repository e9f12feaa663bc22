"""What an importer says when it is done: how many samples, and what was missing."""

from __future__ import annotations

import sys
from typing import Any


def say(manifest: dict[str, Any]) -> None:
    """One line per import on standard error, and one per feature folder."""
    counts = ", ".join(f"{split} {data['samples']}" for split, data in manifest["splits"].items())
    print(f"{manifest['dataset']}: {counts} samples", file=sys.stderr)
    for modality, report in manifest["source"].get("features", {}).items():
        print(
            f"{modality}: " + ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in report.items()), file=sys.stderr
        )
