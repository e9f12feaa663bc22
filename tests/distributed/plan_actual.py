"""One rank of a training that is counted as :mod:`egmf_dist.scale.rehearsal` counts a rehearsed one.

argv[1] holds ``{name: config}``, argv[2] gets ``{name: facts}``. Bytes alive are MemTracker's.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import warnings

import torch
from torch.distributed._tools.mem_tracker import MemTracker

from egmf_dist import distributed
from egmf_dist.build import build_egmf
from egmf_dist.distributed import process_group
from egmf_dist.ledger import Ledger
from egmf_dist.scale import rehearsal
from egmf_dist.scale.subject import read_subject


class Tracker(MemTracker):
    """MemTracker without its statistics by module, which take no frozen parameter."""

    def _pre_fw_hook(self, *arguments):
        pass

    _post_fw_hook = _pre_bw_hook = _post_bw_hook = _pre_fw_hook


def main() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)
    jobs = torch.load(sys.argv[1], weights_only=False)
    with process_group():  # DeepSpeed keeps the first group for ever, so every job shares it
        results = {name: measure(config) for name, config in jobs.items()}
        if distributed.rank() == 0:
            torch.save(results, sys.argv[2])


def measure(config):
    with read_subject(config) as subject:
        plays = rehearsal.Plays(subject, distributed.world_size(), distributed.rank())
        tracker, took = Tracker(), []

        def make():
            model = build_egmf(subject.config, subject.capabilities, subject.data)
            tracker.track_external(model)  # what is loaded from a file passes no dispatcher
            return model

        real = rehearsal.train_step

        def watched(engine, batches, valid, device):
            """Each step's peak on its own, by MemTracker."""
            tracker._peak_mem.clear()
            began = time.perf_counter()
            sums = real(engine, batches, valid, device)
            took.append((sum(tracker._peak_mem.values()), time.perf_counter() - began))
            return sums

        rehearsal.train_step = watched
        try:
            with tracker, Ledger(work=False) as ledger:
                found = rehearsal.take_steps(plays, ledger, make)
        finally:
            rehearsal.train_step = real
    gc.collect()
    return {
        **vars(found),
        "bytes_by_kind": found.step.bytes_by_kind,
        "tracked_peak": took[-2][0],
        "tracked_longest": took[-1][0],
        "seconds": took[-2][1],
    }


main()
os._exit(0)
