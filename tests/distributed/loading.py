"""One rank that loads backbones under ZeRO-3, and says what it got and what memory it took.

argv[1] holds ``{name: job}``, argv[2] gets ``{name: what each rank has to say}``, rank 0's first. A job has ``path``
and ``precision``; with ``present`` transformers loads the model as it does by itself, with ``fails`` the read of that
number fails, and with ``weights`` everything is gathered and said.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time

import torch
import torch.distributed as dist
from safetensors import safe_open
from watched_file import Watched

from egmf_dist import distributed
from egmf_dist.config import BackboneConfig, Config, TrainingConfig
from egmf_dist.engine import deepspeed_settings, partitioned_loading
from egmf_dist.errors import EgmfError
from egmf_dist.model import backbone, loading


def anonymous() -> int:
    """Bytes of this process that no file stands behind."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


class Peak:
    """The most of :func:`anonymous` inside, above what it was at the beginning."""

    def __enter__(self):
        gc.collect()
        self._start = self._most = anonymous()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._ended.is_set():
            self._most = max(self._most, anonymous())
            time.sleep(0.001)

    def __exit__(self, *rest):
        self._ended.set()
        self._thread.join()
        self.bytes, self.left = self._most - self._start, anonymous() - self._start


def gathered(model):
    """Every weight and buffer, whole, on rank 0, and how each weight is partitioned here."""
    from deepspeed.runtime.zero import GatheredParameters

    parameters = dict(model.named_parameters(remove_duplicate=False))
    parts = {
        name: (tuple(p.ds_shape), tuple(p.ds_tensor.shape), p.ds_tensor.dtype, p.ds_persist, p.ds_status.name, p.dtype)
        for name, p in parameters.items()
    }
    whole = {}
    for name, parameter in parameters.items():
        with GatheredParameters([parameter]):
            whole[name] = parameter.detach().clone()
    whole |= {name: buffer.clone() for name, buffer in model.named_buffers(remove_duplicate=False)}
    return {"weights": whole if distributed.rank() == 0 else None, "parts": parts, "training": model.training}


def load(job):
    config = Config(training=TrainingConfig(precision=job["precision"], zero_stage=3))
    dtype = torch.bfloat16 if job["precision"] == "bf16" else torch.float32
    by_tensor = []

    def noted(*arguments):
        model = None if job.get("present") else loading.load_by_tensor(*arguments)
        by_tensor.append(model is not None)
        return model

    backbone.load_by_tensor = noted
    reads = []

    def note(name):
        reads.append(name)
        if len(reads) == job.get("fails"):
            raise OSError("Input/output error")

    loading.safe_open = lambda *a, **k: Watched(safe_open(*a, **k), note)
    found = {}
    with partitioned_loading(config, deepspeed_settings(config, 1)):
        try:
            started = time.monotonic()
            with Peak() as peak:
                model = backbone.load_backbone(BackboneConfig(path=job["path"], tuning="frozen"), dtype)
            found = {"peak": peak.bytes, "left": peak.left, "seconds": time.monotonic() - started}
            found["by tensor"] = by_tensor == [True]
            if job.get("weights"):
                found |= gathered(model)
        except EgmfError as error:
            found["error"] = str(error)
    return found


def main() -> None:
    jobs = torch.load(sys.argv[1], weights_only=False)
    with distributed.process_group():
        results = {}
        for name, job in jobs.items():
            every = [None] * distributed.world_size()
            dist.all_gather_object(every, load(job))
            results[name] = every
        if distributed.rank() == 0:
            torch.save(results, sys.argv[2])


main()
os._exit(0)
