"""What an importer prints when it is done: how many samples, what was missing, what was repaired or guessed."""

from __future__ import annotations

import sys
from typing import Any


def print_summary(manifest: dict[str, Any]) -> None:
    """Lines on standard error: one per import, some per feature modality, one per modality with labels of its own."""
    counts = ", ".join(f"{split} {data['samples']}" for split, data in manifest["splits"].items())
    source = manifest["source"]
    lines = [f"{manifest['dataset']}: {counts} samples"]
    for key, what in (("features", ""), ("modality_labels", " labelled alone")):
        for modality, report in source.get(key, {}).items():
            counted = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in report.items())
            lines.append(f"{modality}{what}: {counted}")
    for modality in source.get("features", {}):
        if not manifest["streams"].get(modality, {}).get("dim"):
            lines.append(f"{modality}: not one clip has it")
    for modality, sides in source.get("padding", {}).items():
        lines += [f"{modality}: {file} is padded at the {side}" for file, side in sides.items()]
    for modality, files in source.get("unreadable", {}).items():
        lines += [f"{modality}: unreadable, so absent: {file}" for file in files]
    print("\n".join(lines), file=sys.stderr)
