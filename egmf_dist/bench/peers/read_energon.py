"""Megatron Energon over the same tars, without its shuffle buffer and without saving its state along the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    edataclass,
    get_loader,
    get_train_dataset,
    stateless,
)
from protocol import Batch, Passes, pack, serve


def prepare(arguments: dict[str, Any]) -> None:
    """Link the tars of ``source`` into ``data`` (Energon adds files of its own) and index them."""
    folder = Path(arguments["data"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for tar in sorted(Path(arguments["source"]).glob("*.tar")):
        os.link(tar, folder / tar.name)
    command = [
        sys.executable, "-c", "from megatron.energon.cli.main import main; main()", "prepare", "--non-interactive",
        "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", "--num-workers", "2", str(folder),
    ]  # fmt: skip
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


@edataclass
class Clip(Sample):
    """A sample as it is decoded."""

    facts: dict[str, Any]
    audio: Any
    vision: Any


@stateless
def cook(sample: dict[str, Any]) -> Clip:
    """Energon wants a dataclass of its own."""
    return Clip(
        **basic_sample_keys(sample), facts=sample["json"], audio=sample["audio.npy"], vision=sample["vision.npy"]
    )


class Pack(DefaultTaskEncoder):
    """Batches as the other readers make them."""

    cookers = [Cooker(cook)]  # noqa: RUF012  (Energon's own convention)

    def batch(self, samples: list[Clip]) -> Batch:
        """The samples of one batch, packed."""
        return pack([s.facts for s in samples], [s.audio for s in samples], [s.vision for s in samples])

    def encode_batch(self, batch: Batch) -> Batch:
        """Nothing more."""
        return batch


def open_reader(arguments: dict[str, Any]) -> Passes:
    """Passes over the prepared folder ``data``."""
    dataset = get_train_dataset(
        arguments["data"],
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=arguments["workers"]),
        batch_size=arguments["batch"],
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=Pack(),
        repeat=False,
    )
    loader = get_loader(dataset, watchdog_timeout_seconds=None)
    return lambda: iter(loader)


if __name__ == "__main__":
    serve(open_reader, prepare, packages=["megatron-energon"])
