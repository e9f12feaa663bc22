"""How many seconds of a clip an extractor takes in a second of one core."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from egmf_dist.bench.machine import machine
from egmf_dist.errors import EgmfError
from egmf_dist.files import write_json
from egmf_media.batch.listing import list_clips
from egmf_media.batch.run import libraries
from egmf_media.extract import OK, Extractor, extract_one
from egmf_media.extractors import extractors_of
from egmf_media.limits import Limits
from egmf_media.synthetic import write_clip

SIZE = (640, 360)


def bench_media(out: Path, plan: dict[str, Any], clips: Path | None, seconds: float, rounds: int) -> dict[str, Any]:
    """Time each extractor of a plan in this process, with one thread.

    Args:
        out: folder for ``summary.json``.
        plan: by stream the settings of its extractor.
        clips: folder of clips; None: one that is drawn, 640 by 360 pixels, H.264 and AAC.
        seconds: long, where it is drawn.
        rounds: of which the fastest counts.

    Returns:
        What ``summary.json`` holds.

    Raises:
        EgmfError: not one clip has a stream of the plan.
        MediaError: a folder cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="egmf-bench-") as folder:
        if clips is None:
            write_clip(Path(folder, "drawn.mp4"), seconds, SIZE)
        listed = list_clips(clips or Path(folder))
        rows: dict[str, dict[str, Any]] = {}
        for stream, extractor in extractors_of(plan).items():
            if extractor.missing:
                raise EgmfError(f"bench media: {stream}: {extractor.missing}")
            extract_one(listed[0].path, extractor, Limits())  # weights are read, libraries warm
            rows[stream] = {"specification": str(extractor.specification)} | min(
                (_timed([clip.path for clip in listed], extractor) for _ in range(rounds)),
                key=lambda row: float(row["cpu_s"]),
            )
            if not rows[stream]["clip_s"]:
                raise EgmfError(f"bench media: not one clip has {stream}")
    summary = {
        "machine": machine(),
        "libraries": libraries(),
        "clips": str(clips or f"drawn, {seconds:g} s, {SIZE[0]} x {SIZE[1]}"),
        "rounds": rounds,
        "streams": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "summary.json", summary)
    return summary


def _timed(paths: list[Path], extractor: Extractor) -> dict[str, float]:
    """Seconds of clip that were extracted, and of this process and of the clock that they took."""
    clip = 0.0
    cpu, wall = time.process_time(), time.perf_counter()
    for path in paths:
        outcome = extract_one(path, extractor, Limits())
        clip += float(outcome.counts.get("seconds", 0.0)) if outcome.status == OK else 0.0
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {
        "clip_s": round(clip, 3),
        "cpu_s": round(cpu, 4),
        "wall_s": round(wall, 4),
        "times_realtime": round(clip / cpu, 1),
        "times_realtime_by_the_clock": round(clip / wall, 1),
    }
