"""The task of the importers of numbers: known by the data set's name, said by options, or read from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from egmf_launcher.cli import main
from egmf_shards import ShardError, ShardSet, Task, import_label_csv
from egmf_shards.importers.sentiment import KNOWN, sentiment_task

HEADER = "video_id,clip_id,text,label,mode"
MINE = Task(
    name="mine", kind="regression", questions={"en": "?", "ja": "?"}, convention="mosei", low=0, high=5, step=0.5
)
CLASSES = Task(name="c", kind="classification", questions={"en": "?"}, labels=("a", "b"), answers={"en": ("a", "b")})


@pytest.mark.parametrize(
    ("dataset", "language", "low", "high", "answers", "first", "convention"),
    [
        ("mosi", "en", -3, 3, 31, "-3.0", "mosei"),
        ("mosei", "en", -3, 3, 19, "-3.00", "mosei"),
        ("sims", "zh", -1, 1, 11, "-1.0", "sims"),
        ("simsv2", "zh", -1, 1, 11, "-1.0", "sims"),
    ],
)
def test_known_data_sets_know_theirs(dataset, language, low, high, answers, first, convention):
    task, spoken = sentiment_task(dataset, None, {})
    assert (task.name, spoken, task.low, task.high, task.convention) == (
        f"{dataset}-sentiment", language, low, high, convention,
    )  # fmt: skip
    legal = task.legal_answers(language)
    assert (len(legal), legal[0]) == (answers, first)
    assert f"{high}" in task.questions[language]
    assert list(KNOWN) == ["mosi", "mosei", "sims", "simsv2"]


def test_what_is_said_overrules_what_is_known():
    task, language = sentiment_task("mosi", "zh", {"low": -2.0, "high": 2.0, "step": 0.5, "question": None})
    assert (language, task.low, task.high, task.step, task.convention) == ("zh", -2.0, 2.0, 0.5, "mosei")
    task, language = sentiment_task("mosi", "ja", {"question": "気持ちは？"})
    assert (language, task.questions) == ("ja", {"ja": "気持ちは？"})


@pytest.mark.parametrize(
    ("dataset", "language", "options", "message"),
    [
        (
            "mosi",
            "ja",
            {},
            "language is 'ja'; there is a built-in question in en, zh only: give one in words with --question",
        ),
        ("mine", None, {}, "give its language, low, high, step, convention as well"),
        ("mine", "en", {"low": 0.0, "high": 1.0, "step": 0.1}, "give its convention as well"),
        ("mosi", None, {"step": 0.7}, "step 0.7 does not divide the range"),
        ("mosi", None, {"convention": "sims"}, "convention 'sims' needs the range"),
        ("a b", "en", {}, "dataset is 'a b'; letters"),
        ("mine", None, {"task": MINE}, "is asked in en, ja; say with --language which of them"),
        ("mine", "zh", {"task": MINE}, "is asked in en, ja; the language is 'zh'"),
        ("mine", "en", {"task": MINE, "low": 0.0}, "says its low already"),
        ("mine", "en", {"task": CLASSES}, "these files hold numbers, so a regression is needed"),
    ],
)
def test_what_does_not_fit_is_one_line(dataset, language, options: Any, message):
    with pytest.raises(ShardError, match=message) as caught:
        sentiment_task(dataset, language, options)
    assert "\n" not in str(caught.value)


def test_a_misspelt_option_is_no_option(tmp_path):
    with pytest.raises(TypeError, match="unknown options hihg"):
        import_label_csv(write(tmp_path, "0.4"), tmp_path / "o", "mosi", hihg=2.0)


def test_a_task_of_ones_own_is_taken_whole():
    assert sentiment_task("mine", "ja", {"task": MINE}) == (MINE, "ja")
    assert sentiment_task("mosi", None, {"task": MINE}) == (MINE, "en")


def write(folder: Path, label: str, name: str = "label.csv") -> Path:
    (folder / name).write_text(f"{HEADER}\nv,1,LOVE IT,{label},train\n", encoding="utf-8")
    return folder / name


def values(out: Path) -> list[float | None]:
    return [sample.value for sample in ShardSet.open([out], "train")]


def test_label_csv_of_another_data_set_is_as_sims_unless_told_otherwise(tmp_path):
    source = write(tmp_path, "0.4")
    manifest = import_label_csv(source, tmp_path / "a", "mine", "en")
    assert [manifest["tasks"][0][key] for key in ("low", "high", "step", "convention")] == [-1.0, 1.0, 0.2, "sims"]
    with pytest.raises(ShardError, match="give its language as well"):
        import_label_csv(source, tmp_path / "b", "mine")
    source = write(tmp_path, "2.4")
    with pytest.raises(
        ShardError, match=r"line 2: .*value 2.4 is outside .*; --low, --high and --step say another range"
    ):
        import_label_csv(source, tmp_path / "b", "mine", "en")
    manifest = import_label_csv(source, tmp_path / "c", "mosi")
    assert [manifest["tasks"][0][key] for key in ("low", "high", "step", "convention")] == [-3.0, 3.0, 0.2, "mosei"]
    assert values(tmp_path / "c") == [2.4]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("--dataset mosi", 0),
        ("--dataset mosi --language en --low -3 --high 3", 0),
        ("--dataset x --language en --low -3 --high 3 --convention mosei", 0),
        ("--dataset x --language ja --low 0 --high 5 --step 0.1 --convention mosei --question ?", 0),
        ("--dataset x --language ja --task t.yaml", 0),
        ("--dataset x --language en", 2),
        ("--dataset mosi --language ja", 2),
        ("--dataset x --language ja --task t.yaml --step 0.1", 2),
    ],
)
def test_the_command(arguments, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "2.4")
    Path("t.yaml").write_text(json.dumps(MINE.to_json()), encoding="utf-8")
    assert main(["shards", "import", "label-csv", "--source", "label.csv", "--out", "o", *arguments.split()]) == code
    said = capsys.readouterr().err
    if code:
        assert said.count("\n") == 1
        assert not Path("o").exists()
    else:
        assert values(Path("o")) == [2.4]


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("-0.8", -0.8),
        (" 0.2 ", 0.2),
        ("1", 1.0),
        ("much", None),
        ("", None),
        ("1_0", None),
        ("nan", None),
        ("1" * 5000, None),
    ],
)
def test_labels_of_a_table(label, value, tmp_path):
    source = write(tmp_path, label)
    if value is not None:
        import_label_csv(source, tmp_path / "o", "d", "zh")
        assert values(tmp_path / "o") == [value]
        return
    with pytest.raises(
        ShardError, match=r"label.csv, line 2: sample 'd-v-1': (label|value) .* (needed|range)"
    ) as caught:
        import_label_csv(source, tmp_path / "o", "d", "zh")
    assert len(str(caught.value)) < 400
