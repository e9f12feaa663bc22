"""The templates for queues and clusters, checked as far as a machine without them can."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from egmf_launcher.cli import parse

TEMPLATES = Path(__file__).parents[2] / "launcher" / "templates"
SRUN = """#!/bin/sh
# Two tasks, as srun starts them; its exit code is the largest of theirs.
while case $1 in --*) true ;; *) false ;; esac; do shift; done
worst=0
for task in 0 1; do
  SLURM_PROCID=$task SLURM_NTASKS=2 SLURM_LOCALID=$task "$@" || worst=$?
done
exit $worst
"""
PYTHON = """#!/bin/sh
echo "$RANK of $WORLD_SIZE, local $LOCAL_RANK, $MASTER_ADDR:$MASTER_PORT: $*" >> "$PLACE/ranks"
exit "$CODE"
"""
SCONTROL = """#!/bin/sh
echo "$*" >> "$PLACE/asked"
case $1 in show) printf 'n1\\nn2\\n' ;; esac
"""


def test_slurm_script_is_sound_shell() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (Debian: shellcheck)")
    done = subprocess.run(["shellcheck", str(TEMPLATES / "slurm.sbatch")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("code", "ends", "queued"), [(0, 0, False), (75, 0, True), (2, 2, False)])
def test_slurm_script_starts_ranks_and_queues_again(tmp_path: Path, code: int, ends: int, queued: bool) -> None:
    """With stand-ins for srun, scontrol and python: what each rank is told, and what an exit code leads to."""
    for name, text in (("srun", SRUN), ("python", PYTHON), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PLACE": str(tmp_path), "CODE": str(code)}
    environ |= {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "n[1-2]", "EGMF_RUN": "runs/a b"}
    done = subprocess.run(["bash", str(TEMPLATES / "slurm.sbatch")], env=environ, capture_output=True, text=True)
    assert done.returncode == ends, done.stderr
    started = "n1:23456: launcher/train.py --config large.yaml --run runs/a b --resume auto"
    assert (tmp_path / "ranks").read_text().splitlines() == [f"{r} of 2, local {r}, {started}" for r in (0, 1)]
    assert ("requeue 123456" in (tmp_path / "asked").read_text()) == queued


def test_kuberay_job() -> None:
    job = yaml.safe_load((TEMPLATES / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[0] == "egmf"
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    workers = int(words[words.index("--workers") + 1])
    fewest = int(words[words.index("--launch.min_workers") + 1])
    assert workers == group["maxReplicas"] * int(limits["nvidia.com/gpu"])
    assert fewest == group["minReplicas"] * int(limits["nvidia.com/gpu"])
    words.remove("--config")
    words.remove("large.yaml")
    parse(words[1:])


def test_the_versions_named_are_ours() -> None:
    import ray

    for name in ("Dockerfile", "kuberay.yaml"):
        assert ray.__version__ in (TEMPLATES / name).read_text()
    assert f"py{sys.version_info.major}{sys.version_info.minor}" in (TEMPLATES / "Dockerfile").read_text()
