"""One command for a GPU machine that has torch (2.11 to 2.13) and Triton (3.6 to 3.9) and nothing else of ours.

    python kernels/benchmarks/gpu_check.py --out DIR [--seconds 500] [--quick] [--hammer] [--stop-if-red] [--tune]
                                           [--trace] [--operator NAME] [--workers N] [--commit ID]

Correctness gate, measured ceilings, times of every case, every launch; ``--tune`` tunes this architecture's tile table
at the end. Everything lands in DIR as it comes. Exit code 0 only if the whole gate ran and everything that ran is
correct; 1 if not; 2 if this machine cannot. ``--tiny`` is the gate alone with a few tokens in one process, for
compute-sanitizer. ``--rehearse`` runs the same code on the CPU in Triton's interpreter, tiny and without any time.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description="check and measure the kernels on this machine's GPU")
    made.add_argument("--out", type=Path, required=True, help="folder for everything that is found")
    made.add_argument("--seconds", type=float, default=500.0, help="time budget (default 500)")
    made.add_argument("--quick", action="store_true", help="the gate at widths 128, 512, 1024 in bf16 and fp32 alone")
    made.add_argument("--tiny", action="store_true", help="the gate alone, a few tokens, in this process")
    made.add_argument("--hammer", action="store_true", help="60 runs of each operator at 65,536 tokens: equal bits?")
    made.add_argument("--stop-if-red", action="store_true", help="measure nothing where gate or hammer are red")
    made.add_argument("--tune", action="store_true", help="tune the tile table at the end")
    made.add_argument("--trace", action="store_true", help="also write a Chrome trace per operator")
    made.add_argument("--operator", action="append", help="only this operator; may be repeated")
    made.add_argument("--rehearse", action="store_true", help="on the CPU, interpreted, tiny, without times")
    made.add_argument("--workers", type=int, help="processes that check; 0 runs everything in this one")
    made.add_argument("--commit", default="", help="commit to record where there is no git checkout")
    return made


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    options = parser().parse_args(arguments)
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
        from egmf_kernels.bench.cases import OPERATORS
    except ImportError as missing:
        print(f"{missing.name} is missing; torch 2.11 to 2.13 and Triton 3.6 to 3.9 are needed", file=sys.stderr)
        return 2
    unknown = set(options.operator or ()) - set(OPERATORS)
    if unknown:
        print(f"--operator {min(unknown)}: must be one of {', '.join(OPERATORS)}", file=sys.stderr)
        return 2
    wanted = measure.Options(
        seconds=options.seconds,
        rehearse=options.rehearse,
        tiny=options.tiny,
        quick=options.quick,
        hammer=options.hammer,
        stop_if_red=options.stop_if_red,
        tune=options.tune,
        trace=options.trace,
        workers=options.workers,
        operators=tuple(options.operator or OPERATORS),
        commit=options.commit,
    )
    try:
        summary = measure.measure_all(options.out, wanted, functools.partial(print, flush=True))
    except RuntimeError as problem:
        print(f"cannot go on: {str(problem).strip().splitlines()[0]}", file=sys.stderr)
        return 2
    print("\n".join(measure_rows.short_table(summary)))
    return 0 if summary["correct"] else 1


if __name__ == "__main__":
    sys.exit(main())
