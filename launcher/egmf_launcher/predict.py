"""``egmf predict``: the same launching as evaluation where there are several ranks; alone in this process otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egmf_dist.config import LaunchConfig
from egmf_dist.errors import EgmfError
from egmf_dist.files import write_json_lines
from egmf_dist.jobs import PredictJob
from egmf_launcher.arguments import CommandLine
from egmf_launcher.decide import LaunchArguments
from egmf_launcher.launch import choose, is_silent_rank, launch_job, new_launch, reexecute_under_deepspeed

_NOTES = {
    "truth_unused": "{} have a label or value that is no truth here",
    "context_lacks": "{} were answered with a context that may lack something",
}


@dataclass(frozen=True)
class How:
    """What is asked, and of which LLM."""

    split: str = "test"
    """of the shards"""
    tasks: str | None = None
    """comma-separated; null: every task that is asked in the utterance's language"""
    backbone: str | None = None
    """where the LLM lies now; null: as the folder says"""
    run: Path | None = None
    """folder that egmf export wrote, or a run's, where what is answered is one recording"""
    text: str = ""
    """what is said in the recording"""
    transcribe: str | None = None
    """a Whisper, by folder or name on the hub, for what is said in the recording where --text does not say it"""
    trust_code: bool = False
    """code that the folder names may run: a fusion or tuning of one's own, an LLM's own files; look at it before"""
    explain: Path | None = None
    """folder for a picture and a line of JSON for each utterance: gate weights, each modality taken away, attributions
    by word and frame; some seventy passes an answer, so meant for a few lines"""


def predict(
    path: Path,
    /,
    input: Path | None = None,
    out: Path | None = None,
    how: How = How(),
    *,
    launch: LaunchArguments,
    words: CommandLine,
) -> int:
    """Answer a file of utterances, a split of shards, or one recording with a model.

    Args:
        path: folder that egmf export wrote, or a run's; with --run a recording
        input: JSON lines with text, and optionally id, speaker, language, context, dialogue, turn, task, label or
            value, clip, and .npy files by stream; or a folder of shards
        out: JSON lines to write, one an utterance; where it was begun and not finished it is gone on with
        how: what is asked, and of which LLM.
        launch: what the command line says about launching.
        words: given on under ``--launcher deepspeed``.

    Returns:
        0, or 1 where an utterance has no answer.

    Raises:
        EgmfError, ShardError: the model cannot be loaded, the input cannot be read, or the output is another's.
    """
    if how.run is not None:
        if input is not None or how.explain is not None:
            raise EgmfError("predict: --run takes one recording, without --input and --explain; leave --run out")
        return predict_clip(path, how, out)
    if input is None or out is None:
        raise EgmfError("predict: --input and --out are needed; or a recording with --run MODEL")
    if how.text or how.transcribe is not None:
        raise EgmfError("predict: --text and --transcribe are what is said in a recording; they need --run MODEL")
    decision = choose(launch)
    if decision.way == "leave":
        return 0
    if decision.way == "deepspeed":
        return reexecute_under_deepspeed(decision, launch.hostfile, words)
    chosen = None if how.tasks is None else [name for name in how.tasks.split(",") if name]
    job = PredictJob(path, input, out, how.split, chosen, how.backbone, new_launch(), how.explain, how.trust_code)
    # Alone it joins no process group: who only answers needs no DeepSpeed.
    result = job(console=True) if decision.way == "single" else launch_job(decision, job, LaunchConfig())
    if not is_silent_rank():
        say(result, out)
        if how.explain is not None and how.explain.is_dir():
            print(f"explanations: {how.explain}")
    return 1 if result["failed"] else 0


def predict_clip(clip: Path, how: How, out: Path | None) -> int:
    """Answer one recording, in this process; its answers on standard output, with ``out`` also as a line of JSON.

    Raises:
        EgmfError: the model cannot be loaded, or the recording cannot be used.
    """
    from egmf_dist.inference.model import load
    from egmf_dist.inference.predict import row_of

    assert how.run is not None
    if out is not None and out.exists():
        raise EgmfError(f"--out {out}: it exists; name another file, or remove it first")
    model = load(how.run, backbone=how.backbone, trust_code=how.trust_code)
    chosen = None if how.tasks is None else [name for name in how.tasks.split(",") if name]
    text = how.text
    if how.transcribe is not None and not text.strip():
        text = words_of(clip, how.transcribe)
    answers = model.predict(text, clip=clip, tasks=chosen)
    for stream, made in answers[0].made_by.items():
        print(f"{stream}: {made}")
    for stream in answers[0].absent:
        print(f"{stream}: absent{f', {reason}' if (reason := answers[0].why_absent.get(stream)) else ''}")
    for answer in answers:
        number = "" if answer.value is None else f" {answer.value:.3f}"
        others = sorted(answer.probabilities.items(), key=lambda pair: -pair[1])[:5]
        likeliest = ", ".join(f"{word} {p:.3f}" for word, p in others)
        print(f"{answer.task}:{number} {likeliest} ({'calibrated' if answer.calibrated else 'not calibrated'})")
    if out is not None:
        write_json_lines(out, [row_of(clip.stem, answers)])
    return 0


def words_of(clip: Path, model: str) -> str:
    """What is said in a recording, empty where nothing is; says by which model, or why there is nothing.

    Raises:
        MediaError: the model is none, or the recording cannot be read.
    """
    from egmf_media.encoders.whisper import Transcriber
    from egmf_media.errors import AbsentError
    from egmf_media.limits import Limits

    transcriber = Transcriber(model)
    try:
        found = transcriber.read(clip, Limits())
    except AbsentError as error:
        print(f"text: absent, {error}, by {transcriber.name}")
        return ""
    print(f"text: {found.text!r}, {found.language or 'its one language'}, by {found.model}")
    return found.text


def say(result: Mapping[str, Any], out: Path) -> None:
    """How it went, on standard output."""
    answered = result["lines"] - result["before"]
    earlier = f", {result['before']} by an earlier start" if result["before"] else ""
    print(f"{out}: {result['lines']} utterances{earlier}; {answered / max(result['seconds'], 1e-9):.1f} a second")
    for name, own in result["metrics"].items():
        figures = ", ".join(f"{metric} {value:.3f}" for metric, value in own["metrics"].items() if value is not None)
        how = "calibrated" if own["calibrated"] else "not calibrated"
        print(f"{name}, {own['n']} with a truth: {figures} (answers are {how})")
    for what, (times, first) in result["notes"].items():
        print(f"warning: {_NOTES[what].format(times)}, the first: {first}")
    if result["failed"]:
        print(f"warning: {result['failed']} could not be answered, the first: {result['first_error']}")
