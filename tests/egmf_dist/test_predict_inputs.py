"""`egmf predict` on shards, with a truth, and on two ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from egmf_dist import load
from egmf_dist.jobs import PredictJob
from egmf_dist.metrics.by_task import evaluate_task
from egmf_launcher.cli import main
from egmf_shards import ShardWriter
from egmf_shards.checksums import sha256


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def shards(make_samples, tasks, tmp_path_factory):
    """90 labelled samples of both tasks, and four without a target."""
    folder = tmp_path_factory.mktemp("predict") / "shards"
    with ShardWriter(folder, "toy", list(tasks.values()), {"audio": 6, "vision": 5}) as writer:
        for number, sample in enumerate(make_samples(94)):
            known = {} if number < 90 else {"label": None, "value": None}
            split = "test" if number < 90 else "unlabelled"
            writer.write(replace(sample, split=split, dialogue=f"d{number}", **known))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lines")
    np.save(folder / "a.npy", np.ones((3, 6), np.float32))
    rows = [{"id": f"n{i}", "text": "glad " * (i % 7 + 1), "dialogue": f"d{i // 5}", "speaker": "A"} for i in range(75)]
    rows[3]["audio"], rows[40]["audio"] = "a.npy", "gone.npy"
    rows[5] |= {"value": 0.5}
    rows[6] |= {"label": "joy", "task": "emotion"}
    rows[7] |= {"label": "boredom"}  # of some other data set
    rows[8] |= {"label": "boredom", "task": "emotion"}
    rows[9] |= {"value": 7.5, "task": "sentiment"}
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_shards_are_answered_and_judged(exported, shards, make_samples, tasks, tmp_path, capsys) -> None:
    out = tmp_path / "out.jsonl"
    assert main(["predict", str(exported), "--input", str(shards), "--split", "test", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    found, samples = lines(out), make_samples(94)[:90]
    assert [row["id"] for row in found] == [s.id for s in samples]
    assert all(list(row["answers"]) == [s.task] for row, s in zip(found, samples, strict=True))
    assert all(row["truth_log_probability"][s.task] < 0 for row, s in zip(found, samples, strict=True))
    for name, task in tasks.items():
        own = [(row, s) for row, s in zip(found, samples, strict=True) if s.task == name]
        if name == "emotion":
            truth = [task.labels.index(s.label) for _, s in own]
            predicted = [task.labels.index(row["answers"][name]["label"]) for row, _ in own]
        else:
            truth, predicted = [s.value for _, s in own], [row["answers"][name]["value"] for row, _ in own]
        metric = "weighted_f1" if name == "emotion" else "mae"
        wanted = evaluate_task(task, truth, predicted)["metrics"][metric]
        line = next(line for line in said.splitlines() if line.startswith(f"{name}, {len(own)} with a truth: "))
        assert f"{metric} {wanted:.3f}" in line
    whole = ["--input", str(shards), "--split", "unlabelled", "--tasks", "emotion,sentiment"]
    assert main(["predict", str(exported), *whole, "--out", str(tmp_path / "all.jsonl")]) == 0
    assert [list(row["answers"]) for row in lines(tmp_path / "all.jsonl")] == [["emotion", "sentiment"]] * 4
    assert "with a truth" not in capsys.readouterr().out


def test_a_truth_in_a_line(exported, source, tmp_path, capsys) -> None:
    out = tmp_path / "out.jsonl"
    assert main(["predict", str(exported), "--input", str(source), "--out", str(out)]) == 1
    said = capsys.readouterr().out
    found = lines(out)
    assert [row.get("truth") for row in found[4:10]] == [None, {"sentiment": 0.5}, {"emotion": "joy"}, None, None, None]
    assert [[*row["answers"]] for row in found[5:9]] == [["emotion", "sentiment"], ["emotion"]] * 2
    assert found[7]["truth_unused"] == "label 'boredom' is no answer of a task that is asked in 'en'"
    assert "'boredom' is not in the label space of task 'emotion'" in found[8]["truth_unused"]
    assert "7.5 is outside the range [-1.0, 1.0]" in found[9]["truth_unused"]
    assert [n for n, row in enumerate(found) if "error" in row] == [40]
    assert "warning: 3 have a label or value that is no truth here, the first: label 'boredom'" in said
    assert not any(answer["calibrated"] for row in found for answer in row.get("answers", {}).values())
    assert said.count("(answers are not calibrated)") == 2


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"low": -3.0, "high": 3.0, "step": 1.0}, "task 'sentiment' has low -3.0, the model's has -1.0"),
        ({"name": "emotion", "labels": ("neutral", "joy", "fear")}, "has labels [neutral, joy, fear], the model's has"),
    ],
)
def test_shards_of_another_task_of_the_name_are_refused(exported, make_samples, tasks, tmp_path, capsys, changed, says):
    name = changed.get("name", "sentiment")
    sample = replace(make_samples(1)[0], split="test", task=name, label=None, value=None)
    with ShardWriter(tmp_path / "s", "toy", [replace(tasks[name], **changed)], {"audio": 6, "vision": 5}) as writer:
        writer.write(replace(sample, split="unlabelled"))
    words = ["--input", str(tmp_path / "s"), "--split", "unlabelled", "--out", str(tmp_path / "out.jsonl")]
    assert main(["predict", str(exported), *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()
    other = next(task for task in tasks if task != name)
    assert main(["predict", str(exported), *words, "--tasks", other]) == 0


@pytest.mark.distributed
def test_two_ranks_answer_every_line_once_in_order(exported, source, shards, run_ranks, tmp_path) -> None:
    """Lines and shards, a stopped output among them, beside what one process says."""
    alone = {name: tmp_path / f"{name}-1.jsonl" for name in ("lines", "shards")}
    main(["predict", str(exported), "--input", str(source), "--out", str(alone["lines"])])
    main(["predict", str(exported), "--input", str(shards), "--out", str(alone["shards"])])
    ranks = {name: tmp_path / f"{name}-2.jsonl" for name in alone}
    begun = lines(alone["lines"])[:33]
    ranks["lines"].write_text("".join(json.dumps(row) + "\n" for row in begun) + '{"id": "half', encoding="utf-8")
    about = load(exported).about["sha256"]
    state = {"input": sha256(source), "model": about, "tasks": None}
    (tmp_path / ".lines-2.jsonl.progress.json").write_text(json.dumps(state))
    inputs = {"lines": source, "shards": shards}
    jobs = {name: PredictJob(Path(exported), inputs[name], out, launch="token") for name, out in ranks.items()}
    results = run_ranks("training_run.py", 2, jobs)
    found = {name: (r["lines"], r["before"], r["failed"]) for name, r in results.items()}
    assert found == {"lines": (75, 33, 1), "shards": (90, 0, 0)}
    assert set(results["shards"]["metrics"]) == {"emotion", "sentiment"}
    for name in ranks:
        ours, theirs = lines(ranks[name]), lines(alone[name])
        assert [row["id"] for row in ours] == [row["id"] for row in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.get("error") == other.get("error")
            for task, answer in one.get("answers", {}).items():
                assert answer["probabilities"] == pytest.approx(other["answers"][task]["probabilities"], abs=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        p.name for p in (*alone.values(), *ranks.values())
    )
