"""The page of a run: what it says, what it leaves out, and how a browser finds it."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from browser import Browser, browser

from egmf_dist.inference.predictions import note_without
from egmf_dist.report import write_report
from egmf_dist.report.answers import reliability_figure
from egmf_dist.report.gates import gate_tables
from egmf_dist.report.missing import robustness_figure
from egmf_dist.report.page import render_page
from egmf_dist.report.read import read_run
from egmf_dist.report.samples import disagreements, errors, feature_picture, find_samples
from egmf_dist.report.write import run_labels
from egmf_shards import ShardSet
from egmf_shards.synthetic.generate import synthesize

HOSTILE = '<script>console.error("run")</script><img src="http://127.0.0.1:9/x.png" onerror="throw 1"> & "</blockquote>'
LABELS = ["calm", "joy_" * 8, "<b>bold</b>"]
BINS = [
    {"low": 0.4, "high": 0.6, "n": 3, "confidence": 0.5, "accuracy": 0.4},
    {"low": 0.8, "high": 1.0, "n": 0, "confidence": None, "accuracy": None},
]
ROBUSTNESS = {
    "metric": "weighted_f1",
    "clean": 0.8,
    "curves": {
        "audio": {"drop": [[0.0, 0.8], [0.5, 0.6]], "noise": [[20, 0.7], [0, 0.5]]},
        "words": {"drop": [[0.0, 0.8], [0.5, 0.3]]},
    },
    "removed": {"audio": 0.41},
    "context": {"shuffled": 0.71, "removed": 0.72},
    "area": {"audio": 0.65},
    "area_all": 0.655,
    "conflict": {
        "audio": {"n": 7, "follows_stream": 0.25, "follows_rest": 0.5, "neither": 0.25, "follows_stream_before": 0.1}
    },
}


def emotion_rows() -> list[dict[str, Any]]:
    chosen = [("calm", "calm", 0.9), ("calm", LABELS[1], 0.6), (LABELS[2], "calm", 0.8), (LABELS[1], LABELS[1], 0.5)]
    return [
        {
            "id": f"e{i}",
            "task": "emotion",
            "language": ("en", "zh")[i % 2],
            "truth": truth,
            "predicted": predicted,
            "answer": predicted,
            "probabilities": [p if label == predicted else (1 - p) / 2 for label in LABELS],
            "gates": {"experts": {"local": 0.25 * i, "global": 1 - 0.25 * i}},
            "without": {"text": LABELS[2], "audio": predicted},
            "speaker": "Ann<br>",
            "text": (HOSTILE, "w" * 400, "你好，世界。" * 40, "")[i],
        }
        for i, (truth, predicted, p) in enumerate(chosen)
    ]


def number_rows() -> list[dict[str, Any]]:
    pairs = [(1.0, 0.5), (-2.0, 1.0), (0.0, 0.1), (3.0, 2.9)]
    return [
        {
            "id": f"s{i}", "task": "sentiment", "language": "en", "truth": truth, "predicted": predicted,
            "without": {"text": predicted - i, "audio": predicted}, "text": f"utterance {i}",
        }
        for i, (truth, predicted) in enumerate(pairs)
    ]  # fmt: skip


def evaluation() -> dict[str, Any]:
    emotion: dict[str, Any] = {
        "kind": "classification", "n": 4, "collapsed": "emotion: all answers are one",
        "metrics": {"accuracy": 0.5, "weighted_f1": 0.512, "ece": None}, "intervals": {"weighted_f1": [0.41, 0.62]},
        "labels": LABELS, "confusion": [[1, 1, 0], [0, 1, 0], [1, 0, 0]], "reliability": BINS,
        "calibration": {"temperature": 1.75, "samples": 90, "split": "valid"},
        "calibrated": {"metrics": {"accuracy": 0.5, "ece": 0.031}},
        "groups": {"language": {"en": {"n": 2, "metric": "weighted_f1", "value": 0.333}}},
    }  # fmt: skip
    sentiment = {
        "kind": "regression", "n": 4, "collapsed": None, "metrics": {"mae": 0.9, "corr": 0.871},
        "intervals": {"corr": None}, "readings": {"median": {"mae": 0.84, "corr": 0.866}},
    }  # fmt: skip
    less = {
        "emotion": {"kind": "classification", "metrics": {"weighted_f1": 0.3}},
        "sentiment": {"kind": "regression", "metrics": {"corr": None}},
    }
    return {
        "tasks": {"emotion": emotion, "sentiment": sentiment}, "checkpoint": "best/step-0000020", "samples": 8,
        "split": "test", "modalities": ["text", "audio"], "removed": {"text": {"tasks": less}},
        "ceilings": {"emotion": {"text+audio": 0.95, "audio": 0.6}},
    }  # fmt: skip


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def training(folder: Path, seed: int = 3) -> None:
    """Records and settings of a training of 20 steps."""
    valid = {"emotion": {"metrics": {"weighted_f1": 0.5}}, "sentiment": {"metrics": {"corr": None}}}
    start = {"steps": 20, "step": 0, "trained_parameters": 1234, "parameters": 56789, "backbone": "backbone: qwen2, 64"}
    lines(
        folder / "metrics.jsonl",
        [
            {"kind": "start", "time": "2026-01-02T03:04:05+00:00", **start},
            *({"kind": "train", "step": i, "loss": 4 / i, "lr": 0.1, "grad_norm": 1.0} for i in range(1, 21)),
            {"kind": "valid", "step": 20, "score": 0.5, "selected_by": "valid mean", "best": True, "tasks": valid},
        ],
    )
    data, backbone = {"shards": ["data/<mine>"]}, {"path": "backbones/tiny", "tuning": "lora", "lora_rank": 8}
    settings = {"format": 2, "data": data, "backbone": backbone, "training": {"seed": seed, "steps": 20}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    manifest = {"format": 2, "versions": {"torch": "2.99"}, "identity": {"data": "f" * 64, "seed": seed}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with every part that a page may have."""
    folder = tmp_path / "runs" / "all <of> it"
    training(folder)
    lines(folder / "evaluation" / "predictions-test.jsonl", emotion_rows() + number_rows())
    (folder / "evaluation" / "test.json").write_text(json.dumps(evaluation()), encoding="utf-8")
    robust = {"split": "test", "tasks": {"emotion": ROBUSTNESS}}
    (folder / "evaluation" / "test-robustness.json").write_text(json.dumps(robust), encoding="utf-8")
    return folder


class Reader(html.parser.HTMLParser):
    """Headings, table rows, facts and tags of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.rows: list[str] = []
        self.tags: list[str] = []
        self.facts: dict[str, str] = {}
        self._open: list[tuple[str, list[str]]] = []
        self._name = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in ("h1", "h2", "h3", "h4", "summary", "tr", "dt", "dd"):
            self._open.append((tag, []))

    def handle_data(self, data: str) -> None:
        for _, parts in self._open:
            parts.append(data)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1][0] != tag:
            return
        text = " ".join("".join(" " + part for part in self._open.pop()[1]).split())
        if tag == "tr":
            self.rows.append(text)
        elif tag == "dt":
            self._name = text
        elif tag == "dd":
            self.facts.setdefault(self._name, text)
        else:
            self.headings.append(re.sub(r" \(.*", "", text))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture is rendered: what a test reads is the page's text."""
    monkeypatch.setattr("egmf_dist.report.page.png", lambda figure, dpi: b"")


def page(run: Path, *compare: Path) -> Reader:
    folders = [run, *compare]
    runs = [read_run(folder) for folder in folders]
    file = run / "page.html"
    file.write_text(render_page(runs, run_labels(folders), find_samples(run, runs[0])), encoding="utf-8")
    return Reader(file)


PARTS = ["Metrics", "Confusion", "Without a modality"]


def test_every_part_is_there_with_its_numbers(run: Path, quick: None) -> None:
    read = page(run)
    assert read.headings == [
        "all <of> it", "What was trained on what", "Training", "Every validation", "Evaluation: test",
        "emotion", "Metrics", "Confusion", "Reliability", "Without a modality", "Calibration", "Robustness",
        "Whom the fusion listens to", "By group", "The worst answers: wrong, and surest of it",
        "Where streams disagree: the answer changes most without one",
        "sentiment", "Metrics", "Predicted against true", "Without a modality",
        "The worst answers: wrong, and surest of it", "Where streams disagree: the answer changes most without one",
        "Where it comes from", "Settings",
    ]  # fmt: skip
    for row in (
        "weighted_f1 0.512 0.410 to 0.620",  # an interval; the calibrated answers have no such metric
        "ece (lower is better) undefined 0.031",
        "mae (lower is better) 0.900 0.840",
        "corr 0.871 0.866",
        "all 0.512 0.950",
        "without text 0.300 0.600",
        "all 0.871",
        "without text undefined",
        "en 2 weighted_f1 0.333",
        "calm (2) 1 50% 1 50% 0",
        "undisturbed 0.800",
        "without audio 0.410",
        "context shuffled 0.710",
        "mean over all curves 0.655",
        "audio 7 0.250 0.100 0.500 0.250",
        "20 (kept) 0.500 0.500 undefined",
        "en (2) 0.25 0.75",  # gates of rows 0 and 2: local 0 and 0.5
        "zh (2) 0.50 0.50",
    ):
        assert row in read.rows, row
    told = {
        "data": "data/<mine>", "parameters trained": "1,234 of 56,789", "seed": "3", "steps": "20 of 20",
        "tuning": "lora, rank 8", "backbone": "backbones/tiny - qwen2, 64", "selected by": "valid mean",
        "kept adapter": "step 20", "temperature": "1.750", "torch": "2.99",
        "index hash of the training split": "f" * 64, "start at step 0": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    assert {name: read.facts.get(name) for name in told} == told
    assert "script" not in read.tags
    assert "br" not in read.tags


def test_a_part_without_data_is_left_out(run: Path, tmp_path: Path, quick: None) -> None:
    alone = tmp_path / "alone"
    training(alone)
    trained = ["What was trained on what", "Training", "Every validation"]
    assert page(alone).headings == ["alone", *trained, "Where it comes from", "Settings"]
    for name in ("metrics.jsonl", "config.yaml", "manifest.json", "evaluation/predictions-test.jsonl"):
        (run / name).unlink()
    (run / "evaluation" / "test-robustness.json").unlink()
    old = evaluation()
    kept = ("kind", "n", "metrics", "labels", "confusion", "collapsed")
    old["tasks"] = {name: {k: v for k, v in task.items() if k in kept} for name, task in old["tasks"].items()}
    (run / "evaluation" / "test.json").write_text(json.dumps(old), encoding="utf-8")
    scored = ["emotion", *PARTS, "sentiment", "Metrics", "Without a modality"]
    assert page(run).headings == ["all <of> it", "What was trained on what", "Evaluation: test", *scored]
    (run / "evaluation" / "test.json").unlink()
    (run / "evaluation" / "test-robustness.json").write_text(json.dumps({"tasks": {"emotion": ROBUSTNESS}}))
    assert page(run).headings == ["all <of> it", "Evaluation: test", "emotion", "Robustness"]


def test_runs_beside_each_other(run: Path, tmp_path: Path, quick: None) -> None:
    other, empty = tmp_path / "other", tmp_path / "third"
    training(other, seed=4)
    training(empty)
    better = evaluation()
    better["tasks"]["emotion"]["metrics"]["weighted_f1"] = 0.7
    better["tasks"]["emotion"]["intervals"] = {}
    (other / "evaluation").mkdir()
    (other / "evaluation" / "test.json").write_text(json.dumps(better), encoding="utf-8")
    read = page(run, other, empty)
    assert read.headings[1] == "Beside other runs"
    assert "test emotion weighted_f1 0.512 0.410 to 0.620 0.700 not evaluated" in read.rows
    assert "training.seed 3 4 3" in read.rows
    assert re.findall(r'<td class="best">([\d.]+)', (run / "page.html").read_text(encoding="utf-8"))[:1] == ["0.700"]


def test_which_samples_are_shown() -> None:
    assert [row["id"] for row in errors(emotion_rows())] == ["e2", "e1"]  # wrong, the surer one first
    assert [row["id"] for row in errors(number_rows())][:2] == ["s1", "s0"]  # off by 3 and by 0.5
    assert [row["id"] for row in disagreements(number_rows())] == ["s3", "s2", "s1"]  # 3, 2 and 1 apart; s0 agrees
    rows = [
        {"id": "agree", "predicted": "a", "without": {"text": "a", "audio": "a"}},
        {"id": "one of two", "predicted": "a", "without": {"text": "b", "audio": "a"}},
        {"id": "both, alike", "predicted": "a", "without": {"text": "b", "audio": "b"}},
        {"id": "three answers", "predicted": "a", "without": {"text": "b", "audio": "c"}},
        {"id": "not asked", "predicted": "a"},
    ]
    assert [row["id"] for row in disagreements(rows)] == ["three answers", "both, alike", "one of two"]
    assert errors([]) == disagreements([]) == []


def test_answers_without_each_modality_are_noted() -> None:
    rows: list[dict[str, Any]] = [{"predicted": "a"}, {"predicted": "b"}]
    note_without(rows, {"text": [{"predicted": "c"}, {"predicted": "b"}], "audio": [{"predicted": "a"}] * 2})
    assert [row["without"] for row in rows] == [{"text": "c", "audio": "a"}, {"text": "b", "audio": "a"}]


def test_text_and_features_come_from_the_shards_as_long_as_they_are_the_same(tmp_path: Path, quick: None) -> None:
    data, folder = tmp_path / "clips-of-the-test", tmp_path / "run"  # a name that the working folder does not have
    synthesize(data, 0, 40, 0.0, 0.01)
    training(folder)
    shards = ShardSet.open([data], "test")
    sample = next(s for s in shards if s.task == "emotion")
    wrong = next(label for label in shards.tasks["emotion"].labels if label != sample.label)
    row = {"id": sample.id, "task": "emotion", "truth": sample.label, "predicted": wrong, "probabilities": [1.0]}
    lines(folder / "evaluation" / "predictions-test.jsonl", [row])
    settings = {"directory": str(tmp_path), "data": {"shards": [data.name]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    identity = {"data": ShardSet.open([data], "train").index_hash}
    (folder / "manifest.json").write_text(json.dumps({"identity": identity}), encoding="utf-8")
    found = find_samples(folder, read_run(folder))
    assert found.samples["test", "emotion", sample.id, 0].text == sample.text
    assert found.counts["test"] == len(shards)
    page(folder)
    text = (folder / "page.html").read_text(encoding="utf-8")
    assert f"audio, {len(sample.features['audio'])} frames" in text
    assert sample.text in text.replace("&#39;", "'")
    (folder / "manifest.json").write_text(json.dumps({"identity": {"data": "0" * 64}}), encoding="utf-8")
    assert find_samples(folder, read_run(folder)).samples == {}
    page(folder)
    assert "text not at hand" in (folder / "page.html").read_text(encoding="utf-8")


def test_of_an_id_in_two_folders_and_splits_each_is_shown_with_its_own(tmp_path: Path, quick: None) -> None:
    data, folder = [tmp_path / "one", tmp_path / "two"], tmp_path / "run"
    for number, place in enumerate(data):
        synthesize(place, number, 40, 0.0, 0.01)
    training(folder)
    shards = ShardSet.open(data, "test")
    samples = [s for s in shards if s.task == "emotion"]
    twice = next(a for a in samples if sum(a.id == b.id for b in samples) == 2)
    both = [s for s in samples if s.id == twice.id]
    labels = shards.tasks["emotion"].labels
    rows = [
        {"id": s.id, "task": "emotion", "truth": s.label, "probabilities": [1.0]}
        | {"predicted": next(label for label in labels if label != s.label)}
        for s in both
    ]
    lines(folder / "evaluation" / "predictions-test.jsonl", rows)
    settings = {"directory": str(tmp_path), "data": {"shards": [place.name for place in data]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    identity = {"data": ShardSet.open(data, "train").index_hash}
    (folder / "manifest.json").write_text(json.dumps({"identity": identity}), encoding="utf-8")
    found = find_samples(folder, read_run(folder)).samples
    assert [found["test", "emotion", twice.id, n].text for n in (0, 1)] == [s.text for s in both]
    assert both[0].text != both[1].text


def test_pictures_show_the_numbers() -> None:
    axes = reliability_figure("emotion", "test", BINS).axes[0]
    assert [(bar.get_x(), bar.get_height()) for bar in axes.patches] == [(0.4, 0.4)]
    figure = robustness_figure("emotion", "noise", ROBUSTNESS)
    assert figure is not None
    line = figure.axes[0].lines[0]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([20, 0], [0.7, 0.5])
    assert robustness_figure("emotion", "noise", {"curves": {"words": {"drop": [[0, 1]]}}}) is None
    assert feature_picture(np.zeros((1000, 3), np.float32))[16:24] == (240).to_bytes(4) + (3).to_bytes(4)
    assert gate_tables([{"gates": None}], ["en"], []) == []


needs_browser = pytest.mark.skipif(browser() is None, reason="no Chromium here: apt-get install chromium")


@needs_browser
def test_a_browser_finds_nothing_wrong_at_any_width(run: Path, tmp_path: Path) -> None:
    training(tmp_path / ("other" * 12))
    file = write_report(run, [tmp_path / ("other" * 12)])[-1]
    with Browser() as seen:
        for width, dark in ((390, False), (390, True), (1400, False), (1400, True)):
            seen.open(file, width, dark)
            assert seen.overflowing() == [], f"{width} px, closed"
            seen.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert seen.overflowing() == [], f"{width} px, open"
            ground = seen.evaluate("getComputedStyle(document.body).backgroundColor")
            assert ground == ("rgb(20, 20, 20)" if dark else "rgb(255, 255, 255)")
        assert seen.complaints == []
        assert [url for url in seen.requests if not url.startswith("data:image/png;base64,")] == [
            file.resolve().as_uri()
        ] * 4
        assert seen.evaluate("document.scripts.length") == 0
        assert seen.evaluate("[...document.images].filter(i => !i.naturalWidth).length") == 0
        assert HOSTILE in seen.evaluate("document.body.textContent")
        assert seen.pdf().startswith(b"%PDF")


@needs_browser
def test_what_is_wrong_with_a_page_is_found(tmp_path: Path) -> None:
    """The check above can fail: by a script's error, by another address, by text that is wider than the window."""
    bad = tmp_path / "bad.html"
    wide = f"<p>{'w' * 300}</p><div style='overflow-x: auto'><pre>{'x' * 300}</pre></div>"
    bad.write_text(f'<!doctype html><img src="http://127.0.0.1:9/x.png"><script>throw Error("no")</script>{wide}')
    with Browser() as seen:
        seen.open(bad, 390)
        found = seen.overflowing()
        assert any(line.startswith("page ") for line in found)
        assert any(line.startswith("P. ") for line in found)
        assert not [line for line in found if "xxx" in line and not line.startswith(("page", "BODY", "HTML"))]
        assert "http://127.0.0.1:9/x.png" in seen.requests
        assert any("no" in complaint for complaint in seen.complaints)
