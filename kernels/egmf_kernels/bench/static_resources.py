"""What the compiler makes of a tile table's kernels: registers, spills, shared memory, loads, matrix instructions.

    python -m egmf_kernels.bench.static_resources --arch 90 --json FILE [--width 512]

Run as a process of its own, because compiling must not happen in one that interprets.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from egmf_kernels import tiles
from egmf_kernels.tools.ahead_of_time import compile_table
from egmf_kernels.tools.formulas import Sizes


def one_width(table: dict[str, Any], width: int) -> dict[str, Any]:
    """The part of a table that bf16 tokens of one width use."""
    kernels = {}
    for kernel in table["kernels"]:
        entry = Sizes(tokens=1, width=width, element=2, batch=1, table=table).tile(kernel)
        kernels[kernel] = {"16": {str(width): entry}, "32": {}}
    return table | {"kernels": kernels}


def rows_of(architecture: int, width: int | None = None, processes: int = 2) -> list[dict[str, Any]]:
    """One row a kernel, element size and width; ``complaints`` lists the gates it fails."""
    table = tiles.load(f"sm_{architecture}")
    compiled = compile_table(table if width is None else one_width(table, width), processes=processes)
    return [asdict(kernel) | {"complaints": kernel.complaints()} for kernel in compiled]


def main() -> int:
    parser = argparse.ArgumentParser(description="resource table of the compiled kernels")
    parser.add_argument("--arch", type=int, required=True, choices=tiles.architectures())
    parser.add_argument("--width", type=int, help="only what bf16 tokens of this width use")
    parser.add_argument("--json", type=Path, required=True, help="write the rows here")
    options = parser.parse_args()
    # One core is left to whoever waits for this.
    spare = max(1, len(os.sched_getaffinity(0)) - 1)
    rows = rows_of(options.arch, options.width, processes=1 if options.width else min(spare, 8))
    options.json.write_text(json.dumps(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
