"""One command for a GPU machine that has torch (2.11 to 2.13) and Triton (3.6 to 3.9) and nothing else of ours.

    python kernels/benchmarks/gpu_check.py --out DIR [--seconds 500] [--no-tune] [--trace] [--commit ID]

Ceilings, correctness gate, tuning of this architecture's tile table, measurement with the result; everything lands in
DIR. Exit code 0 only if the whole gate ran and everything that ran is correct; 1 if not; 2 if this machine cannot.
``--rehearse`` runs the same code on the CPU in Triton's interpreter, tiny and without any time.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="check, tune and measure the kernels on this machine's GPU")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is found")
    parser.add_argument("--seconds", type=float, default=500.0, help="time budget (default 500)")
    parser.add_argument("--no-tune", action="store_true", help="measure with the shipped tile table")
    parser.add_argument("--trace", action="store_true", help="also write a Chrome trace per operator")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, interpreted, tiny, without times")
    parser.add_argument("--workers", type=int, help="processes that check and compile; 0 for none beside this one")
    parser.add_argument("--commit", default="", help="commit to record where there is no git checkout")
    options = parser.parse_args(arguments)
    if options.out.exists() and not options.out.is_dir():
        print(f"--out {options.out}: is a file; it must be a folder", file=sys.stderr)
        return 2
    if not options.seconds > 0 or (options.workers is not None and options.workers < 0):
        print("--seconds must be above 0 and --workers at least 0", file=sys.stderr)
        return 2
    if options.rehearse:
        # Triton reads this when it is first imported.
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        from egmf_kernels.bench import measure, measure_rows
    except ImportError as missing:
        print(f"{missing.name} is missing; torch 2.11 to 2.13 and Triton 3.6 to 3.9 are needed", file=sys.stderr)
        return 2
    try:
        summary = measure.measure_all(
            options.out,
            seconds=options.seconds,
            trace=options.trace,
            rehearse=options.rehearse,
            tuned=not options.no_tune,
            workers=options.workers,
            commit=options.commit,
        )
    except RuntimeError as problem:
        print(f"cannot go on: {str(problem).strip().splitlines()[0]}", file=sys.stderr)
        return 2
    print("\n".join(measure_rows.short_table(summary)))
    return 0 if summary["correct"] else 1


if __name__ == "__main__":
    sys.exit(main())
