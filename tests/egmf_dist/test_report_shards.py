"""The picture of a folder of shards: the numbers in it are the folder's, and every label fits and can be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from egmf_dist import style
from egmf_dist.errors import EgmfError
from egmf_dist.report import shards
from egmf_dist.report.shards import shards_figure, write_shards_picture
from egmf_shards import Sample, ShardError, ShardWriter, Task, describe
from egmf_shards.check.info import present_lengths, target_values
from egmf_shards.format.index import load_index
from egmf_shards.format.manifest import read_manifest, tasks_of

CHINESE = ("愤怒", "厌恶", "平静")
MOOD = Task(
    "mood", "classification", {"zh": "?", "en": "?"}, labels=CHINESE,
    answers={"zh": CHINESE, "en": ("anger", "disgust", "neutral")},
)  # fmt: skip
ZH_ONLY = Task("zh-only", "classification", {"zh": "?"}, labels=CHINESE, answers={"zh": CHINESE})
SCORE = Task("score", "regression", {"en": "?"}, low=-1, high=1, step=0.5)
FINE = Task("fine", "regression", {"en": "?"}, low=0, high=100, step=1)
TASKS = [MOOD, ZH_ONLY, SCORE, FINE]


def sample(i: int) -> Sample:
    rng = np.random.default_rng(i)
    task = TASKS[i % 4]
    audio = None if i % 10 == 3 else rng.normal(size=(int(np.exp(rng.normal(3, 1.5))) + 1, 3)).astype(np.float32)
    return Sample(
        id=f"s{i}",
        text="x" * int(rng.integers(1, 60)),
        language=task.languages[0],
        task=task.name,
        dataset="toy$",
        split=("train", "train", "valid", "test")[rng.integers(4)],
        modalities=("text",) if audio is None else ("text", "audio"),
        label=task.labels[rng.integers(3)] if task.kind == "classification" else None,
        value=None if task.kind == "classification" else float(rng.uniform(task.low, task.high)),
        features={} if audio is None else {"audio": audio},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "toy", "toy$", TASKS) as writer:
        for i in range(200):
            writer.write(sample(i))
    return tmp_path / "toy"


def figure_of(folder: Path) -> Figure:
    manifest, index = read_manifest(folder), load_index(folder)
    lengths = {c: {s: present_lengths(index, s, c) for s in manifest["splits"]} for c in ("text_chars", "audio_frames")}
    return shards_figure(describe(folder), tasks_of(manifest, folder), lengths, target_values(folder))


def panels(figure: Figure) -> dict:
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def test_every_number_in_the_picture_is_the_folders(folder):
    drawn = panels(figure_of(folder))
    splits = read_manifest(folder)["splits"]
    assert list(drawn) == [
        "mood", "zh-only", "score", "fine", "text, characters where present", "audio, frames where present",
        "missing modalities",
    ]  # fmt: skip
    counts = splits["train"]["labels"]["mood"]
    widths = [bar.get_width() for bar in drawn["mood"].containers[0]]
    assert widths == pytest.approx([counts[x] / sum(counts.values()) for x in CHINESE])
    assert (drawn["mood"].yaxis_inverted(), drawn["mood"].xaxis_inverted()) == (True, False), "the first is on top"
    missing = [bar.get_height() for bar in drawn["missing modalities"].containers[0]]
    train = splits["train"]
    assert missing == pytest.approx([train["missing"][m] / train["samples"] for m in ("text", "audio")])
    scores = [s.value for s in map(sample, range(200)) if s.task == "score" and s.split == "train"]
    steps = next(p for p in drawn["score"].patches if isinstance(p, StepPatch)).get_data()
    assert steps.edges.tolist() == [-1.25, -0.75, -0.25, 0.25, 0.75, 1.25]
    assert steps.values == pytest.approx(np.histogram(scores, steps.edges)[0] / len(scores))
    for axes in drawn.values():
        for patch in axes.patches:
            if isinstance(patch, StepPatch):
                assert patch.get_data().values.sum() == pytest.approx(1), "no number lies outside of the bins"


def test_a_long_tail_is_drawn_on_a_logarithmic_axis(folder):
    drawn = panels(figure_of(folder))
    assert drawn["audio, frames where present"].get_xscale() == "log"
    assert drawn["text, characters where present"].get_xscale() == "linear"


@pytest.mark.parametrize(("low", "high", "bins"), [(1, 1, 8), (1, 2, 40), (3, 9000, 40), (20, 59, 20)])
def test_bins_hold_every_length_from_the_least_to_the_largest(low, high, bins):
    for edges in (shards._edges(low, high, bins), shards._log_edges(low, high, bins)):
        assert edges[0] < low
        assert edges[-1] > high
        assert len(edges) <= bins + 2
        assert (np.diff(edges) > 0).all()


def test_labels_that_no_font_holds_are_replaced(folder, monkeypatch):
    for module in (shards, style):
        monkeypatch.setattr(module, "families", lambda: ["DejaVu Sans"])
    names, note = shards.drawable(MOOD)
    assert names == ["anger", "disgust", "neutral"]
    assert "answers in en" in note
    names, note = shards.drawable(ZH_ONLY)
    assert names == ["class 1", "class 2", "class 3"]
    assert "in the task's order" in note
    for module in (shards, style):
        monkeypatch.setattr(module, "families", lambda: ["DejaVu Sans", "Noto Sans CJK SC"])
    assert shards.drawable(ZH_ONLY) == (list(CHINESE), "")


def test_no_text_is_cut_off_or_over_another(folder):
    figure = figure_of(folder)
    figure.draw_without_rendering()
    width, height = figure.canvas.get_width_height()
    boxes = [(axes.get_title(loc="left"), axes.get_tightbbox()) for axes in figure.axes]
    boxes.append(("the figure's title", figure.texts[0].get_window_extent()))
    boxes.append(("the legend", figure.legends[0].get_window_extent()))
    assert len(boxes) == 9
    for i, (name, box) in enumerate(boxes):
        assert min(box.x0, box.y0) >= -1, name
        assert max(box.x1 - width, box.y1 - height) <= 1, name
        for other, second in boxes[i + 1 :]:
            assert not box.overlaps(second), f"{name!r} lies over {other!r}"


def test_the_file_is_the_same_for_the_same_folder_and_replaces_an_older_one(folder, tmp_path):
    out = write_shards_picture(folder, tmp_path / "a.png")
    first = out.read_bytes()
    assert first.startswith(b"\x89PNG")
    out.write_bytes(b"old")
    write_shards_picture(folder, out)
    assert out.read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "toy"]


def test_a_bad_name_or_folder_is_one_line(folder, tmp_path):
    with pytest.raises(EgmfError, match=r"ends in \.png"):
        write_shards_picture(folder, tmp_path / "a.pdf")
    with pytest.raises(EgmfError, match="there is no folder"):
        write_shards_picture(folder, tmp_path / "none" / "a.png")
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(EgmfError, match="cannot be written"):
        write_shards_picture(folder, tmp_path / "taken.png")
    with pytest.raises(ShardError, match="no such folder of shards"):
        write_shards_picture(tmp_path / "none", tmp_path / "a.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken.png", "toy"]
