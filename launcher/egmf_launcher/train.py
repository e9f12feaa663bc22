"""``egmf train`` and ``launcher/train.py``: settings, a decision, a run folder, ranks."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from egmf_dist.config import AllSettings, Config
from egmf_dist.errors import EgmfError
from egmf_dist.jobs import TrainJob
from egmf_dist.recipes import demo
from egmf_dist.run.folder import Run, check_run, discard_leftovers, discard_unused, open_run, renew_settings
from egmf_dist.run.lock import held
from egmf_launcher.apart import goes_apart, run_apart
from egmf_launcher.arguments import CommandLine
from egmf_launcher.decide import LaunchArguments
from egmf_launcher.errors import STOPPED_EXIT
from egmf_launcher.launch import choose, is_silent_rank, launch_job, new_launch, reexecute_under_deepspeed


def train(
    run: str | None = None,
    resume: str = "never",
    *,
    launch: LaunchArguments,
    settings: AllSettings,
    words: CommandLine,
) -> dict[str, Any] | int:
    """Train a run; without a configuration and without data it is the demo's.

    Args:
        run: the run's folder; null: runs/NAME of the config file
        resume: never, auto (newest checkpoint), a checkpoint's step or its path
        launch: what the command line says about launching.
        settings: the settings.
        words: given on under ``--launcher deepspeed``.

    Returns:
        Rank 0's result, or the exit code of DeepSpeed's launcher; 0 for a rank that has nothing to do, 75 where the
        training was told to stop.

    Raises:
        EgmfError, ShardError: bad input.
        LaunchError: ranks could not be started, or one died.
    """
    if goes_apart(launch):
        return run_apart([sys.executable, *sys.orig_argv[1:]])
    is_demo = not settings.name_data
    config = settings.over(demo.config_path()) if is_demo else settings.config()
    if run == "":
        raise EgmfError("--run is empty; give the run's folder, such as runs/NAME")
    named = demo.RUN if is_demo else Path("runs", settings.file.stem if settings.file is not None else "run")
    return train_run(config, Path(os.path.normpath(run)) if run is not None else named, resume, launch, words, is_demo)


def train_run(
    settings: Config,
    folder: Path,
    resume: str,
    launch: LaunchArguments,
    words: CommandLine,
    is_demo: bool,
) -> dict[str, Any] | int:
    """Train a run from its settings; see :func:`train`. The demo's data and backbone are made where they are missing.

    Raises:
        EgmfError, ShardError: bad input.
        LaunchError: ranks could not be started, or one died.
    """
    decision = choose(launch)
    if decision.way == "leave":
        return 0
    if decision.way == "deepspeed":
        return reexecute_under_deepspeed(decision, launch.hostfile, words)
    run, launch_token = Run(folder), new_launch()
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
            if not is_demo:
                check_paths(given)
            check_run(given, run, resume)
            existed = run.config.is_file()
            if existed:
                hold()
            if is_demo:
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
            result = launch_job(decision, job, settings.launch, prepare=prepare)
        except BaseException:
            # What only the ranks could find out (damaged weights, a host that lacks the folder) must not use up the
            # name.
            if made and discard_unused(run):
                stack.close()
                with contextlib.suppress(OSError):
                    run.folder.rmdir()
            raise
    if not result.get("stopped"):
        return result
    if not is_silent_rank():
        print(f"stopped after step {result['step']}; go on with: --run {folder} --resume auto", flush=True)
    return STOPPED_EXIT


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
