"""Pictures are drawn from what there is; what is not there is left out, what is broken is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egmf_dist.errors import EgmfError
from egmf_dist.files import write_json_lines
from egmf_dist.metrics.by_task import evaluate_task
from egmf_dist.report import write_report
from egmf_dist.report.curves import comparison_figure, smooth, training_figure, validation_lines
from egmf_dist.report.gates import gates_figure, true_class
from egmf_dist.report.read import read_run
from egmf_dist.report.write import figures, run_labels
from egmf_dist.style import save
from egmf_shards import Task

LABELS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
EMOTION = Task(name="emotion", kind="classification", questions={"en": "?"}, labels=LABELS, answers={"en": LABELS})
SENTIMENT = Task(
    name="sentiment", kind="regression", questions={"en": "?"}, convention="mosei", low=-3, high=3, step=0.5
)
CEILINGS = {
    "emotion": {
        "metric": "weighted_f1",
        "text+audio+vision": 0.94,
        "audio+vision": 0.6,
        "text+vision": 0.6,
        "text+audio": 0.57,
    },
    "sentiment": {
        "metric": "corr",
        "text+audio+vision": 0.98,
        "audio+vision": 0.75,
        "text+vision": 0.75,
        "text+audio": 0.74,
    },
}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def metrics_lines(steps: int = 600) -> list[dict[str, Any]]:
    chance = np.random.default_rng(0)
    lines: list[dict[str, Any]] = [{"kind": "start", "steps": steps, "step": 0}]
    for step in range(10, steps + 1, 10):
        answer = 4 * np.exp(-step / 150) + 0.5 + 0.1 * chance.standard_normal()
        lines.append(
            {
                "kind": "train",
                "step": step,
                "loss": answer + 0.5,
                "loss_answer": answer,
                "loss_auxiliary": 1.0,
                "grad_norm": float(chance.uniform(0.2, 3)),
                "lr": 3e-4 * step / steps,
                "skipped": int(step >= 300),
            }
        )
        if step % 100 == 0:
            f1 = 0.9 - abs(step - 500) / 1000
            tasks = {
                "emotion": {"metrics": {"weighted_f1": f1}},
                "sentiment": {"metrics": {"corr": None if step < 200 else f1, "mae": 0.5}},
            }
            lines.append(
                {
                    "kind": "valid",
                    "step": step,
                    "score": f1,
                    "selected_by": "valid mean",
                    "best": step <= 500,
                    "tasks": tasks,
                }
            )
    return [*lines, {"kind": "end", "step": steps}]


def rows_of(task: Task, count: int = 300) -> list[dict[str, Any]]:
    chance = np.random.default_rng(1)
    rows = []
    for i in range(count):
        if task is EMOTION:
            true = int(chance.integers(7))
            truth, predicted = LABELS[true], LABELS[true if chance.random() < 0.8 else int(chance.integers(7))]
        else:
            truth = float(chance.integers(-6, 7) / 2)
            predicted = float(np.clip(truth + 0.4 * chance.standard_normal(), -3, 3))
        experts, modalities = chance.dirichlet([2, 2, 4]), chance.dirichlet([5, 3, 2])
        rows.append(
            {
                "id": f"{task.name}-{i}",
                "task": task.name,
                "language": "en",
                "truth": truth,
                "predicted": predicted,
                "answer": str(predicted),
                "gates": {
                    "experts": dict(zip(("local", "semantic", "global"), experts.tolist(), strict=True)),
                    "modalities": dict(zip(("text", "audio", "vision"), modalities.tolist(), strict=True)),
                },
            }
        )
    return rows


def scored(rows: list[dict[str, Any]]) -> dict[str, Any]:
    out = {}
    for task in (EMOTION, SENTIMENT):
        own = [r for r in rows if r["task"] == task.name]
        numbers = [[LABELS.index(r[k]) if task is EMOTION else r[k] for r in own] for k in ("truth", "predicted")]
        out[task.name] = evaluate_task(task, numbers[0], numbers[1]) | {"selected_by": "valid mean"}
    return {"tasks": out}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with everything: curves, evaluation with removal and ceilings, predictions with gates."""
    folder = tmp_path / "runs" / "demo"
    write_lines(folder / "metrics.jsonl", metrics_lines())
    rows = rows_of(EMOTION) + rows_of(SENTIMENT)
    write_lines(folder / "evaluation" / "predictions-test.jsonl", rows)
    less = scored(rows_of(EMOTION, 40) + rows_of(SENTIMENT, 40))
    evaluation = scored(rows) | {"removed": {"text": less, "audio": less, "vision": less}, "ceilings": CEILINGS}
    (folder / "evaluation" / "test.json").write_text(json.dumps(evaluation), encoding="utf-8")
    return folder


def names(files: list[Path]) -> list[str]:
    return [file.name for file in files]


def planned(run: Path) -> list[str]:
    """Names of the pictures without rendering them."""
    return [name for name, _ in figures(read_run(run))]


def is_png(file: Path) -> bool:
    data = file.read_bytes()
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data.rstrip().endswith(b"IEND\xaeB`\x82") and len(data) > 5000


def test_a_whole_run_gives_every_picture(run: Path) -> None:
    files = write_report(run)
    assert names(files) == [
        "training.png",
        "confusion-emotion-test.png",
        "gates-emotion-test.png",
        "scatter-sentiment-test.png",
        "gates-sentiment-test.png",
        "missing-test.png",
        "index.html",
    ]
    assert all(is_png(file) for file in files[:-1])
    assert sorted(p.name for p in (run / "report").iterdir()) == sorted(names(files))
    drawn = files[3].read_bytes()
    name, figure = list(figures(read_run(run)))[3]
    assert save(figure, run / f"{name}.png").read_bytes() == drawn, "the same data give the same bytes"


def test_pyplot_is_never_loaded() -> None:
    code = "import sys, egmf_dist.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_training_alone_and_evaluation_alone(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    write_lines(alone / "metrics.jsonl", metrics_lines(50))  # no validation yet
    assert names(write_report(alone)) == ["training.png", "index.html"]
    (run / "metrics.jsonl").unlink()
    assert "training" not in planned(run)


def test_without_predictions_or_gates(run: Path) -> None:
    path = run / "evaluation" / "predictions-test.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    write_lines(path, [{k: v for k, v in row.items() if k != "gates"} for row in rows])
    assert not [name for name in planned(run) if name.startswith("gates")]
    path.unlink()
    assert planned(run) == ["training", "confusion-emotion-test", "missing-test"]


def test_a_text_may_hold_signs_that_end_lines_elsewhere(run: Path) -> None:
    path = run / "evaluation" / "predictions-test.jsonl"
    rows = [json.loads(line) | {"text": "so\u2028it\u0085goes"} for line in path.read_text().split("\n") if line]
    write_json_lines(path, rows)
    assert "\u2028" in path.read_text()
    found = read_run(run).predictions["test"]
    assert len(found) == len(rows)
    assert found[3]["text"] == "so\u2028it\u0085goes"


def test_nothing_to_draw_says_what_to_run_first(tmp_path: Path) -> None:
    with pytest.raises(EgmfError, match="no such run"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EgmfError, match=r"nothing to draw yet.*egmf train.*egmf evaluate"):
        write_report(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("test.json", "{", r"test.json: not JSON"),
        ("test.json", "[]", r"test.json: not an evaluation"),
        ("predictions-test.jsonl", '{"task": "emotion"}\n', r"predictions-test.jsonl, line 1: lacks predicted, truth"),
        ("predictions-test.jsonl", "{}\nno\n", r"predictions-test.jsonl, line 1: lacks"),
    ],
)
def test_broken_files_are_named_and_nothing_is_written(run: Path, file: str, content: str, message: str) -> None:
    (run / "evaluation" / file).write_text(content, encoding="utf-8")
    with pytest.raises(EgmfError, match=message):
        write_report(run)
    assert not (run / "report").exists()


def test_a_line_cut_short_by_a_kill_is_passed_over(run: Path) -> None:
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"kind": "train", "st')
    assert len(read_run(run).train) == 60


def test_the_star_stands_at_the_kept_adapter(run: Path) -> None:
    results = read_run(run)
    assert results.selected is not None
    assert results.selected["step"] == 500
    figure = training_figure(results)
    validation = figure.axes[1]
    stars = [line for line in validation.lines if line.get_marker() == "*"]
    assert {tuple(line.get_xdata()) for line in stars} == {(500,)}
    assert [float(line.get_ydata()[0]) for line in stars] == pytest.approx([0.9, 0.9])
    assert "step 500" in validation.get_title(loc="left")


def test_the_selecting_metric_is_drawn_too(run: Path) -> None:
    results = read_run(run)
    assert validation_lines(results) == [("emotion", "weighted_f1"), ("sentiment", "corr")]
    results.valid[-1]["selected_by"] = "valid sentiment.mae"
    assert ("sentiment", "mae") in validation_lines(results)


def test_repeated_steps_after_a_resume_count_once(run: Path) -> None:
    again = [line | {"loss": 99.0} for line in metrics_lines() if line["kind"] == "train" and line["step"] == 300]
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(again[0]) + "\n")
    train = read_run(run).train
    assert [r["step"] for r in train] == list(range(10, 601, 10))
    assert next(r for r in train if r["step"] == 300)["loss"] == 99.0


def test_gates_mean_by_class() -> None:
    def row(truth: str | float, local: float) -> dict[str, Any]:
        return {
            "truth": truth,
            "gates": {"experts": {"local": local, "global": 1 - local}, "modalities": {"text": 1.0}},
        }

    rows = [row("joy", 0.2), row("joy", 0.4), row("anger", 0.9)]
    figure = gates_figure("emotion", "test", rows, ["neutral", "joy", "anger"])
    assert figure is not None
    experts = figure.axes[0]
    assert [label.get_text() for label in experts.get_yticklabels()] == ["joy (2)", "anger (1)"]
    assert np.asarray(experts.images[0].get_array()) == pytest.approx(np.array([[0.3, 0.7], [0.9, 0.1]]))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["experts: mean by true class", "modalities: mean by true class"]
    other = gates_figure("emotion", "test", [{"truth": "joy", "gates": {"entropy of layers": {"first": 1.5}}}], [])
    assert other is not None
    assert other.axes[0].get_title(loc="left") == "entropy of layers: mean by true class"
    signs = gates_figure("sentiment", "test", [row(0.5, 0.1), row(0.0, 0.2), row(-1.0, 0.3)], [])
    assert signs is not None
    assert [t.get_text() for t in signs.axes[0].get_yticklabels()] == ["negative (1)", "neutral (1)", "positive (1)"]
    assert [true_class(x) for x in (-0.2, 0.0, 0.2, "joy")] == ["negative", "neutral", "positive", "joy"]
    assert gates_figure("emotion", "test", [{"truth": "joy", "gates": None}], []) is None


def test_collapse_and_undefined_scores_are_written_out(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "evaluation"
    rows = [
        {"task": "sentiment", "truth": float(i % 5 - 2), "predicted": 0.1, "id": str(i), "language": "en"}
        for i in range(40)
    ]
    write_lines(folder / "predictions-valid.jsonl", rows)
    result = evaluate_task(SENTIMENT, [r["truth"] for r in rows], [r["predicted"] for r in rows])
    assert result["collapsed"]
    (folder / "valid.json").write_text(json.dumps({"tasks": {"sentiment": result}}), encoding="utf-8")
    assert names(write_report(tmp_path / "run")) == ["scatter-sentiment-valid.png", "index.html"]


def test_names_that_are_no_file_names_or_formulas(tmp_path: Path) -> None:
    labels = ("高兴", "$x_", "plain")
    task = Task(name="my/task $1", kind="classification", questions={"en": "?"}, labels=labels, answers={"en": labels})
    folder = tmp_path / "run" / "evaluation"
    folder.mkdir(parents=True)
    result = evaluate_task(task, [0, 1, 2], [0, 1, 1])
    (folder / "test.json").write_text(json.dumps({"tasks": {task.name: result}}), encoding="utf-8")
    files = write_report(tmp_path / "run")
    assert names(files) == ["confusion-my_task_1-test.png", "index.html"]
    assert is_png(files[0])


def test_compare_draws_runs_beside_each_other(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "demo"
    write_lines(other / "metrics.jsonl", metrics_lines(300))
    for picture in ("test.json", "predictions-test.jsonl"):
        (run / "evaluation" / picture).unlink()
    files = write_report(run, compare=[other])
    assert names(files)[-2:] == ["compare.png", "index.html"]
    assert is_png(files[-2])
    assert not (other / "report").exists()
    with pytest.raises(EgmfError, match="nowhere: no such run"):
        write_report(run, compare=[tmp_path / "nowhere"])


def test_compare_shows_the_scores_of_the_split_both_evaluated(run: Path) -> None:
    results = read_run(run)
    figure = comparison_figure([results, results], ["one", "two"])
    scores = figure.axes[2]
    assert scores.get_title(loc="left") == "test split"
    assert [t.get_text() for t in scores.get_xticklabels()] == ["emotion\nweighted_f1", "sentiment\ncorr"]
    f1 = results.evaluations["test"]["tasks"]["emotion"]["metrics"]["weighted_f1"]
    assert [bar.get_height() for bar in scores.patches[::2]] == pytest.approx([f1, f1])


def test_runs_of_the_same_name_are_told_apart_by_their_parents() -> None:
    assert run_labels([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    assert run_labels([Path("x/runs/a"), Path("y/runs/a")]) == ["x/runs/a", "y/runs/a"]


def test_the_smoothed_loss_does_not_lag():
    """A mean of the past alone lies above a falling loss; noise goes all the same."""
    falling = [10 - 0.5 * i for i in range(40)]
    assert smooth(falling) == pytest.approx(falling)
    noisy = [value + (-1) ** i for i, value in enumerate(falling)]
    inner = slice(8, 32)
    assert max(abs(a - b) for a, b in zip(smooth(noisy)[inner], falling[inner], strict=True)) < 0.1
    assert smooth([]) == []
    assert smooth([3.0]) == [3.0]
