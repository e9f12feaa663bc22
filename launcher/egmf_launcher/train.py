"""``egmf train`` and ``launcher/train.py``: settings, a decision, a run folder, ranks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from egmf_dist.config import Config
from egmf_dist.errors import EgmfError
from egmf_dist.jobs import TrainJob
from egmf_dist.run.folder import Run, check_run, discard_leftovers, discard_unused, open_run, renew_settings
from egmf_dist.run.lock import held
from egmf_launcher import demo
from egmf_launcher.decide import LaunchArguments
from egmf_launcher.launch import choose, launch_job, new_launch, reexecute_under_deepspeed


def train(
    config: Config | None,
    folder: Path,
    resume: str,
    launch: LaunchArguments,
    arguments: Sequence[str],
    prepare_demo: bool,
) -> dict[str, Any] | int:
    """Train a run from its settings.

    Args:
        config: the settings.
        folder: the run's, ``runs/NAME``.
        resume: ``never``, ``auto`` or a checkpoint's step, name or path.
        launch: what the command line says about launching.
        arguments: the command line itself, to be given on under ``--launcher deepspeed``.
        prepare_demo: make the demo's data and backbone first where they are missing.

    Returns:
        Rank 0's result, or the exit code of DeepSpeed's launcher; 0 for a rank that has nothing to do.

    Raises:
        EgmfError, ShardError: bad input.
        LaunchError: ranks could not be started, or one died.
    """
    decision = choose(launch)
    if decision.way == "leave":
        return 0
    if decision.way == "deepspeed":
        return reexecute_under_deepspeed(decision, launch.hostfile, arguments)
    assert config is not None
    settings, run, launch_token = config, Run(folder), new_launch()
    job = TrainJob(folder, settings, resume, launch_token)
    made = False

    with contextlib.ExitStack() as stack:

        def hold() -> None:
            stack.enter_context(held(run, launch_token, lambda said: print(said, flush=True)))
            discard_leftovers(run)

        def prepare() -> TrainJob:
            nonlocal made
            from egmf_dist.run.places import found_again

            # What takes no time first: a minute of preparations must not end in "that run exists".
            given = found_again(settings, run)
            if not prepare_demo:
                check_paths(given)
            check_run(given, run, resume)
            existed = run.config.is_file()
            if existed:
                hold()
            if prepare_demo:
                demo.prepare(given)
            from egmf_dist.preflight import preflight

            said = preflight(given, decision.ranks(os.environ), run, resume)
            if said is not None:
                print(f"warning: {said}", flush=True)
            if existed:
                new = False
            else:
                new = open_run(given, run, resume)
                hold()
            made = new  # and held: nobody else's by now
            changed = {} if new else renew_settings(given, run, resume)
            return replace(job, config=given, changed=changed)

        try:
            return launch_job(decision, job, settings.launch, prepare=prepare)
        except BaseException:
            # What only the ranks could find out (damaged weights, a host that lacks the folder) must not use up the
            # name.
            if made:
                discard_unused(run)
            raise


def check_paths(config: Config) -> None:
    """Refuse data that is not there before a run folder is made or a rank started.

    Raises:
        EgmfError: no shards are named, or a folder of them is missing.
    """
    if not config.data.shards:
        raise EgmfError("config: data.shards is empty; name at least one folder of shards, such as [data/demo]")
    for folder in config.data.shards:
        if "://" in folder:
            continue  # preflight opens it
        if not (Path(folder) / "manifest.json").is_file():
            raise EgmfError(
                f"config: data.shards names {folder}, which holds no manifest.json; make shards with "
                "egmf shards import, or say with --data.shards where they lie now"
            )
    if not config.backbone.path:
        raise EgmfError("config: backbone.path is empty; name a folder or hub id of a causal language model")
