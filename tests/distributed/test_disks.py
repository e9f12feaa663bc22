"""A disk that is full for a while, and one that turns read-only for good, under a training of two ranks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from run_records import steps_of

from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.jobs import TrainJob
from egmf_dist.run.checkpoints import verify
from egmf_dist.run.folder import Run, open_run
from egmf_dist.run.records import read_records
from egmf_shards import synthesize


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 24 MiB with ext4, which turns read-only at its first error."""
    if os.geteuid() != 0:
        pytest.skip("a small disk needs root, to mount it")
    place, image = tmp_path / "disk", tmp_path / "image"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(24 * 2**20)
    commands = (
        ["mkfs.ext4", "-q", "-m", "0", str(image)],
        ["mount", "-o", "loop,errors=remount-ro", str(image), str(place)],
    )
    for command in commands:
        try:
            subprocess.run(command, capture_output=True, text=True, check=True)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a small disk cannot be made here: {getattr(error, 'stderr', '') or error}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def turn_read_only(place) -> None:
    """As the kernel does where the device below fails."""
    device = os.stat(place).st_dev
    name = Path(os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")).name
    Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("1")


@pytest.mark.distributed
def test_training_goes_on_while_the_disk_takes_nothing(random_backbone, start_ranks, small_disk, tmp_path) -> None:
    synthesize(tmp_path / "demo", seed=0, samples=80)
    config = Config(
        data=DataConfig(shards=[str(tmp_path / "demo")]),
        backbone=BackboneConfig(path=str(random_backbone), lora_rank=4),
        model=ModelConfig(width=32, heads=2),
        training=TrainingConfig(
            steps=100_000, global_batch=4, micro_batch=2, precision="fp32", validate_every=4, validation_samples=4,
            checkpoint_every=3, log_every=1,
        ),
    )  # fmt: skip
    run = Run(small_disk / "run")
    open_run(config, run, "never")
    ballast = small_disk / "ballast"

    with start_ranks("training_run.py", 2, TrainJob(run.folder, config)) as (ranks, result_of):

        def come(what) -> None:
            until = time.monotonic() + 90
            while not what():
                assert time.monotonic() < until
                assert [rank.poll() for rank in ranks] == [None, None]
                time.sleep(0.1)

        def newest() -> int:
            return max(run.saved_checkpoints(), default=0)

        come(lambda: newest() >= 3 and run.best.is_file())
        fill(ballast)
        time.sleep(0.5)  # what was under way
        before = newest()
        time.sleep(5)
        assert newest() in (before, before + 3)
        verify(run.checkpoint(newest()))
        ballast.unlink()
        come(lambda: newest() > before + 3)
        steps = steps_of(run)
        assert steps == list(range(1, steps[-1] + 1))  # lines that waited came in their order
        said = [r["message"] for r in read_records(run.metrics) if r["kind"] == "warning"]
        without = [m for m in said if m.startswith("training goes on without a new checkpoint: ")]
        assert any("No space left on device" in m for m in without), said

        turn_read_only(small_disk)
        time.sleep(5)
        assert [rank.poll() for rank in ranks] == [None, None]
        ranks[0].send_signal(signal.SIGTERM)
        # Told to stop, it must save, and cannot: an error, and what is there is sound.
        assert [rank.wait(60) for rank in ranks] == [1, 1]
        log = result_of.log(0)
        assert f"warning: {run.metrics} cannot be written (Read-only file system); its lines wait until it can" in log
        assert re.search(r"EgmfError: .*Read-only file system", log)
    verify(run.checkpoint(newest()))


def fill(ballast) -> None:
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
