"""``egmf runs show``: what it says of runs on the disk is what a start would do, and looking changes nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import IDENTITY, PIECES, save

from egmf_dist.config import Config, dump_config
from egmf_dist.errors import EgmfError
from egmf_dist.run import status as status_of_runs
from egmf_dist.run.folder import Run, discard_leftovers
from egmf_dist.run.lock import held
from egmf_dist.run.status import read_status
from egmf_dist.training import checkpoint
from egmf_dist.training.checkpoint import load_checkpoint
from egmf_dist.training.stopping import ask
from egmf_launcher.cli import main
from egmf_shards.checksums import sha256

HOLDS = """
import sys, time
from pathlib import Path
from egmf_dist.run.folder import Run
from egmf_dist.run.lock import held
with held(Run(Path(sys.argv[1])), "theirs"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Checkpoints 2, 4 and 6 of 6 steps, the last two of which name adapter 4; ended."""
    made = Run(tmp_path / "runs" / "a")
    made.folder.mkdir(parents=True)
    dump_config(Config(training=Config().training.__class__(steps=6)), made.config, tmp_path)
    for step, best in ((2, 0), (4, 4), (6, 4)):
        save(made, step, best)
    weights = made.adapter(4) / "trained.safetensors"
    weights.write_text("weights")
    about = {"sha256": sha256(weights), "score": 0.5, "selected_by": "valid mean"}
    (made.adapter(4) / "adapter.json").write_text(json.dumps(about))
    records(made, END)
    return made


TRAINED = {"kind": "train", "step": 6, "loss": 1.25}
END = {"kind": "end", "step": 6, "reason": "all steps done"}


def records(run: Run, *last: dict[str, object]) -> None:
    lines = [{"kind": "start", "step": 0, "steps": 6}, TRAINED, *last]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))


def shown(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, object]]:
    assert main(["runs", "show", str(path), "--json", *options]) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)["runs"]
    return found


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() and not path.is_symlink() else b"",
        )
        for path in [folder, *folder.rglob("*")]
    }


def test_a_finished_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (status,) = shown(run.folder, capsys)
    assert (status["state"], status["says"]) == ("finished", "all steps done")
    assert (status["step"], status["steps"], status["logged_step"], status["loss"]) == (6, 6, 6, 1.25)
    kept = status["checkpoints"]
    assert [(k["step"], k["ranks"], k["sound"]) for k in kept] == [(2, 1, True), (4, 1, True), (6, 1, True)]
    assert kept[0]["bytes"] == sum(path.stat().st_size for path in run.checkpoint(2).iterdir())
    assert status["best"] == {
        "step": 4, "bytes": sum(p.stat().st_size for p in run.adapter(4).iterdir()), "sound": True,
        "says": "its hash is right", "ranks": None, "score": 0.5, "selected_by": "valid mean",
    }  # fmt: skip
    assert status["resume"]["step"] == 6
    assert "latest.json names it; every hash is right; all 6 steps are done" in status["resume"]["says"]
    assert status["bytes"] == sum(p.stat().st_size for p in run.folder.rglob("*") if p.is_file())
    os.link(run.checkpoint(2) / PIECES, run.folder / "second name")
    assert shown(run.folder, capsys)[0]["bytes"] == status["bytes"]  # no byte more on the disk


def nothing(run: Run) -> None:
    pass


def flip(run: Run) -> None:
    path = run.checkpoint(6) / PIECES
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def lose_record(run: Run) -> None:
    (run.checkpoint(6) / "checkpoint.json").unlink()


def garble_pointer(run: Run) -> None:
    run.latest.write_text("{")


def lose_pointed(run: Run) -> None:
    shutil.rmtree(run.checkpoint(6))


def go_back(run: Run) -> None:
    run.latest.write_text(json.dumps({"checkpoint": "step-0000002"}))


def move_aside(run: Run) -> None:
    run.checkpoint(6).rename(run.checkpoints / ".step-0000006.aside")


def spoil_all(run: Run) -> None:
    for step in (2, 4, 6):
        (run.checkpoint(step) / PIECES).unlink()


def lose_all(run: Run) -> None:
    shutil.rmtree(run.checkpoints)


def killed_before_the_first(run: Run) -> None:
    """After a validation: there is a best adapter."""
    lose_all(run)
    records(run)


def bad_sector(run: Run) -> None:
    (run.checkpoint(6) / PIECES).unlink()
    (run.checkpoint(6) / PIECES).symlink_to("/proc/self/mem")  # whoever reads it at 0 gets an input/output error


@pytest.mark.parametrize(
    ("what", "step", "says"),
    [
        (nothing, 6, "latest.json names it"),
        (flip, 4, "is damaged"),
        (lose_record, 4, "checkpoint.json is missing"),
        (garble_pointer, 6, "latest.json cannot be read"),
        (lose_pointed, 4, "is missing"),
        (go_back, 2, "latest.json names it"),
        (move_aside, 6, "had moved it aside"),
        (spoil_all, None, "no sound checkpoint to go on from"),
        (lose_all, None, "its checkpoints are gone"),
        (killed_before_the_first, 0, "no checkpoint yet, and what was done up to step 6 is done again"),
        (bad_sector, 4, f"{PIECES} cannot be read (Input/output error)"),
    ],
)
def test_what_would_be_resumed_is_what_a_start_resumes(
    run: Run, what: Callable[[Run], None], step: int | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what a real start does: it clears up, then loads."""
    what(run)
    before = contents(run.folder)
    status = read_status(run)
    assert contents(run.folder) == before  # nothing was written, no folder touched
    assert status.resume.step == step
    assert says in " ".join([status.resume.says, *status.resume.passed_over])
    for name in ("put_pieces", "put_random_state"):
        monkeypatch.setattr(checkpoint, name, lambda *arguments: None)
    discard_leftovers(run)
    if step is None:
        with pytest.raises(EgmfError, match=r"no sound checkpoint|its checkpoints are gone"):
            load_checkpoint(None, run, "auto", IDENTITY)  # type: ignore[arg-type]
    else:
        resumed = load_checkpoint(None, run, "auto", IDENTITY)  # type: ignore[arg-type]
        assert (0 if resumed is None else resumed.progress.step) == step


def test_quick_reads_no_weights(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    flip(run)
    (status,) = shown(run.folder, capsys, "--quick")
    assert [kept["sound"] for kept in status["checkpoints"]] == [None, None, None]
    assert status["best"]["sound"] is None
    assert status["resume"]["step"] == 6
    assert "not hashed" in status["resume"]["says"]
    (status,) = shown(run.folder, capsys)
    assert [kept["sound"] for kept in status["checkpoints"]] == [True, True, False]


def test_each_checkpoint_is_hashed_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from egmf_dist.run import checkpoints

    hashed = []
    monkeypatch.setattr(checkpoints, "sha256", lambda path: hashed.append(path) or sha256(path))
    read_status(run)
    assert sorted(path.parent.name for path in hashed) == ["step-0000002", "step-0000004", "step-0000006"]


def test_what_comes_after_the_end_does_not_undo_it(run: Run) -> None:
    """A tracker's last complaint, a watch's line; a start after the end does."""
    complaint = {"kind": "warning", "step": 6, "message": "wandb does not answer"}
    records(run, END, complaint)
    assert read_status(run).state == "finished"
    records(run, END, complaint, {"kind": "start", "step": 6, "steps": 8}, complaint)
    assert read_status(run).state == "died"


def test_a_folder_that_the_system_does_not_give_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: Run, *rest: object, **more: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(run.checkpoints))

    monkeypatch.setattr(status_of_runs, "find_checkpoint", refuse)
    resume = read_status(run).resume
    assert not resume.possible
    assert "Input/output error" in resume.says


def test_a_damaged_adapter(run: Run) -> None:
    (run.adapter(4) / "trained.safetensors").write_text("weightz")
    best = read_status(run).best
    assert best is not None
    assert (best.step, best.sound) == (4, False)
    (run.adapter(4) / "trained.safetensors").unlink()
    best = read_status(run).best
    assert best is not None
    assert "is missing" in best.says
    run.best.write_text("{")
    best = read_status(run).best
    assert best is not None
    assert "best.json is damaged" in best.says


def test_who_trains_it_and_how_it_ended(run: Run) -> None:
    records(run)
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(run.folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        before = contents(run.folder)
        status = read_status(run)
        assert contents(run.folder) == before
        assert status.state == "running"
        assert f"process {process.pid} on host" in status.says
        assert not status.resume.possible
        assert status.resume.says.startswith("refused while it is trained; else: goes on after step 6")
        ask(run, "theirs", signal.SIGTERM)
        assert read_status(run).state == "stopping"
        run.stop.unlink()
        ask(run, "another", signal.SIGTERM)  # of a launch that has ended
        assert read_status(run).state == "running"
        run.stop.unlink()
    finally:
        process.kill()
        process.wait()
    status = read_status(run)
    assert status.state == "died"
    assert "its process is gone" in status.says
    with held(run, "next", lambda said: None):  # the look took nothing away from a start
        assert read_status(run).state == "running"
    records(run, END | {"reason": "told to stop by SIGTERM"})
    assert read_status(run).state == "told to stop"
    run.metrics.unlink()
    assert read_status(run).state == "not begun"


def test_a_holder_on_another_machine_is_known_by_its_silence(run: Run) -> None:
    records(run)
    there = {"host": "other", "kernel": "k", "processes": "k p", "pid": 7, "since": "9:00", "launch": "theirs"}
    run.lock.write_text(json.dumps(there))
    assert read_status(run).state == "running"
    long_ago = time.time() - 400
    os.utime(run.lock, (long_ago, long_ago))
    status = read_status(run)
    assert status.state == "died"
    assert "process 7 on host other" in status.says


def test_settings_that_cannot_be_read_are_said_and_stop_a_resume(run: Run) -> None:
    run.config.write_text("training: {stepps: 3}\n")
    status = read_status(run)
    assert (status.resume.possible, status.steps) == (False, None)
    assert "stepps" in status.resume.says


def test_a_folder_of_runs_and_the_tables(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run.folder, tmp_path / "runs" / "sweep" / "b")
    flip(run)
    (run.checkpoints / ".step-0000008.tmp").mkdir()
    (tmp_path / "runs" / "notes").mkdir()
    found = shown(tmp_path / "runs", capsys)
    assert [Path(str(status["run"])).name for status in found] == ["a", "b"]
    assert main(["runs", "show", str(tmp_path / "runs")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "after step 4" in text
    assert "(damaged)" in text
    assert main(["runs", "show", str(run.folder)]) == 0
    text = capsys.readouterr().out
    for words in ("finished: all steps done", "6/6; loss 1.25 at step 6", "step 4, 0.5 (valid mean)", "NO",
                  "goes on after step 4", "checkpoint step-0000006 was passed over", ".step-0000008.tmp"):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize(("path", "says"), [("nowhere", "no such folder"), ("empty", "holds no run")])
def test_what_is_no_run_is_one_line(
    path: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert main(["runs", "show", path]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_it_is_quick(run: Run) -> None:
    """Nothing that takes seconds to import is."""
    script = (
        "import sys\n"
        "from egmf_launcher.cli import main\n"
        "code = main(['runs', 'show', sys.argv[1]])\n"
        "heavy = {'torch', 'ray', 'deepspeed', 'transformers', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else code)\n"
    )
    look = subprocess.run([sys.executable, "-c", script, str(run.folder)], capture_output=True, text=True, timeout=60)
    assert look.returncode == 0, look.stderr
    assert "finished: all steps done" in look.stdout
