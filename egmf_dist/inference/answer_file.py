"""``egmf predict`` in one rank: the model, the source, a progress bar."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from egmf_dist import distributed
from egmf_dist.inference.model import load
from egmf_dist.inference.predict import predict_file
from egmf_dist.inference.sources import open_source

if TYPE_CHECKING:
    from egmf_dist.jobs import PredictJob


def answer_file(job: PredictJob, console: bool) -> dict[str, Any]:
    """Load the model and answer; every rank must call this.

    Returns:
        :class:`egmf_dist.inference.predict.Done` as a dictionary, and ``seconds``.

    Raises:
        EgmfError, ShardError: the model cannot be loaded, the input cannot be read, or the output is another's.
    """
    with distributed.failing_together(), distributed.alone():
        source = open_source(job.source, job.split)
        model = load(job.model, backbone=job.backbone, device=distributed.device(), trust_code=job.trust_code)
        source.check(model, job.tasks)
    if console:
        print(model, flush=True)
    columns = (TextColumn("answering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    start = time.perf_counter()
    with Progress(*columns, console=Console(stderr=True), disable=not (console and sys.stderr.isatty())) as bar:
        task = bar.add_task("", total=None)
        done = predict_file(
            model,
            source,
            job.out,
            job.tasks,
            lambda done, total: bar.update(task, completed=done, total=total),
            job.explain,
        )
    return asdict(done) | {"seconds": time.perf_counter() - start}
