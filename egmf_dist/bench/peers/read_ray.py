"""Ray Data's ``read_webdataset`` over the same tars; ``workers`` is the number of cores that Ray may use."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import ray
import ray.data
from protocol import Batch, Passes, pack, serve


def open_reader(arguments: dict[str, Any], folder: str) -> Passes:
    """Passes over the tars ``files``, each a run of Ray's streaming execution; ``folder`` is for its logs."""
    ray.init(
        address="local",
        num_cpus=arguments["workers"],
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=folder,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.read_webdataset(arguments["files"])

    def one_pass() -> Iterator[Batch]:
        for rows in dataset.iter_batches(batch_size=arguments["batch"], prefetch_batches=4):
            yield pack(list(rows["json"]), list(rows["audio.npy"]), list(rows["vision.npy"]))

    return one_pass


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        serve(partial(open_reader, folder=folder), packages=["ray"])
        ray.shutdown()
