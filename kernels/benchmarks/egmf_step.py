"""One EGMF training step on a GPU without DeepSpeed: is it right, where does it wait, what does it cost?

    python kernels/benchmarks/egmf_step.py --out DIR [--seconds 240] [--size 0.5b|tiny] [--batch 16]
                                           [--width 128 512 1024] [--no-trace]

A Qwen2 of 0.5B random weights with LoRA (r = 32) behind EGMF: the figures are times and errors, never accuracies. It
needs torch, triton, transformers and peft. Packages of ours that such a machine lacks and that no step uses (they read
config files and shards) are stood in for. DIR/step.json is written after each stage, so a run that is killed leaves
what it had. Exit code 0 if every stage came to its end and what must agree agrees, else 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from unittest.mock import MagicMock

ROOT = Path(__file__).resolve().parents[2]
NOT_USED_IN_A_STEP = ("jsonargparse", "orjson", "isal", "isal.igzip", "isal.isal_zlib", "webdataset", "h5py")


def make_importable() -> list[str]:
    """Put the repository on the path and stand in for what is missing; returns the names stood in for."""
    for part in ("launcher", "data_shards", "kernels", ""):
        sys.path.insert(0, str(ROOT / part))
    sys.path.insert(0, str(Path(__file__).parent))
    missing = [name for name in NOT_USED_IN_A_STEP if importlib.util.find_spec(name.partition(".")[0]) is None]
    for name in missing:
        sys.modules[name] = MagicMock()
    return missing


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="one EGMF training step: right, waiting where, costing what")
    parser.add_argument("--out", type=Path, required=True, help="folder for step.json and the traces")
    parser.add_argument("--seconds", type=float, default=240.0, help="no stage starts later than this")
    parser.add_argument("--size", default="0.5b", choices=("0.5b", "tiny"), help="of the language model")
    parser.add_argument("--batch", type=int, default=16, help="samples of a step")
    parser.add_argument("--width", type=int, nargs="+", default=[128, 512, 1024], help="widths of the fusion block")
    parser.add_argument("--no-trace", action="store_true", help="leave out the Chrome traces")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    missing = make_importable()
    import step_stages

    return step_stages.run(options, missing)


if __name__ == "__main__":
    sys.exit(main())
