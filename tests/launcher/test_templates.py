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
SRUN = """#!/bin/bash
# Two tasks, as srun starts them: the first that ends badly has the others killed; its exit code is srun's here.
# Before a time limit it signals them.
[[ $1 == --kill-on-bad-exit=1 ]] && shift || exit 99
tasks=()
for task in 0 1; do
  SLURM_PROCID=$task SLURM_NTASKS=2 SLURM_LOCALID=$task setsid "$@" & tasks+=($!)
done
if [[ $CODE == 75 ]]; then
  until [[ -e $PLACE/ready-0 && -e $PLACE/ready-1 ]]; do sleep 0.02; done
  kill -USR1 "${tasks[@]}"
fi
worst=0
for _ in 0 1; do
  wait -n; code=$?
  ((worst)) || worst=$code
  ((code)) && for task in "${tasks[@]}"; do kill -KILL -- "-$task"; done 2> /dev/null
done
exit $worst
"""
PYTHON = """#!/bin/bash
# A rank that waits to be told to stop where it is to save, which takes rank 1 longer.
trap told=1 USR1
echo "$RANK of $WORLD_SIZE, local $LOCAL_RANK, $MASTER_ADDR:$MASTER_PORT: $*" >> "$PLACE/ranks"
touch "$PLACE/ready-$RANK"
until [[ -e $PLACE/ready-0 && -e $PLACE/ready-1 ]]; do sleep 0.02; done
if [[ $CODE == 75 ]]; then
  until [[ $told ]]; do sleep 0.02; done
  sleep "$RANK"
  touch "$PLACE/saved-$RANK"
fi
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
    script = ["bash", str(TEMPLATES / "slurm.sbatch")]
    for _ in range(2):  # queued again under the same number, in the same folder
        (tmp_path / "ranks").unlink(missing_ok=True)
        done = subprocess.run(script, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == ends, done.stderr
        assert len(list(tmp_path.glob("saved-*"))) == (2 if queued else 0), "a slower rank still saves"
        assert not list(tmp_path.glob("*.again"))
        for left in (*tmp_path.glob("saved-*"), *tmp_path.glob("ready-*")):
            left.unlink()
    started = "n1:23456: launcher/train.py --config large.yaml --run runs/a b --resume auto"
    ranks = [f"{r} of 2, local {r}, {started}" for r in (0, 1)]
    assert sorted((tmp_path / "ranks").read_text().splitlines()) == ranks
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
