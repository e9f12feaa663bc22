"""Hosts that see other things under the same paths are found before anything is trained."""

from __future__ import annotations

import re
import shutil

import pytest

from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.jobs import TrainJob
from egmf_dist.run.folder import Run, open_run
from egmf_shards import synthesize


@pytest.mark.distributed
def test_another_content_on_a_host(random_backbone, run_ranks, tmp_path) -> None:
    """Both ranks end with the same line, and nothing is written."""
    synthesize(tmp_path / "demo", seed=0, samples=60)
    config = Config(
        data=DataConfig(shards=[str(tmp_path / "demo")]),
        backbone=BackboneConfig(path=str(random_backbone), lora_rank=4),
        model=ModelConfig(width=32, heads=2),
        training=TrainingConfig(steps=2, global_batch=4, micro_batch=2, precision="fp32"),
    )
    run = Run(tmp_path / "run")
    open_run(config, run, "never")
    shutil.copytree(run.folder, f"{run.folder}-copied")  # as a login host's folder on each node's own disk
    said = run_ranks("seen_otherwise.py", 2, TrainJob(run.folder, config))
    other = r"is not the same on every host: rank 1 on \S+ sees other content than rank 0 on "
    assert re.match(f"the run's folder {re.escape(str(run.folder))} {other}", said["run"])
    assert re.match(f"the run's folder {re.escape(str(run.folder))} {other}", said["copy"])
    assert [path.name for path in run.folder.iterdir()] == [run.config.name]
    assert re.match(f"the backbone {re.escape(str(random_backbone))} {other}", said["backbone"])
    assert said["watched"] == "['egmf-health']"  # a rank may hang while it loads its model, too
    assert said["data"] == "data/x: no such folder"
    assert not run.metrics.exists()
    assert not run.manifest.exists()
