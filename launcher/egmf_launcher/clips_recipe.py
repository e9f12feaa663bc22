"""``egmf clips``: recordings made here, features, training, answers, the server and its page, end to end.

What it needs is made by :mod:`egmf_dist.recipes.clips`; every step that was done before is not done again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egmf_dist.errors import EgmfError
from egmf_dist.files import write_json
from egmf_dist.recipe_files import recipe_file
from egmf_dist.run.folder import Run
from egmf_launcher.demo import call, run_state, timed

DATA, BACKBONE, RUN, MODEL = Path("data/clips"), Path("backbones/clips"), Path("runs/clips"), Path("models/clips")
SEED = 0
STREAMS = ("audio", "vision")
EGMF = [sys.executable, "-m", "egmf_launcher.cli"]


def run_clips(count: int = 400) -> None:
    """From made recordings to the page's answer.

    Args:
        count: recordings

    Raises:
        EgmfError: espeak-ng is not installed, or the page answers something else than egmf predict.
        MediaError: the photograph, or the face's models, cannot be fetched.
        LaunchError: a command failed.
    """
    from egmf_dist.recipes.clips import missing

    if missing():
        raise EgmfError(missing())
    if count < 40:
        raise EgmfError(f"--count is {count}; 40 or more are needed, so that every split has every class")
    phases: dict[str, float] = {}
    timed(phases, "recordings", lambda: _recordings(count))
    timed(phases, "features", _features)
    timed(phases, "backbone", _backbone)
    timed(phases, "training", _training)
    timed(phases, "evaluation", lambda: call([*EGMF, "evaluate", os.fspath(RUN), "--split", "test", "--remove-each"]))
    timed(phases, "export", _export)
    found: dict[str, Any] = {}
    timed(phases, "page", lambda: found.update(_page()))
    seconds = {name: round(spent, 1) for name, spent in phases.items()}
    write_json(RUN / "clips.json", {"count": count, "seconds": seconds, "page": found})
    print(f"clips: {sum(phases.values()):.0f} s in all; results in {Run(RUN).evaluation('test')}", flush=True)


def _recordings(count: int) -> None:
    from egmf_dist.recipes.clips import plan, write_data

    record = DATA / "made.json"
    made_of = {"count": count, "seed": SEED}
    if record.is_file():
        if json.loads(record.read_text(encoding="utf-8")) != made_of:
            raise EgmfError(f"{DATA} holds other recordings than {made_of}; remove it, {RUN}, {BACKBONE} and {MODEL}")
        return
    write_data(DATA, plan(count, SEED))
    write_json(record, made_of)


def _features() -> None:
    call([*EGMF, "features", "fetch"])
    features = DATA / "features"
    call([*EGMF, "features", "extract", "--source", f"{DATA}/clips", "--out", os.fspath(features), "--processes", "2"])
    for name in ("mood", "activation"):
        if not (DATA / "shards" / name).exists():
            command = [*EGMF, "shards", "import", "jsonl", "--source", f"{DATA}/{name}.jsonl", "--dataset", name]
            command += ["--task", f"{DATA}/{name}.yaml", "--out", f"{DATA}/shards/{name}"]
            call([*command, *(word for stream in STREAMS for word in (f"--{stream}", f"{features}/{stream}"))])


def _backbone() -> None:
    if not BACKBONE.exists():
        text = [f"{DATA}/shards/{name}" for name in ("mood", "activation")]
        call(
            [
                *EGMF,
                "backbone",
                "tiny",
                "--text",
                *text,
                "--out",
                os.fspath(BACKBONE),
                "--steps",
                "250",
                "--layers",
                "2",
            ]
        )


def _training() -> None:
    state = run_state(RUN)
    if state != "complete":
        resume = "auto" if state == "interrupted" else "never"
        config = os.fspath(recipe_file("clips"))
        call([*EGMF, "train", "--config", config, "--run", os.fspath(RUN), "--resume", resume])


def _export() -> None:
    if not MODEL.exists():
        call([*EGMF, "export", os.fspath(RUN), "--out", os.fspath(MODEL)])


def _page() -> dict[str, Any]:
    """The server, asked by its page as a person would; its answer must be that of ``egmf predict``."""
    from egmf_dist.bench.serving import started
    from egmf_dist.recipes.clips import plan
    from egmf_dist.recipes.page_driver import missing, opened

    one = next(made for made in plan(20, SEED) if made.split == "test" and made.mood is not None)
    clip, out = DATA / "clips" / f"{one.id}.mp4", RUN / "page"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    predicted = out / "predict.jsonl"
    call(
        [
            *EGMF,
            "predict",
            os.fspath(clip),
            "--run",
            os.fspath(MODEL),
            "--text",
            one.text,
            "--out",
            os.fspath(predicted),
        ]
    )
    right = json.loads(predicted.read_text(encoding="utf-8"))["answers"]
    if missing():
        print(f"the page is not driven: {missing()}", flush=True)
        return {"driven": False, "why": missing()}
    with started(MODEL) as server:
        camera = _camera(out, one)
        with opened(server.url, 1400, camera=camera[0], microphone=camera[1]) as shown:
            shown.answer(clip, one.text)
            said = shown.answers()
            shown.page.screenshot(path=out / "upload-1400.png", full_page=True)
            shown.page.click("#remove")
            shown.record(2.0)
            recorded = shown.ask()
            shown.page.set_viewport_size({"width": 390, "height": 844})
            shown.page.emulate_media(color_scheme="dark")
            shown.page.wait_for_timeout(500)
            shown.page.screenshot(path=out / "recorded-390.png", full_page=True)
            wrong = [*shown.complaints, *shown.foreign, *shown.overflowing()]
        code = server.stop()
    for path in camera:
        path.unlink()
    wrong += faults(right, said, recorded) + ([f"egmf serve ended with code {code}"] if code else [])
    if wrong:
        raise EgmfError("; ".join(wrong))
    mood, number = said["mood"], said["activation"]
    print(
        f"the page answers {mood} and {number} as egmf predict does (made as {one.mood}, {one.activation})", flush=True
    )
    print(f"recorded from a camera that shows the photograph: a face was seen; pictures: {out}", flush=True)
    return {
        "driven": True,
        "mood": mood,
        "activation": right["activation"]["value"],
        "made_as": [one.mood, one.activation],
    }


def faults(right: Mapping[str, Any], said: Mapping[str, str], recorded: str) -> list[str]:
    """What is wrong with what the page showed.

    Args:
        right: the answers of ``egmf predict``.
        said: what the page shows as the answer of each task; not all that it shows, where every legal answer stands.
        recorded: all of what it shows of a recording of the photograph.
    """
    wanted = {"mood": right["mood"]["answer"], "activation": f"{right['activation']['value']:.2f}"}
    found = [
        f"the page answers {said.get(task)!r} to {task} and egmf predict {answer!r}"
        for task, answer in wanted.items()
        if said.get(task) != answer
    ]
    if "vision" in recorded.partition("What was absent, and why")[2].partition("What each stream")[0]:
        found.append("no face of the photograph was seen in the recording of the camera that shows it")
    return found


def _camera(folder: Path, made: Any) -> tuple[Path, Path]:
    import numpy as np

    from egmf_dist.recipes.clips import astronaut, pictures, spoken
    from egmf_dist.recipes.page_driver import write_camera, write_microphone

    shown = np.stack([*pictures(made, astronaut(), 40)])
    sound, rate = spoken(made)
    return write_camera(folder / "camera.y4m", shown, 20), write_microphone(folder / "microphone.wav", sound, rate)
