"""`egmf predict`: a file of utterances, whatever its lines hold and whenever it is stopped."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from egmf_dist import Utterance, load
from egmf_dist.config import Config, dump_config
from egmf_dist.errors import EgmfError
from egmf_dist.inference.predict import Output, predict_file
from egmf_dist.inference.sources import Lines
from egmf_launcher.cli import main


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class TestPredict:
    """A file of utterances."""

    @pytest.fixture
    def source(self, tmp_path):
        np.save(tmp_path / "a.npy", np.ones((3, 6), np.float32))
        np.save(tmp_path / "wide.npy", np.ones((3, 7), np.float32))
        rows = [
            {"id": "one", "text": "i am glad", "speaker": "A", "audio": "a.npy", "label": "joy", "split": "test"},
            {"id": "wide", "text": "no", "audio": "wide.npy"},
            {"id": "gone", "text": "no", "vision": "gone.npy"},
            {"text": "我很高兴", "dialogue": "d", "speaker": "B"},
            {"id": "five", "text": "wait", "dialogue": "d", "speaker": "C", "language": "en"},
            {"id": "six", "text": "wait", "speaker": "C", "language": "en", "context": [["B", "我很高兴"]]},
            {"id": "odd", "text": "wait", "mood": "good"},
            {"id": 8, "text": "no", "audio": "empty.npy"},
            {"id": "nine", "text": "half \ud83d"},
            {"id": "ten", "text": " ", "speaker": None, "context": None},
            *({"id": f"n{i}", "text": "glad " * (i % 7 + 1)} for i in range(60)),
        ]
        path = tmp_path / "in.jsonl"
        (tmp_path / "empty.npy").touch()
        text = "\n".join(json.dumps(row) for row in rows)
        path.write_text(text + "\n\nno json\n" + "[" * 100_000 + "\n", encoding="utf-8")
        return path

    def test_every_line_has_answers_or_says_why_not(self, exported, source, tmp_path, capsys):
        out = tmp_path / "sub" / "out.jsonl"
        assert main(["predict", str(exported), "--input", str(source), "--out", str(out)]) == 1
        said = capsys.readouterr().out
        assert "72 utterances; " in said
        assert "warning: 8 could not be answered, the first: utterance wide: audio is 7 wide; this model's is 6" in said
        found = lines(out)
        assert [row["id"] for row in found[:7]] == ["one", "wide", "gone", 3, "five", "six", "odd"]
        assert len(found) == 72
        assert [number for number, row in enumerate(found) if "error" in row] == [1, 2, 6, 7, 8, 9, 70, 71]
        assert "gone.npy: cannot be read" in found[2]["error"]
        assert found[6]["error"].startswith("line 7: has no use for 'mood'; it may have id, text")
        assert found[7]["id"] == 8
        assert "empty.npy: no .npy file; numpy.save" in found[7]["error"]
        assert "half a character" in found[8]["error"]
        assert "has neither text nor features" in found[9]["error"]
        assert found[70]["error"].startswith("line 72: ")  # after an empty one
        assert "recursion" in found[71]["error"]
        assert found[0]["absent"] == ["vision"]
        assert found[3]["language"] == "zh"
        p, q = (found[n]["answers"]["emotion"]["probabilities"] for n in (4, 5))
        assert p == pytest.approx(q, abs=1e-5)  # a dialogue's lines are the next one's context
        (answer,) = load(exported).predict(
            Utterance("i am glad", "A", (), {"audio": np.ones((3, 6))}), tasks=["emotion"]
        )
        one = found[0]["answers"]["emotion"]
        assert one["label"] == answer.label
        assert one["probabilities"] == pytest.approx(answer.probabilities, abs=1e-5)
        assert sorted(path.name for path in out.parent.iterdir()) == ["out.jsonl"]

    def test_what_was_stopped_goes_on(self, exported, source, tmp_path, monkeypatch):
        whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
        model = load(exported)
        predict_file(model, Lines(source), whole, ["emotion"], lambda *_: None)
        answer, calls = model.answer, []

        def dies(samples):
            calls.append(len(samples))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return answer(samples)

        monkeypatch.setattr(model, "answer", dies)
        with pytest.raises(KeyboardInterrupt):
            predict_file(model, Lines(source), out, ["emotion"], lambda *_: None)
        assert len(lines(out)) == 32
        with open(out, "a") as file:
            file.write('{"id": "half a li')
        with pytest.raises(EgmfError, match="was begun with another input, model, tasks or --explain"):
            predict_file(model, Lines(source), out, None, lambda *_: None)
        content = source.read_bytes()
        source.write_bytes(b'{"text": "new"}\n' + content)
        with pytest.raises(EgmfError, match="was begun with another input, model, tasks or --explain"):
            predict_file(model, Lines(source), out, ["emotion"], lambda *_: None)
        source.write_bytes(content)
        done = predict_file(model, Lines(source), out, ["emotion"], lambda *_: None)
        assert (done.lines, done.before, done.failed) == (72, 32, 8)  # also those of before
        theirs, ours = lines(whole), lines(out)
        assert [row["id"] for row in ours] == [row["id"] for row in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.get("error") == other.get("error")
            if "answers" in one:
                p, q = (row["answers"]["emotion"]["probabilities"] for row in (one, other))
                assert p == pytest.approx(q, abs=1e-5)

    def test_a_disk_that_fails_is_one_line_and_made_good_by_the_same_call(
        self, exported, source, tmp_path, monkeypatch, capsys
    ):
        call = ["predict", str(exported), "--input", str(source), "--out", str(tmp_path / "out.jsonl")]
        call += ["--tasks", "emotion"]

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            assert main(call) == 2
            said = capsys.readouterr().err
            assert "out.jsonl: cannot be written: No space left on device; name another file" in said
            assert said.count("\n") == 1
        model = load(exported)
        output = Output(tmp_path / "out.jsonl", {"input": "a", "model": "b", "tasks": None})
        assert output.begin() == 0
        output.write([{"id": 1, "answers": {}}])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(EgmfError, match="No space left on device; start again to go on"):
                output.finish()
        output.close()
        again = Output(tmp_path / "out.jsonl", {"input": "a", "model": "b", "tasks": None})
        assert again.begin() == 1
        with pytest.raises(EgmfError, match="another process is writing it"):
            Output(again.path, again.made_of).begin()
        again.finish()
        again.close()
        again.path.unlink()

        # Explanations belong to what is made: without them it is another output.
        monkeypatch.setattr(model, "answer", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict_file(model, Lines(source), again.path, None, lambda *_: None)
        with pytest.raises(EgmfError, match="tasks or --explain"):
            predict_file(model, Lines(source), again.path, None, lambda *_: None, tmp_path / "e")

    def test_a_file_system_without_locks_is_said(self, tmp_path, monkeypatch, capsys):
        def none(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", none)
        output = Output(tmp_path / "out.jsonl", {})
        assert output.begin() == 0
        output.close()
        assert "cannot be locked (No locks available): start only one" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"--input": "gone.jsonl"}, "--input gone.jsonl: cannot be read: No such file"),
            ({"--input": "empty.jsonl"}, "--input empty.jsonl: has no line"),
            ({"--out": "there.jsonl"}, "--out there.jsonl: it exists; name another file"),
            ({"--tasks": "mood"}, "the model has no task 'mood'; it has emotion, sentiment"),
        ],
    )
    def test_a_mistake_is_one_line(self, exported, source, tmp_path, monkeypatch, capsys, change, says):
        monkeypatch.chdir(tmp_path)
        Path("empty.jsonl").write_text("\n")
        Path("there.jsonl").write_text("")
        options = {"--input": str(source), "--out": "out.jsonl"} | change
        assert main(["predict", str(exported), *(word for pair in options.items() for word in pair)]) == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1
        assert not Path("out.jsonl").exists()


def test_a_run_that_was_killed_is_gone_on_with(trained, tmp_path):
    """`egmf predict RUN` exports the run anew in each process: it must be the same model there."""
    run, _, _ = trained("lora")
    dump_config(Config(), run.config)
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"id": i, "text": "glad"}) + "\n" for i in range(1000)), encoding="utf-8")
    command = [sys.executable, "-m", "egmf_launcher.cli", "predict", str(run.folder), "--input", str(source)]
    command += ["--out", str(out), "--tasks", "emotion"]
    with open(tmp_path / "log", "w") as log:
        first = subprocess.Popen(command, env=os.environ | {"PYTHONHASHSEED": "1"}, stdout=log, stderr=log)
        while first.poll() is None and not (out.exists() and out.stat().st_size):
            time.sleep(0.01)
        first.kill()
        first.wait()
    begun = len(out.read_bytes().splitlines())
    assert 0 < begun < 1000, (tmp_path / "log").read_text()
    again = subprocess.run(
        command, env=os.environ | {"PYTHONHASHSEED": "2"}, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "by an earlier start" in again.stdout
    assert [row["id"] for row in lines(out)] == list(range(1000))
