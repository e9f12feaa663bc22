"""``egmf features``: what the verbs print, draw and return."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import cv2
import pytest
from clips import Clip

from egmf_launcher.cli import main
from egmf_launcher.ray.environment import without_launcher_variables
from egmf_media.audio.prosody import Prosody
from egmf_media.vision.face import Face


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    Clip(seconds=1.0).write(folder / "good.mp4")
    Clip(seconds=1.0, silent=True).write(folder / "silent.mp4")
    (folder / "broken.mp4").write_text("no film")
    return folder


def test_extraction_says_what_became_of_the_clips_and_fails_where_too_many_do(clips, tmp_path, capsys):
    (tmp_path / "audio.yaml").write_text("audio: {extractor: prosody}\n")
    command = ["features", "extract", "--source", str(clips), "--out", str(tmp_path / "out")]
    command += ["--config", str(tmp_path / "audio.yaml")]
    assert main(command) == 1
    said = capsys.readouterr().out
    assert f"audio: {Prosody.specification}" in said
    assert re.search(r"3 clips; 2\.\d s of clips in \d+\.\d s, \d+\.\dx realtime", said)
    assert "audio: 1 ok, 1 absent, 1 failed" in said
    assert "warning: 1 failed, the first: broken, audio: is no media file" in said
    assert main([*command, "--max-failed", "1"]) == 0
    assert "2 clips and streams were there already" in capsys.readouterr().out

    assert main(["features", "info", str(tmp_path / "out"), "--plot", str(tmp_path / "info.png")]) == 0
    said = capsys.readouterr().out
    assert f"audio: {Prosody.specification}" in said
    assert "1 absent: silent" in said
    assert cv2.imread(str(tmp_path / "info.png")).shape[1] > 500


def test_without_weights_it_says_that_faces_will_be_absent(clips, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EGMF_MEDIA_WEIGHTS", str(tmp_path / "nowhere"))
    command = ["features", "extract", "--source", str(clips), "--out", str(tmp_path / "out"), "--max-failed", "9"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "warning: vision will be absent: face_detection_yunet_2023mar.onnx is not in" in said.err
    assert "vision: 0 ok, 3 absent, 0 failed" in said.out


def test_a_clip_can_be_looked_at(clips, tmp_path, capsys):
    out = tmp_path / "clip.png"
    assert main(["features", "check", str(clips / "good.mp4"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "audio: ok" in said
    assert ("a face in 5 of 5 moments" in said) or Face().missing in said
    assert cv2.imread(str(out)).shape[1] > 1000
    assert main(["features", "check", str(clips / "broken.mp4"), "--out", str(out)]) == 2
    assert "nothing to draw" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["extract", "--source", "nowhere", "--out", "OUT"], "nowhere: there is no such folder or file"),
        (["extract", "--source", "CLIPS", "--out", "OUT", "--processes", "0"], "--processes is 0"),
        (
            ["extract", "--source", "CLIPS", "--out", "OUT", "--config", "gone.yaml"],
            "features gone.yaml: cannot be read",
        ),
        (["info", "OUT"], "no readable report; `egmf features extract` writes it"),
        (["check", "gone.mp4"], "there is no such file"),
        (["check", "CLIPS/good.mp4", "--out", "OUT.jpg"], "the picture is a PNG"),
    ],
)
def test_a_wrong_command_is_one_line(clips, tmp_path, capsys, words, message):
    words = [word.replace("CLIPS", str(clips)).replace("OUT", str(tmp_path / "out")) for word in words]
    assert main(["features", *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert not (tmp_path / "out").exists()


def test_a_file_of_clips_serves_as_well(clips, tmp_path):
    rows = [{"id": "x/one", "clip": "good.mp4", "text": "hi"}]
    (clips / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "audio.yaml").write_text("voice: prosody\n")
    command = ["features", "extract", "--source", str(clips / "clips.jsonl"), "--out", str(tmp_path / "out")]
    assert main([*command, "--config", str(tmp_path / "audio.yaml")]) == 0
    assert (tmp_path / "out" / "voice" / "x" / "one.npy").is_file()


def test_on_the_machines_of_a_hostfile_it_is_the_same_bits(clips, tmp_path):
    """In a process of its own: one starts one Ray cluster in its life."""
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    (tmp_path / "audio.yaml").write_text("audio: prosody\n")
    command = ["features", "extract", "--source", str(clips), "--config", str(tmp_path / "audio.yaml")]
    command += ["--max-failed", "1", "--out"]
    assert main([*command, str(tmp_path / "here")]) == 0
    there = [sys.executable, "-m", "egmf_launcher.cli", *command, str(tmp_path / "there")]
    environ = without_launcher_variables(os.environ)
    hosts = ["--hostfile", str(tmp_path / "hosts")]
    done = subprocess.run([*there, *hosts], env=environ, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "audio: 1 ok, 1 absent, 1 failed" in done.stdout
    for name in ("audio/good.npy", "report.jsonl", "audio/stream.json"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    (tmp_path / "audio.yaml").write_text("audio: prosodie\n")
    done = subprocess.run([*there, *hosts], env=environ, capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_the_bench_times_each_extractor(tmp_path, capsys):
    (tmp_path / "audio.yaml").write_text("audio: prosody\n")
    command = ["bench", "media", "--out", str(tmp_path / "out"), "--config", str(tmp_path / "audio.yaml")]
    assert main([*command, "--seconds", "2", "--rounds", "1"]) == 0
    assert re.search(r"audio, prosody 1 \(\w+\): \d+\.\dx realtime on one core", capsys.readouterr().out)
    row = json.loads((tmp_path / "out" / "summary.json").read_text())["streams"]["audio"]
    assert 2 <= row["clip_s"] < 2.1
    assert row["times_realtime"] == pytest.approx(row["clip_s"] / row["cpu_s"], rel=0.02)
    assert main([*command, "--rounds", "0"]) == 2
