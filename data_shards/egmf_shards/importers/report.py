"""What an importer says when it is done: how many samples, and what was missing."""

from __future__ import annotations

import sys
from typing import Any


def say(manifest: dict[str, Any]) -> None:
    """One line per import on standard error, one per feature modality, one per modality with labels of its own."""
    counts = ", ".join(f"{split} {data['samples']}" for split, data in manifest["splits"].items())
    print(f"{manifest['dataset']}: {counts} samples", file=sys.stderr)
    for key, what in (("features", ""), ("modality_labels", " labelled alone")):
        for modality, report in manifest["source"].get(key, {}).items():
            told = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in report.items())
            print(f"{modality}{what}: {told}", file=sys.stderr)
