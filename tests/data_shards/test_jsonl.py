"""One's own data: every field of a line, context from dialogues, features by name, and every kind of bad line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egmf_shards import ShardError, ShardSet
from egmf_shards.format.task import Task
from egmf_shards.importers.jsonl import import_jsonl

MOOD = Task(
    name="mood",
    kind="classification",
    questions={"en": "Mood?", "zh": "心情？"},
    labels=("good", "bad"),
    answers={"en": ("good", "bad"), "zh": ("好", "坏")},
)
STRENGTH = Task(name="strength", kind="regression", questions={"en": "How strong?"}, low=0, high=10, step=1)


def line(**fields: Any) -> dict[str, Any]:
    return {"id": "a", "split": "train", "text": "hello", "label": "good", "language": "en"} | fields


def write(folder: Path, lines: list[dict[str, Any]]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("\n".join(json.dumps(x, ensure_ascii=False) for x in lines) + "\n\n", encoding="utf-8")
    return path


def test_every_field_arrives(tmp_path):
    for modality, dim in (("audio", 5), ("vision", 3)):
        (tmp_path / modality / "sub").mkdir(parents=True)
        np.save(tmp_path / modality / "a.npy", np.ones((4, dim), np.float32))
        np.save(tmp_path / modality / "sub" / "other.npy", np.full((2, dim), 2.0))
    source = write(
        tmp_path,
        [
            line(speaker="Ann", dialogue="d", turn=3, context=[["Bob", " hi  there "]]),
            line(id="b", audio="sub/other.npy", label="bad", language="zh", text="你好"),
            line(id="c", split="valid", text=""),
        ],
    )
    manifest = import_jsonl(source, tmp_path / "out", "mine", MOOD, tmp_path / "audio", tmp_path / "vision")
    samples = {s.id: s for split in ("train", "valid") for s in ShardSet.open([tmp_path / "out"], split)}
    a, b, c = samples["a"], samples["b"], samples["c"]
    assert (a.speaker, a.dialogue, a.turn, a.label, a.task, a.dataset) == ("Ann", "d", 3, "good", "mood", "mine")
    assert [(t.speaker, t.text) for t in a.context] == [("Bob", "hi there")]
    assert a.features["audio"].shape == (4, 5)
    assert (b.features["audio"] == 2).all()
    assert (b.language, b.label, b.modalities) == ("zh", "bad", ("text", "audio"))
    assert (c.text, c.modalities) == ("", ())
    assert manifest["source"]["features"]["audio"]["clips_found"] == 2


def test_a_dialogue_is_its_own_context(tmp_path):
    turns = [line(id=f"u{i}", dialogue="d", turn=i, speaker="AB"[i % 2], text=f"line {i}") for i in range(15)]
    import_jsonl(write(tmp_path, turns[::-1]), tmp_path / "out", "mine", MOOD)
    samples = {s.id: s for s in ShardSet.open([tmp_path / "out"], "train")}
    assert samples["u0"].context == ()
    assert [(t.speaker, t.text) for t in samples["u14"].context] == [("AB"[i % 2], f"line {i}") for i in range(2, 14)]


def test_numbers_and_the_only_language(tmp_path):
    source = write(tmp_path, [{"id": "a", "split": "train", "text": "x", "value": 3}])
    import_jsonl(source, tmp_path / "out", "mine", STRENGTH)
    (sample,) = ShardSet.open([tmp_path / "out"], "train")
    assert (sample.value, sample.language) == (3.0, "en")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("[1]", "line 1: holds a list; one JSON object a line"),
        ("{'id'", "line 1: not JSON"),
        ("[" * 100_000, "line 1: not JSON"),
        ({"id": "a", "split": "train"}, "has no 'text'"),
        (line(lable="x"), "unknown field 'lable'"),
        (line(id=""), "id is ''; at least one character"),
        (
            '{"id": "a", "split": "train", "text": "x", "label": ' + "1" * 5000 + "}",
            "line 1: not JSON .a whole number of",
        ),
        (line(id=7), "id is 7; a string"),
        (line(split="dev"), "split is 'dev'; it must be one of train, valid, test"),
        (line(label="fine"), "label 'fine' is not in the label space of task 'mood': good, bad"),
        (line(value=1.0), "a classification needs 'label', and no 'value'"),
        (line(language="fr"), "language is 'fr'; the task is asked in en, zh"),
        (line(turn=-1), "turn is -1; a whole number"),
        (line(context=["hi"]), r"context is not a list of \[speaker, text\] pairs"),
        (line(audio="a.npy"), "names the audio file 'a.npy'; give the folder of audio features"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_left(tmp_path, bad, message):
    path = tmp_path / "data.jsonl"
    path.write_text(bad if isinstance(bad, str) else json.dumps(bad), encoding="utf-8")
    with pytest.raises(ShardError, match=message) as error:
        import_jsonl(path, tmp_path / "out", "mine", MOOD)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["data.jsonl"]


@pytest.mark.parametrize("value", [11, -0.5, "3", True, float("nan")])
def test_a_bad_number(tmp_path, value):
    source = write(tmp_path, [{"id": "a", "split": "train", "text": "x", "value": value}])
    with pytest.raises(ShardError, match="line 1: value"):
        import_jsonl(source, tmp_path / "out", "mine", STRENGTH)


def test_twice_the_same_id_or_turn(tmp_path):
    with pytest.raises(ShardError, match="'a'"):
        import_jsonl(write(tmp_path, [line(), line(split="test")]), tmp_path / "out", "mine", MOOD)
    twice = [line(dialogue="d", turn=1), line(id="b", dialogue="d", turn=1)]
    with pytest.raises(ShardError, match=r"line 2: turn 1 of its dialogue is also in .*line 1"):
        import_jsonl(write(tmp_path, twice), tmp_path / "out", "mine", MOOD)


def test_an_empty_or_missing_file(tmp_path):
    with pytest.raises(ShardError, match="holds no line"):
        import_jsonl(write(tmp_path, []), tmp_path / "out", "mine", MOOD)
    with pytest.raises(ShardError, match="there is no such file"):
        import_jsonl(tmp_path / "none.jsonl", tmp_path / "out", "mine", MOOD)
