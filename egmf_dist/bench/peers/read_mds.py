"""MosaicML streaming: the samples written as MDS shards, read from the local folder without shuffling.

In two ways: as its StreamingDataset streams them, and by number (``dataset[i]``) through a plain DataLoader, which
leaves out its threads and its order that resumes.
"""

from __future__ import annotations

import importlib.machinery
import shutil
import sys
import types
from pathlib import Path
from typing import Any

from protocol import Batch, Passes, pack, serve
from tars import read_samples
from torch.utils.data import DataLoader, Dataset


def stand_in_for_torchvision() -> None:
    """streaming imports torchvision for its image data sets alone, and its wheels fit no torch without CUDA."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        print(f"torchvision cannot be imported ({error}); an empty stand-in takes its place", file=sys.stderr)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        stand_ins: dict[str, dict[str, Any]] = {
            "torchvision": {"__version__": "0.0"},
            "torchvision.datasets": {"VisionDataset": object},
            "torchvision.transforms": {},
            "torchvision.transforms.functional": {"to_tensor": None},
        }
        for name, contents in stand_ins.items():
            module = types.ModuleType(name)
            module.__dict__.update(contents)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
            sys.modules[name] = module


stand_in_for_torchvision()

from streaming import MDSWriter, StreamingDataset  # noqa: E402


def prepare(arguments: dict[str, Any]) -> None:
    """Write the samples of the tars in ``source`` as MDS into ``data``."""
    columns = {"json": "json", "audio": "ndarray:float32", "vision": "ndarray:float32"}
    folder = Path(arguments["data"])
    shutil.rmtree(folder, ignore_errors=True)
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for facts, audio, vision in read_samples(Path(arguments["source"])):
            writer.write({"json": facts, "audio": audio, "vision": vision})


def collate(samples: list[dict[str, Any]]) -> Batch:
    """The samples of one batch, packed."""
    return pack([s["json"] for s in samples], [s["audio"] for s in samples], [s["vision"] for s in samples])


class ByNumber(Dataset[dict[str, Any]]):
    """Random access alone."""

    def __init__(self, dataset: StreamingDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return int(self.dataset.num_samples)

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample: dict[str, Any] = self.dataset[i]
        return sample


def open_reader(arguments: dict[str, Any]) -> Passes:
    """Passes over the MDS folder ``data``; ``by_number`` chooses the way."""
    batch, workers = arguments["batch"], arguments["workers"]
    stream = StreamingDataset(local=arguments["data"], shuffle=False, batch_size=batch)
    dataset = ByNumber(stream) if arguments["by_number"] else stream
    loader = DataLoader(
        dataset, batch_size=batch, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate
    )
    return lambda: iter(loader)


if __name__ == "__main__":
    serve(open_reader, prepare, packages=["mosaicml-streaming"])
