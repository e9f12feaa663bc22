"""Many clips to a folder of features: what was done before is taken, the rest is done, each outcome is said.

::

    OUT/STREAM/ID.npy       float32 [frames, dim]; of a clip that has the stream
    OUT/STREAM/stream.json  frame rate and specification, which shards, checkpoints and predictions carry on
    OUT/report.jsonl        one line a clip and stream: ok, absent or failed, the reason, what was seen
    OUT/.cache/             what was extracted, by specification and the file's hash
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from egmf_media.batch.cache import Cache, file_hash
from egmf_media.batch.listing import ClipFile
from egmf_media.batch.processes import Result, Task, run_tasks
from egmf_media.errors import MediaError
from egmf_media.extract import FAILED, OK, Outcome
from egmf_media.extractors import Plan, extractors_of
from egmf_media.limits import Limits
from egmf_media.messages import one_line, write_bytes, write_json
from egmf_media.specification import STREAM, Specification, check_same, read_stream

REPORT = "report.jsonl"


@dataclass
class Summary:
    """What became of all clips."""

    clips: int
    seconds: float = 0.0
    """Of clip that were extracted in this call, the longer of sound and picture."""
    wall: float = 0.0
    """Seconds that it took."""
    cached: int = 0
    """Clips and streams that were there already."""
    by_stream: dict[str, Counter[str]] = field(default_factory=dict)
    peak: int = 0
    """The most bytes that one process held."""
    first_failure: str = ""

    @property
    def failed(self) -> int:
        """Clips and streams."""
        return sum(counter[FAILED] for counter in self.by_stream.values())


@dataclass(frozen=True)
class How:
    """How clips are worked on."""

    limits: Limits = field(default_factory=Limits)
    processes: int = 1
    cache: Path | None = None
    """Another folder than ``OUT/.cache``: several ``OUT`` may share one."""


Runner = Callable[[Sequence[Task], Plan, Limits, int], Iterator[Result]]


def extract_many(
    clips: Sequence[ClipFile],
    plan: Plan,
    out: Path,
    how: How = How(),
    progress: Callable[[int, Summary], None] = lambda done, summary: None,
    runner: Runner = run_tasks,
) -> Summary:
    """Extract every stream of every clip.

    Args:
        clips: see :func:`egmf_media.batch.listing.list_clips`.
        plan: by stream the settings of its extractor.
        out: the folder; features of the same specifications may be there.
        how: limits, processes, cache.
        progress: called after each clip with their number and what became of them so far.
        runner: who does the tasks; others than this machine's processes may.

    Raises:
        MediaError: ``out`` holds features of another specification, or cannot be written.
    """
    made = {stream: extractor.specification for stream, extractor in extractors_of(plan).items()}
    try:
        _describe(made, out)
        return _Run(clips, plan, out, made, how).run(progress, runner)
    except OSError as error:
        raise MediaError(f"{out}: cannot be written: {error.strerror or one_line(error)}") from error


def _describe(made: Mapping[str, Specification], out: Path) -> None:
    """``stream.json`` of each stream.

    Raises:
        MediaError: another specification lies there.
    """
    for stream, own in made.items():
        before = read_stream(out / stream)
        if before is not None:
            check_same(before, own, f"{out / stream}", "what is asked for", "name another --out, or remove it first")
    for stream, own in made.items():
        described = {"rate": own.rate, "made_by": f"{own}, {libraries()}", "specification": own.to_json()}
        if read_stream(out / stream) is None:
            write_json(out / stream / STREAM, described)


def libraries() -> str:
    """What decoded and computed, for people: other versions may give other last digits."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name, package in (("PyAV", "av"), ("OpenCV", "opencv-python-headless"), ("numpy", "numpy")):
        try:
            found.append(f"{name} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def read_report(out: Path) -> list[dict[str, Any]]:
    """The lines of a report.

    Raises:
        MediaError: there is none.
    """
    file = out / REPORT
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise MediaError(f"{file}: no readable report; `egmf features extract` writes it") from error
    if not all(isinstance(line, dict) and {"id", "stream", "status"} <= line.keys() for line in lines):
        raise MediaError(f"{file}: a line has no id, stream and status; `egmf features extract` writes it anew")
    return lines


class _Run:
    def __init__(
        self, clips: Sequence[ClipFile], plan: Plan, out: Path, made: Mapping[str, Specification], how: How
    ) -> None:
        self.clips, self.plan, self.out, self.made, self.how = clips, plan, out, made, how
        self.cache = Cache(how.cache or out / ".cache")
        self.summary = Summary(len(clips), by_stream={stream: Counter() for stream in made})

    def run(self, progress: Callable[[int, Summary], None], runner: Runner) -> Summary:
        start = time.perf_counter()
        known = [self._known(clip) for clip in self.clips]
        lacking = [(n, [s for s in self.made if s not in found]) for n, (_, found) in enumerate(known)]
        tasks = {n: Task(self.clips[n].path, streams) for n, streams in lacking if streams}
        results = runner([*tasks.values()], self.plan, self.how.limits, self.how.processes)
        lines: list[dict[str, Any]] = []
        for number, (clip, (digest, found)) in enumerate(zip(self.clips, known, strict=True)):
            outcomes = dict(found)
            self.summary.cached += len(found) if digest else 0
            if number in tasks:
                result = next(results)
                outcomes |= result.outcomes
                self.summary.peak = max(self.summary.peak, result.peak)
                new = [outcome.counts.get("seconds", 0.0) for outcome in result.outcomes.values()]
                self.summary.seconds += max(new, default=0.0)
            lines += [self._keep(clip, digest, stream, outcomes[stream], stream in found) for stream in self.made]
            self.summary.wall = time.perf_counter() - start
            progress(number + 1, self.summary)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_bytes(self.out / REPORT, text.encode())
        return self.summary

    def _known(self, clip: ClipFile) -> tuple[str, dict[str, Outcome]]:
        """The file's hash, and what is known of it already; of a file that cannot be read everything is."""
        try:
            self.how.limits.check_file(clip.path)
            digest = file_hash(clip.path)
        except MediaError as error:
            return "", dict.fromkeys(self.made, Outcome(FAILED, str(error), lasting=False))
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
            return "", dict.fromkeys(self.made, Outcome(FAILED, reason, lasting=False))
        found = {stream: self.cache.get(own, digest) for stream, own in self.made.items()}
        return digest, {stream: outcome for stream, outcome in found.items() if outcome is not None}

    def _keep(self, clip: ClipFile, digest: str, stream: str, outcome: Outcome, cached: bool) -> dict[str, Any]:
        """Write an outcome where it belongs; its line of the report."""
        target = self.out / stream / f"{clip.id}.npy"
        if not cached and outcome.lasting and outcome.status != FAILED:
            self.cache.put(self.made[stream], digest, outcome)
        if outcome.status == OK:
            self.cache.place(self.made[stream], digest, target)
        else:
            target.unlink(missing_ok=True)  # of a file that was there before under this id
        self.summary.by_stream[stream][outcome.status] += 1
        if outcome.status == FAILED and not self.summary.first_failure:
            self.summary.first_failure = f"{clip.id}, {stream}: {outcome.reason}"
        reason = {"reason": outcome.reason} if outcome.reason else {}
        return {"id": clip.id, "stream": stream, "status": outcome.status} | reason | dict(outcome.counts)
