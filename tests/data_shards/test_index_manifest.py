"""Manifests and tasks of other people: what is wrong is one line, and nothing huge is allocated."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from rich.console import Console

from egmf_shards import ShardError, ShardSet, Task, print_info
from egmf_shards.check.info import target_values
from egmf_shards.check.verify import verify
from egmf_shards.format.manifest import MAX_DEPTH, read_manifest
from egmf_shards.importers.foreign_tars import index_foreign


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


MOOD = {"name": "mood", "kind": "classification", "questions": {"en": "?"}, "labels": ["a", "b"]}
MOOD["answers"] = {"en": ["a", "b"]}
SCORE = {"name": "score", "kind": "regression", "questions": {"en": "?"}, "low": -1, "high": 1, "step": 0.5}
WRONG_TASKS: list[tuple[Any, str]] = [
    (MOOD | {"name": 5}, "a task's name is 5; a text is needed"),
    (MOOD | {"name": ""}, "a task's name is ''"),
    (MOOD | {"questions": {"en": 5}}, "questions must be one text for each language"),
    (MOOD | {"questions": ["en"]}, "questions must be one text for each language"),
    (MOOD | {"labels": [1, 2]}, "labels must be a list of texts"),
    (MOOD | {"labels": "ab"}, "labels must be a list of texts"),
    (MOOD | {"labels": [["a"], ["b"]]}, "labels must be a list of texts"),
    (MOOD | {"answers": {"en": "ab"}}, "labels must be a list of texts"),
    (MOOD | {"answers": 5}, "a task is malformed"),
    (MOOD | {"labels": [str(i) for i in range(10_001)], "answers": {"en": [str(i) for i in range(10_001)]}}, "10000"),
    (SCORE | {"high": float("inf")}, "high is inf; a number is needed"),
    (SCORE | {"low": float("nan")}, "low is nan; a number is needed"),
    (SCORE | {"high": 10**400}, "high is a number beyond 2.63; a number"),
    (SCORE | {"high": True}, "high is True; a number is needed"),
    (SCORE | {"step": "0.1"}, "step is '0.1'; a number is needed"),
    (SCORE | {"high": 99.0, "step": 1e-5}, "more than 10000 legal answers; a larger step is needed"),
    (SCORE | {"low": 0, "high": 10_000, "step": 1}, "more than 10000 legal answers"),
    (SCORE | {"high": 1e299, "step": 5e-324}, "more than 10000 legal answers"),
]


@pytest.mark.parametrize(("data", "message"), WRONG_TASKS)
def test_a_malformed_task(data, message, refused):
    refused(lambda: Task.from_json(data, "tasks.json"), f"tasks.json: .*({message})")


def test_as_many_answers_as_are_allowed():
    task = Task.from_json(SCORE | {"low": 0, "high": 9999, "step": 1})
    assert len(task.values) == 10_000


def split_of(**changes: Any) -> dict[str, Any]:
    values = {"score": {"count": 1, "mean": 0.5, "std": 0.0, "min": 0.5, "max": 0.5}}
    one = {"samples": 1, "utterances": 1, "labels": {"mood": {"good": 1, "bad": 0}}, "values": values}
    return {"splits": {"train": one | {"missing": {"text": 0, "audio": 0, "vision": 0}} | changes}}


WRONG_MANIFESTS: list[tuple[dict[str, Any], str]] = [
    *(({"tasks": tasks}, "tasks must be a list") for tasks in (5, None, [], {}, [5])),
    ({"tasks": [MOOD, MOOD]}, "tasks has two of one name"),
    *(({"tasks": [task]}, "task") for task, _ in WRONG_TASKS[:4]),
    *(({"schema": schema}, "schema is .*; this version reads 1 and 2") for schema in (True, 1.0, None, [1])),
    *(({"streams": streams}, "malformed .streams is ") for streams in ([], "x", None)),
    *(
        ({"streams": {name: {"dim": 5}}}, "a feature stream is called ")
        for name in ("text", "Audio", "", "a.b", "x" * 40)
    ),
    *(
        ({"streams": {"audio": stream}}, "malformed .streams.audio: dim is ")
        for stream in (5, [], *({"dim": dim} for dim in ("x", -3, 10**12, 4.0, True, None, [4])))
    ),
    *(({"streams": {"audio": {"dim": 4, "rate": r}}}, "streams.audio: rate is ") for r in (0, -1, "4", True)),
    ({"streams": {"audio": {"dim": 4, "made_by": 5}}}, "streams.audio: made_by is 5"),
    ({"streams": {f"s{i}": {"dim": 1} for i in range(16)}}, "16 streams; at most 15"),
    *(({"languages": languages}, "malformed .languages") for languages in (5, [5], None, "en")),
    *(({"splits": splits}, "malformed .splits") for splits in ([], 5, {"dev": {}}, {"train": 5}, {"train": {}})),
    (split_of(samples=-1), "malformed .splits.train"),
    (split_of(labels=[]), "malformed .splits.train"),
    (split_of(labels={"mood": {"good": "1"}}), "malformed .splits.train"),
    (split_of(labels={"other": {"good": 1}}), "malformed .splits.train"),
    (split_of(values={"score": {"count": 1}}), "malformed .splits.train"),
    (split_of(missing={"text": 0}), "malformed .splits.train"),
    *(({"shards": shards}, "malformed .shards") for shards in (5, [5], [{"name": 5}], {}, [{"name": "x.tar"}])),
    ({"shards": [{"name": "x.tar", "size": "9", "samples": 1}]}, "malformed .shards"),
    ({"dataset": 5}, "malformed .dataset is 5"),
    ({"index": []}, "malformed .index is a list"),
    ({"statistics": []}, "malformed .statistics"),
    ({"statistics": {"audio": {"frames": 1, "mean": [], "std": [], "min": [], "max": []}}}, "malformed .statistics"),
    ({"ceilings": {"mood": {"audio": "x"}}}, "malformed .ceilings"),
    ({"source": nested(MAX_DEPTH)}, f"nested deeper than {MAX_DEPTH} levels"),
    ({"dataset": "\ud800"}, "not a readable JSON file"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_MANIFESTS)
def test_a_malformed_manifest_is_refused_by_readers_and_reported_by_verify(folder, sample, change, message, refused):
    out = folder(samples=[sample(i) for i in range(5)])
    path = out / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    refused(lambda: read_manifest(out), rf"manifest\.json: .*{message}")
    for call in (lambda: ShardSet.open([out], "train"), lambda: print_info(out), lambda: target_values(out)):
        with pytest.raises(ShardError, match=message):
            call()
    assert [problem.kind for problem in verify(out).problems] == ["manifest"]


def test_a_manifest_of_100000_brackets(folder, refused):
    out = folder()
    (out / "manifest.json").write_text("[" * 100_000, encoding="utf-8")
    refused(lambda: read_manifest(out), f"not a readable JSON file .nested deeper than {MAX_DEPTH} levels")


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*at, key))
    elif isinstance(value, list):
        for i, item in enumerate(value[:2]):
            yield from places(item, (*at, i))


ODD = (5, "x", [], {}, None, -1, 1e308, True, [1], {"a": 1}, "[bold]x[/nope]", [[]], 10**30, "\\", 10**400)


def test_any_odd_value_anywhere_in_a_manifest_is_printed_or_refused(folder, sample):
    ceilings = {"mood": {"metric": "accuracy", "text": 0.9}, "score": {"metric": "mae", "audio": 0.5}}
    source = {"importer": "x", "files": [{"file": "y"}], "features": {"audio": {"frames_kept": 3, "[/]": 4}}}
    out = folder(samples=[sample(i) for i in range(5)], ceilings=ceilings, provenance=source)
    manifest, rng = json.loads((out / "manifest.json").read_text(encoding="utf-8")), random.Random(1)
    printed, refusals = 0, []
    for place in places(manifest):
        for odd in rng.sample(ODD, 3):
            changed = deepcopy(manifest)
            holder = changed
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = odd
            (out / "manifest.json").write_text(json.dumps(changed), encoding="utf-8")
            try:
                print_info(out, Console(file=io.StringIO(), width=100))
                printed += 1
            except ShardError as error:
                refusals.append(str(error))
    assert min(printed, len(refusals)) > 50
    assert not any("\n" in line for line in refusals)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (5, "tasks.json: there is no such file"),
        ([{"name": ["x"]}], "task is malformed"),
        (["x"], "tasks must be a list"),
    ],
)
def test_force_over_a_manifest_with_odd_tasks(folder, tasks, message, refused):
    out = folder()
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    (out / "manifest.json").write_text(json.dumps(manifest | {"tasks": tasks}), encoding="utf-8")
    refused(lambda: index_foreign(out, force=True), message)


def test_what_was_before_does_not_grow_until_nothing_reads_it(folder, sample):
    out = folder(samples=[sample(i) for i in range(5)], provenance={"made": nested(MAX_DEPTH // 2 - 2)})
    assert "before" in index_foreign(out, force=True)["source"]
    assert "before" not in index_foreign(out, force=True)["source"]
    assert read_manifest(out)["source"] == {"importer": "index"}
