"""``egmf predict``: the same launching as evaluation where there are several ranks; alone in this process otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egmf_dist.config import LaunchConfig
from egmf_dist.jobs import PredictJob
from egmf_launcher.arguments import CommandLine
from egmf_launcher.decide import LaunchArguments
from egmf_launcher.launch import choose, is_silent_rank, launch_job, new_launch, reexecute_under_deepspeed


def predict(
    path: Path,
    /,
    input: Path,
    out: Path,
    split: str = "test",
    tasks: str | None = None,
    backbone: str | None = None,
    *,
    launch: LaunchArguments,
    words: CommandLine,
) -> int:
    """Answer a file of utterances, or a split of shards, with a model.

    Args:
        path: folder that egmf export wrote, or a run's
        input: JSON lines with text, and optionally id, speaker, language, context, dialogue, label or value, and .npy
            files by stream; or a folder of shards
        out: JSON lines to write, one an utterance; where it was begun and not finished it is gone on with
        split: of the shards
        tasks: comma-separated; null: every task that is asked in the utterance's language
        backbone: where the LLM lies now; null: as the folder says
        launch: what the command line says about launching.
        words: given on under ``--launcher deepspeed``.

    Returns:
        0, or 1 where an utterance has no answer.

    Raises:
        EgmfError, ShardError: the model cannot be loaded, the input cannot be read, or the output is another's.
    """
    decision = choose(launch)
    if decision.way == "leave":
        return 0
    if decision.way == "deepspeed":
        return reexecute_under_deepspeed(decision, launch.hostfile, words)
    chosen = None if tasks is None else [name for name in tasks.split(",") if name]
    job = PredictJob(path, input, out, split, chosen, backbone, new_launch())
    # Alone it joins no process group: who only answers needs no DeepSpeed.
    result = job(console=True) if decision.way == "single" else launch_job(decision, job, LaunchConfig())
    if not is_silent_rank():
        say(result, out)
    return 1 if result["failed"] else 0


def say(result: Mapping[str, Any], out: Path) -> None:
    """How it went, on standard output."""
    answered = result["lines"] - result["before"]
    earlier = f", {result['before']} by an earlier start" if result["before"] else ""
    print(f"{out}: {result['lines']} utterances{earlier}; {answered / max(result['seconds'], 1e-9):.1f} a second")
    for name, own in result["metrics"].items():
        figures = ", ".join(f"{metric} {value:.3f}" for metric, value in own["metrics"].items() if value is not None)
        print(f"{name}, {own['n']} with a truth: {figures}")
    if result["failed"]:
        print(f"warning: {result['failed']} could not be answered, the first: {result['first_error']}")
