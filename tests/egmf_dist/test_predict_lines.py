"""What a line of `egmf predict`'s input may hold, and what its row says: features, truths, dialogues, calibration."""

from __future__ import annotations

import io
import json
import tokenize
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from egmf_dist import load
from egmf_dist.errors import EgmfError
from egmf_dist.inference.predict import Output, judge, predict_file
from egmf_dist.inference.sources import Lines
from egmf_dist.metrics.calibration import Calibration
from egmf_shards import Task


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def model(exported):
    return load(exported)


@pytest.fixture
def written(tmp_path):
    """``written(rows)``: a file of them; a text is a line as it is."""

    def write(*rows):
        path = tmp_path / "in.jsonl"
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def rows(model, written, tmp_path):
    """``rows(*lines, tasks=...)``: what they are answered with."""

    def answer(*given, tasks=None):
        out = tmp_path / "out.jsonl"
        out.unlink(missing_ok=True)
        predict_file(model, Lines(written(*given)), out, tasks, lambda *_: None)
        return lines(out)

    return answer


@pytest.fixture
def asked(tasks):
    """Something that has a model's tasks, languages and streams, and never answers."""
    own = [
        *tasks.values(),
        replace(tasks["sentiment"], name="arousal", questions={"en": "Arousal?"}, low=0.0, high=10.0, step=1.0),
        Task("mood", "classification", {"zh": "?"}, labels=("joy", "gloom"), answers={"zh": ("a", "b")}),
    ]
    return SimpleNamespace(tasks={t.name: t for t in own}, languages=["en", "zh"], streams={"audio": (6,)})


def header(shape: str) -> bytes:
    """A `.npy` file whose header says this of the shape."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def test_a_damaged_feature_file_costs_its_line_alone(rows, tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.ones((3, 6), np.float32))
    sound = buffer.getvalue()
    damaged = {
        "token": header("(3, 6"),
        "memory": header("(1000000000000000, 6)"),
        "overflow": header("(99999999999999999999999999, 6)"),
        "short": sound[:-4],
        "nul": sound[:10] + bytes(len(sound) - 10),
        "pickle": header("(3, 6)").replace(b"<f4", b"|O "),
    }
    with pytest.raises((tokenize.TokenError, SyntaxError, ValueError)):  # what numpy's own reader does
        np.load(io.BytesIO(damaged["token"]))
    for name, data in damaged.items():
        (tmp_path / f"{name}.npy").write_bytes(data)
    np.save(tmp_path / "zero.npy", np.zeros((3, 6)))
    np.save(tmp_path / "flat.npy", np.ones(6))
    np.save(tmp_path / "axis.npy", np.ones((1, 3, 6)))
    given = [{"text": "glad", "audio": f"{name}.npy"} for name in (*damaged, "zero", "flat", "axis")]
    found = rows(*given, tasks=["emotion"])
    broken, (zero, flat, axis) = found[: len(damaged)], found[len(damaged) :]
    for name, row in zip(damaged, broken, strict=True):
        assert f"{name}.npy: " in row["error"], name
        assert "answers" not in row
    assert (zero["absent"], zero["why_absent"]) == (["audio", "vision"], {"audio": "nothing but zeros"})
    assert flat["absent"] == axis["absent"] == ["vision"]


@pytest.mark.parametrize(
    ("given", "right", "says"),
    [
        ({"label": "joy"}, {"emotion": "joy"}, ""),
        ({"label": "gloom"}, {}, "label 'gloom' is no answer of a task that is asked in 'en'"),
        ({"label": "gloom", "language": "zh"}, {"mood": "gloom"}, ""),
        ({"label": "joy", "text": "我"}, {}, "label 'joy' may be the answer of emotion or mood: name its task"),
        ({"label": "joy", "text": "我", "task": "mood"}, {"mood": "joy"}, ""),
        ({"value": 5}, {"arousal": 5.0}, ""),
        ({"value": -0.5}, {"sentiment": -0.5}, ""),
        ({"value": 0.5}, {}, "value 0.5 may be the answer of sentiment or arousal: name its task"),
        ({"value": 0.5, "language": "zh"}, {"sentiment": 0.5}, ""),
        ({"value": 0.5, "task": "valence"}, {}, "task 'valence' is none of the model's"),
        ({"value": 7, "task": "sentiment"}, {}, "value 7 is outside the range [-1.0, 1.0] of task 'sentiment'"),
        ({"value": 10**400}, {}, "value a number beyond 2^63 is no answer of"),
        ({"value": "0.5"}, {}, "value is '0.5'; a number is needed"),
        ({"value": [0.5], "task": "sentiment"}, {}, "value is a list; a number is needed"),
        ({"value": True}, {}, "value is True; a number is needed"),
        ({"label": ["joy"]}, {}, "label is a list; a string is needed"),
        ({"label": 1, "task": "emotion"}, {}, "label is 1; a string is needed"),
        ({"label": "joy", "value": 1}, {}, "there are two targets"),
    ],
)
def test_a_truth_is_of_the_only_task_that_could_have_it(asked, written, given, right, says):
    (item,) = Lines(written({"text": "i"} | given)).items(asked, 0)
    assert not isinstance(item.asked, str)  # a line is answered whatever its truth
    assert item.truth == right
    assert item.notes.get("truth_unused", "").startswith(says)
    assert bool(says) == ("truth_unused" in item.notes)


def test_a_line_that_names_a_task_is_asked_that_alone(rows):
    found = rows(
        {"text": "glad", "task": "emotion"},
        {"text": "glad", "task": "valence"},
        {"text": "glad"},
        {"text": "glad", "value": "0.5"},
        {"text": "glad", "task": ["emotion"]},
    )
    assert [[*row.get("answers", ())] for row in found] == [["emotion"], *[["emotion", "sentiment"]] * 3, []]
    assert found[3]["truth_unused"] == "value is '0.5'; a number is needed"
    assert found[4]["error"] == "line 5: task is a list; the name of a task is needed"


def test_a_dialogue_is_what_was_said_in_the_lines_before(asked, written):
    said = [
        {"text": "a", "speaker": "A", "dialogue": "d", "turn": 3},
        {"text": "alone"},
        {"text": "b", "dialogue": "d", "turn": 5, "mood": "odd"},
        {"text": "c", "dialogue": "d", "turn": 6},
        "no json",
        {"text": "e", "dialogue": "d", "turn": 8},
        {"text": "f", "dialogue": "d", "split": "test", "turn": 0},
        "{",
        {"text": "g", "dialogue": 7},
        {"text": ["h"], "dialogue": 7},
        {"text": "i", "dialogue": 7},
        {"text": "j", "dialogue": "", "turn": "2"},
    ]
    found = list(Lines(written(*said)).items(asked, 0))
    context = [None if isinstance(item.asked, str) else item.asked.context for item in found]
    assert context[:4] == [[], [], None, [("A", "a"), ("", "b")]]
    assert context[5:7] == [[("A", "a"), ("", "b"), ("", "c")], []]
    assert [item.notes for item in found[:5]] == [{}] * 5
    assert found[5].notes == {"context_lacks": "line 5, which could not be read"}
    assert found[6].notes == {}  # its dialogue begins with it
    assert found[8].notes == {"context_lacks": "line 8, which could not be read"}
    assert found[10].notes == {"context_lacks": "line 8, 10, which could not be read"}
    assert [found[n].asked.turn for n in (0, 3, 5, 6, 8, 10)] == [3, 6, 8, 0, 0, 2]
    assert found[11].asked == "line 12: turn is '2'; a whole number from 0 is needed"


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ([("d", None), ("e", None), ("d", None)], "line 3: dialogue 'd' comes again after another one began; sort the"),
        ([("d", 1), ("d", 0)], "line 2: turn 0 of dialogue 'd' follows turn 1; sort the lines by dialogue and turn"),
        ([("d", 1), (None, 0), ("d", 1)], "line 3: turn 1 of dialogue 'd' follows turn 1; sort"),
    ],
)
def test_a_dialogue_out_of_order_is_refused_before_the_first_answer(written, said, says):
    given = [{"text": "a", "dialogue": dialogue, "turn": turn} for dialogue, turn in said]
    with pytest.raises(EgmfError, match=says) as told:
        Lines(written(*given))
    assert "\n" not in str(told.value)
    assert len(Lines(written(*({**row, "context": []} for row in given)))) == len(given)


def test_a_damaged_output_is_answered_again_from_there(tmp_path, capsys):
    made_of = {"input": "a", "model": "b", "tasks": None}
    for damage in (b"\0\0\0\0\n", b'{"id": 1, "answ\n', b"3\n"):
        output = Output(tmp_path / "out.jsonl", made_of)
        assert output.begin() == 0
        output.write([{"id": n, "answers": {}} for n in range(3)] + [{"id": 3, "error": "odd"}])
        output.close()
        whole = output.path.read_bytes().splitlines(keepends=True)
        output.path.write_bytes(b"".join([*whole[:2], damage, *whole[3:]]))
        again = Output(output.path, made_of)
        assert again.begin() == 2
        assert "out.jsonl: line 3 is damaged; what was written from there on is answered" in capsys.readouterr().err
        again.write([{"id": 2, "error": "odd"}, {"id": 3, "answers": {}, "truth_unused": "why"}])
        assert again.finish() == {"error": (1, "odd"), "truth_unused": (1, "why")}
        again.close()
        assert [row["id"] for row in lines(again.path)] == [0, 1, 2, 3]
        again.path.unlink()


def test_what_is_rounded_to_nothing_has_its_likelihood(model, rows, tmp_path, monkeypatch):
    """A probability of 1e-9 is 20.7 nats; written, it is 0."""
    answer = model.answer

    def sure(samples):
        return [replace(one, probabilities={"neutral": 1 - 1e-9, "joy": 1e-9, "anger": 0.0}) for one in answer(samples)]

    monkeypatch.setattr(model, "answer", sure)
    found = rows({"text": "glad", "label": "joy"}, {"text": "glad", "label": "neutral"}, tasks=["emotion"])
    assert found[0]["answers"]["emotion"]["probabilities"]["joy"] == 0
    assert found[0]["truth_log_probability"]["emotion"] == pytest.approx(np.log(1e-9), rel=1e-12)
    judged = judge(tmp_path / "out.jsonl", model.tasks)["emotion"]
    assert judged["metrics"]["nll"] == pytest.approx(-np.log(1e-9) / 2, rel=1e-6)
    assert judged["calibrated"] is False


def test_a_row_says_whether_its_numbers_are_calibrated(model, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "_calibrations", {"emotion": Calibration(temperature=2.0)})
    (row,) = rows({"text": "glad", "label": "joy"})
    assert [answer["calibrated"] for answer in row["answers"].values()] == [True, False]
    judged = judge(tmp_path / "out.jsonl", model.tasks)
    assert judged["emotion"]["calibrated"] is True
    p = row["answers"]["emotion"]["probabilities"]["joy"]
    assert judged["emotion"]["metrics"]["nll"] == pytest.approx(-np.log(p), abs=1e-4)
