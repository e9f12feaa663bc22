"""One set of rules: writer, index, ``verify`` and reader take and refuse the same samples; a task's grid is one."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexes import held_index

from egmf_shards import Sample, ShardError, ShardSet, ShardWriter, Task, Turn
from egmf_shards.check.verify import verify
from egmf_shards.format import codec
from egmf_shards.format.index import load_index, save_index
from egmf_shards.format.index_build import build_index
from egmf_shards.format.rules import OPTIONAL, SPLITS, first_bad_key
from egmf_shards.importers.foreign_tars import index_foreign

SCORE = Task(name="score", kind="regression", questions={"en": "?"}, convention="mosei", low=-1.2, high=1.2, step=0.4)
MOOD = Task(
    name="mood", kind="classification", questions={"en": "?"}, labels=("good", "bad"), answers={"en": ("good", "bad")}
)
GOOD: dict[str, Any] = {
    "id": "a", "text": "hello", "language": "en", "task": "score", "dataset": "d", "split": "train",
    "modalities": ["text"], "context": [["Ann", "hi"]], "value": 0.5,
}  # fmt: skip
NEXT = 1.2 + 1.5e-6
TAKEN = {
    "as it is": {},
    "float32 of the highest": {"value": float(np.float32(1.2))},
    "float32 of the lowest": {"value": float(np.float32(-1.2))},
    "a whole number": {"value": 1},
    "no target": {"value": None},
    "unlabelled": {"value": None, "split": "unlabelled"},
    "no label": {"label": None},
    "a label": {"task": "mood", "value": None, "label": "bad"},
    "no text": {"text": " ", "modalities": []},
    "an id of its own": {"source_id": "访谈$_$1"},
    "12 turns": {"context": [["", ""]] * 12},
    "the last turn": {"turn": (1 << 63) - 1},
}
REFUSED = {
    "beyond the range": {"value": NEXT},
    "below the range": {"value": -NEXT},
    "a truth value": {"value": True},
    "text": {"value": "0.5"},
    "two targets": {"label": "good"},
    "a label for a number": {"value": None, "label": "good"},
    "a number for a label": {"task": "mood"},
    "another label": {"task": "mood", "value": None, "label": "ugly"},
    "another task": {"task": "joy"},
    "another language": {"language": "zh"},
    "another data set": {"dataset": "e"},
    "another split": {"split": "dev"},
    "another id": {"id": "b"},
    "text that is not there": {"text": " "},
    "text that is not declared": {"modalities": []},
    "a modality that is not there": {"modalities": ["text", "audio"]},
    "a modality twice": {"modalities": ["text", "text"]},
    "a modality of no name": {"modalities": ["text", 1]},
    "a modality without an array": {"modalities": ["text", "smell"]},
    "a modality called as none is": {"modalities": ["text", "Smell"]},
    "a target of the unlabelled": {"split": "unlabelled"},
    "13 turns": {"context": [["", ""]] * 13},
    "a turn of one": {"context": [["Ann"]]},
    "a turn before 0": {"turn": -1},
    "a turn that is text": {"turn": "1"},
    "a turn that is a truth value": {"turn": True},
    "an unknown field": {"mood": 1},
    "an id of a number": {"source_id": 1},
    "speaker is null": {"speaker": None},
}


def made(fields: dict[str, Any]) -> Sample:
    turns = tuple(Turn(*turn) for turn in fields["context"])
    return Sample(**(OPTIONAL | fields | {"context": turns, "modalities": tuple(fields["modalities"])}))


def by_the_writer(folder: Path, fields: dict[str, Any]) -> None:
    with ShardWriter(folder, "d", [SCORE, MOOD]) as writer:
        writer.write(made(fields))


def behind_its_back(folder: Path, fields: dict[str, Any]) -> None:
    """A folder whose index, checksums and manifest are in order around any JSON at all."""
    by_the_writer(folder, GOOD)
    path = folder / "train-000000.tar"
    with tarfile.open(path, "w") as tar:
        info, data = tarfile.TarInfo("a.json"), json.dumps(fields).encode()
        info.size = len(data)
        tar.addfile(info, BytesIO(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "decode", lambda members, where: made(GOOD))
        index = build_index(folder, [path.name])
    index.target[0] = any(fields.get(name) is not None for name in ("label", "value"))
    index.split[0] = SPLITS.index(fields["split"]) if fields["split"] in SPLITS else 0
    save_index(folder, index)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    shards = [{"name": path.name, "size": path.stat().st_size, "samples": 1}]
    manifest |= {"index": index.content_hash, "shards": shards}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def takes(call: Any, *arguments: Any) -> bool:
    try:
        call(*arguments)
    except (ShardError, TypeError):  # the writer's own types are the caller's: mypy's matter, not a message's
        return False
    return True


CASES = [(changes, True) for changes in TAKEN.values()] + [(changes, False) for changes in REFUSED.values()]


@pytest.mark.parametrize(("changes", "sound"), CASES, ids=[*TAKEN, *REFUSED])
def test_writer_index_verify_and_reader_agree(changes, sound, tmp_path):
    fields = GOOD | changes
    folder, tasks = tmp_path / "d", tmp_path / "tasks.json"
    behind_its_back(folder, fields)
    split = fields["split"] if fields["split"] in SPLITS else "train"
    assert takes(lambda: ShardSet.open([folder], split).read([0])) is sound
    report = verify(folder)
    if sound:  # counts and lengths moved, and the manifest's are those of another sample
        assert not {"schema", "features"} & set(report.counts), list(map(str, report.problems))
    else:
        assert not report.ok
    for name in ("index.npz", "manifest.json"):
        (folder / name).unlink()
    tasks.write_text(json.dumps([SCORE.to_json(), MOOD.to_json()]), encoding="utf-8")
    # The one sample there is names the folder's data set, and its own id.
    assert takes(index_foreign, folder, tasks) is (sound or "dataset" in changes)
    if not {"mood", "id"} & set(changes):
        assert takes(by_the_writer, tmp_path / "w", fields) is sound


def regression(low: float, high: float, step: float, convention: str = "mosei") -> Task:
    return Task(
        name="v", kind="regression", questions={"en": "?"}, convention=convention, low=low, high=high, step=step
    )


@pytest.mark.parametrize(
    ("low", "high", "step", "decimals", "first", "last"),
    [
        (-1.0, 1.0, 0.2, 1, "-1.0", "1.0"),
        (-3.0, 3.0, 0.5, 1, "-3.0", "3.0"),
        (-3.0, 3.0, 1 / 3, 2, "-3.00", "3.00"),
        (-3.0, 3.0, 1 / 6, 2, "-3.00", "3.00"),
        (0.0, 1.0, 0.001, 3, "0.000", "1.000"),
        (0.0, 1.0, 1 / 300, 3, "0.000", "1.000"),
        (-0.25, 0.75, 0.5, 2, "-0.25", "0.75"),
        (0.0, 1e-6, 1e-7, 7, "0.0000000", "0.0000010"),
        (1, 5, 1, 1, "1.0", "5.0"),
    ],
)
def test_answers_have_as_many_decimals_as_they_need(low, high, step, decimals, first, last):
    task = regression(low, high, step)
    answers = task.legal_answers("en")
    assert (task.decimals, answers[0], answers[-1]) == (decimals, first, last)
    assert len(set(answers)) == len(answers) == round((high - low) / step) + 1
    assert task.values[0] == low
    assert task.values[-1] == pytest.approx(high)
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in task.values)
    assert [task.nearest(value) for value in task.values] == list(range(len(answers)))
    assert "-0.0" not in [answer.rstrip("0") + "0" for answer in answers]


@pytest.mark.parametrize(
    ("low", "high", "step", "convention", "message"),
    [
        (
            -1.0,
            1.0,
            0.3,
            "mosei",
            r"step 0.3 does not divide the range \[-1.0, 1.0\]: it fits 6.66666667 times; 0.2857",
        ),
        (0.0, 1.0, 0.6, "mosei", "does not divide"),
        (0.0, 1.0, 3.0, "mosei", "does not divide"),
        (-3.0, 3.0, 0.333333, "mosei", "it fits 18.000018 times; 0.3333333333333333 would fit"),
        (0.0, 1.0, 1e-5, "mosei", "more than 10000 legal answers"),
        (1e16, 1e16 + 8, 1.0, "mosei", "look alike"),
        (-5.0, 5.0, 0.5, "sims", r"convention 'sims' needs the range \[-1, 1\], .* the range is \[-5.0, 5.0\]"),
        (0.0, 1.0, 0.1, "sims", "convention 'sims' needs the range"),
        (-1.0, 1.0, 0.2, "classed", "convention is 'classed'"),
    ],
)
def test_a_grid_or_convention_that_does_not_fit_is_refused(low, high, step, convention, message):
    with pytest.raises(ShardError, match=message) as caught:
        regression(low, high, step, convention)
    assert "\n" not in str(caught.value)


def test_a_task_is_refused_wherever_it_is_made(tmp_path):
    """A manifest of before holds a grid that is none: reader and verify say the same."""
    by_the_writer(tmp_path / "d", GOOD)
    path = tmp_path / "d" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["tasks"][0]["step"] = 0.7
    path.write_text(json.dumps(manifest), encoding="utf-8")
    message = "task 'score': step 0.7 does not divide"
    with pytest.raises(ShardError, match=message):
        ShardSet.open([tmp_path / "d"], "train")
    assert message in str(verify(tmp_path / "d").problems[0])


@pytest.mark.parametrize("bad", ["a.b", "访", "", "a/b", "a b", "é"])
@pytest.mark.parametrize("place", [0, 70_000, 70_001])
def test_one_bad_key_among_many_is_found(bad, place):
    keys = np.array([f"key-{i}_Z" for i in range(70_002)])
    assert first_bad_key(keys) is None
    keys[place] = bad
    assert first_bad_key(keys) == place
    assert first_bad_key(keys[:0]) is None


def test_an_index_with_a_key_that_is_none_is_refused_as_verify_refuses_its_member(tmp_path):
    by_the_writer(tmp_path / "d", GOOD)
    index = held_index(tmp_path / "d")
    index.key[0] = "."
    save_index(tmp_path / "d", index)
    with pytest.raises(ShardError, match=r"key '\.': an id may hold only letters"):
        load_index(tmp_path / "d")


def test_the_source_id_travels_with_the_sample(tmp_path):
    sample = replace(made(GOOD), source_id="访谈$_$1")
    assert sample.without("text").source_id == "访谈$_$1"
    assert sample.to_json()["source_id"] == "访谈$_$1"
    assert "source_id" not in made(GOOD).to_json(), "folders without one keep their bytes"
    with ShardWriter(tmp_path / "d", "d", [SCORE]) as writer:
        writer.write(sample)
    assert ShardSet.open([tmp_path / "d"], "train")[0].source_id == "访谈$_$1"


@pytest.mark.parametrize(
    ("task", "label", "value", "says"),
    [
        (SCORE, None, "0.5", "value is '0.5'; a number is needed"),
        (SCORE, None, [0.5], "value is a list; a number is needed"),
        (SCORE, None, True, "value is True; a number is needed"),
        (SCORE, None, float("nan"), "value nan is outside the range"),
        (SCORE, None, 10**400, "is outside the range"),
        (MOOD, ["good"], None, "label is a list; a string is needed"),
        (MOOD, 1, None, "label is 1; a string is needed"),
        (MOOD, "good", 1.0, "there are two targets"),
    ],
)
def test_a_target_of_another_type_is_a_fault_and_no_failure(task, label, value, says):
    with pytest.raises(ShardError, match=says):
        task.check_target(label, value, "here")
    SCORE.check_target(None, np.float32(0.4), "here")
