"""Damage to samples: what is lost, what stays, and that it follows from seed, name and position alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from egmf_dist.config import Config, DataConfig
from egmf_dist.data import perturb
from egmf_dist.data.perturb import Augmentation, drawn_from
from egmf_dist.inference import opened
from egmf_dist.inference.robustness import area, mean_of, robustness, whom
from egmf_dist.run.folder import Run
from egmf_shards import Sample, Turn


def clip(**changes) -> Sample:
    audio = np.arange(200, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    made = Sample(
        "a-1", "we are so glad , really", "en", "t", "d", "train", ("text", "audio"), features={"audio": audio},
        context=(Turn("A", "one"), Turn("B", "two"), Turn("C", "three")), turn=3,
    )  # fmt: skip
    return replace(made, **changes)


def test_frames_are_lost_at_their_rate_and_close_up() -> None:
    sample = clip()
    kept = perturb.drop_frames(sample, "audio", 0.3, drawn_from(0, "x")).features["audio"]
    assert len(kept) == pytest.approx(140, abs=20)
    assert (np.diff(kept[:, 0]) > 0).all()  # in their order
    assert perturb.drop_frames(sample, "audio", 0.0, drawn_from(0)) is sample
    assert perturb.drop_frames(sample, "vision", 0.5, drawn_from(0)) is sample
    assert len(perturb.drop_frames(sample, "audio", 1.0, drawn_from(0)).features["audio"]) == 1
    assert len(sample.features["audio"]) == 200


def test_words_are_lost_with_what_stood_before_them() -> None:
    sample = clip()
    for name in range(20):
        text = perturb.drop_words(sample, 0.5, drawn_from(0, name)).text
        assert text == " ".join(text.split())
        assert text.split() == [w for w in sample.text.split() if w in text.split()]
        assert text
    chinese = clip(text="我很高兴。", language="zh")
    lost = {perturb.drop_words(chinese, 0.5, drawn_from(0, name)).text for name in range(40)}
    assert len(lost) > 10
    assert all(set(text) <= set("我很高兴。") for text in lost)
    assert perturb.drop_words(clip(text=""), 0.9, drawn_from(0)).text == ""


def test_noise_has_the_power_it_says() -> None:
    sample = clip()
    own = sample.features["audio"]
    noise = perturb.add_noise(sample, "audio", 10.0, drawn_from(0)).features["audio"] - own
    assert np.square(noise).mean() == pytest.approx(np.square(own - own.mean(0)).mean() / 10, rel=0.1)


def test_noise_is_of_each_dimensions_own_size_and_of_the_training_splits_where_it_is_known() -> None:
    frames = np.random.default_rng(1).normal(size=(2000, 3)) * [1e4, 1.0, 1e-3] + [0.0, 5.0, 1.0]
    sample = clip(features={"audio": frames.astype(np.float32)})
    noise = perturb.add_noise(sample, "audio", 20.0, drawn_from(0)).features["audio"] - sample.features["audio"]
    assert noise.std(0) / frames.std(0) == pytest.approx([0.1, 0.1, 0.1], rel=0.1)
    one = clip(features={"audio": np.zeros((1, 3), np.float32)})
    std = np.array([2.0, 0.0, 4.0])
    drawn = [perturb.add_noise(one, "audio", 0.0, drawn_from(0, n), std).features["audio"][0] for n in range(2000)]
    assert np.std(drawn, axis=0) == pytest.approx(std, rel=0.1)


def test_context_goes_or_is_shuffled() -> None:
    sample = clip()
    assert perturb.without_context(sample).context == ()
    found = {perturb.shuffle_context(sample, drawn_from(0, n)).context for n in range(60)}
    assert len(found) == 6


def test_streams_are_exchanged_with_another_truth() -> None:
    truth = ["joy"] * 5 + ["anger"] * 3 + ["fear"] * 4
    partner = perturb.exchanged(truth, drawn_from(0))
    assert sorted(p for p in partner if p is not None) == list(range(12))
    assert all(truth[i] != truth[p] for i, p in enumerate(partner) if p is not None)
    lopsided = ["joy"] * 6 + ["anger"] * 2
    partner = perturb.exchanged(lopsided, drawn_from(0))
    known = [(i, p) for i, p in enumerate(partner) if p is not None]
    assert len(known) == 4
    assert all(lopsided[i] != lopsided[p] for i, p in known)
    assert perturb.exchanged(["joy"] * 3, drawn_from(0)) == [None] * 3
    numbers = [round(0.2 * (n % 11) - 1, 1) for n in range(110)]  # SIMS's grid
    partner = perturb.exchanged(numbers, drawn_from(0))
    far = [abs(numbers[i] - numbers[p]) for i, p in enumerate(partner) if p is not None]
    assert len(far) == 110
    assert min(far) >= 0.8
    other = clip(text="no", features={"audio": np.ones((2, 3), np.float32)})
    assert perturb.with_stream_of(clip(), other, "text").text == "no"
    assert len(perturb.with_stream_of(clip(), other, "audio").features["audio"]) == 2


def test_training_loses_by_seed_and_position_alone() -> None:
    made = Augmentation(3, 0.8, 0.5, 0.3)
    first = [made(clip(), position) for position in range(300)]
    again = [Augmentation(3, 0.8, 0.5, 0.3)(clip(), position) for position in reversed(range(300))][::-1]
    for one, other in zip(first, again, strict=True):
        assert one.text == other.text
        assert one.modalities == other.modalities
        assert all(np.array_equal(one.features[m], other.features[m]) for m in one.features)
    lengths = [len(s.features["audio"]) for s in first if "audio" in s.features]
    assert np.mean(lengths) == pytest.approx(200 * 0.6, rel=0.1)
    assert min(lengths) < 70
    present = Counter(s.modalities for s in first)
    assert present["text", "audio"] == pytest.approx(300 * 0.7, abs=30)  # one of two is spared, the other lost at 0.3
    assert () not in present
    assert any(Augmentation(4, 0.8, 0.5, 0.3)(clip(), i).text != first[i].text for i in range(300))


def test_settings_of_before_lose_nothing() -> None:
    assert Augmentation.of(DataConfig(), 0) is None
    assert Augmentation.of(DataConfig(drop_words=0.2), 7) == Augmentation(7, 0.0, 0.2, 0.0)


def test_votes_and_areas(tasks) -> None:
    row = {"predicted": "joy", "truth": "anger"}
    assert whom(tasks["emotion"], row, "joy") == "follows_stream"
    assert whom(tasks["emotion"], row | {"predicted": "anger"}, "joy") == "follows_rest"
    assert whom(tasks["emotion"], row | {"predicted": "neutral"}, "joy") == "neither"
    assert whom(tasks["sentiment"], {"predicted": 0.4, "truth": -1.0}, 1.0) == "follows_stream"
    assert whom(tasks["sentiment"], {"predicted": -0.4, "truth": -1.0}, 1.0) == "follows_rest"
    assert whom(tasks["sentiment"], {"predicted": 0.0, "truth": -1.0}, 1.0) == "neither"
    assert area([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]) == pytest.approx(0.5)
    assert area([[0.0, 1.0], [0.1, 1.0], [0.9, 0.2]]) == pytest.approx((0.1 + 0.8 * 0.6) / 0.9)
    assert area([[0.0, 1.0], [0.5, None]]) is None
    assert mean_of([0.5, 0.7]) == pytest.approx(0.6)
    assert mean_of([0.5, None]) is None  # or it would rise where a model gets so bad that nothing is defined
    assert mean_of([]) is None


def test_a_task_has_no_curve_of_a_stream_that_its_samples_lack(tasks, tmp_path) -> None:
    """Sentiment alone has video: of emotion nothing is said about it."""
    rows = [
        {"id": f"s{n}", "language": "en", "turn": 0, "predicted": answer, "truth": answer, "task": task}
        | {"modalities": modalities, "probabilities": np.full(3, 1 / 3)}
        for task, modalities, answers in (
            ("emotion", ["text", "audio"], ["joy", "anger"]),
            ("sentiment", ["text", "audio", "vision"], [0.5, -0.5]),
        )
        for n, answer in enumerate(answers * 3)
    ]
    rows = [row | {"probabilities": np.full(len(tasks[row["task"]].legal_answers("en")), 0.1)} for row in rows]
    rows = [row | {"probabilities": row["probabilities"] / row["probabilities"].sum()} for row in rows]
    opened = SimpleNamespace(
        run=Run(tmp_path), split="test", checkpoint="adapters/x", shards=None,
        data=SimpleNamespace(tasks=tasks, modalities=["text", "audio", "vision"], standardisations={}),
        config=SimpleNamespace(data=SimpleNamespace(context_turns=0)),
        score=lambda what, remove=(), change=None, indices=None: [rows[i] for i in indices or range(len(rows))],
    )  # fmt: skip
    found = robustness(opened)["tasks"]
    assert set(found["emotion"]["curves"]) == set(found["emotion"]["area"]) == {"words", "audio"}
    assert set(found["sentiment"]["curves"]) == {"words", "audio", "vision", "all frames"}
    audio = found["sentiment"]["conflict"]["audio"]
    assert (audio["follows_rest"], audio["follows_stream_before"]) == (1, 0)
    assert [set(found[task]["removed"]) for task in tasks] == [{"text", "audio"}, {"text", "audio", "vision"}]


def test_what_was_scored_is_not_scored_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """`evaluate --remove-each --robustness` asks twice for the split as it is and without each modality."""
    calls = []

    def score(module, shards, scorer, size, indices, remove, progress, change):
        calls.append((indices, tuple(remove), change is not None))
        return [{"id": f"{len(calls)}"}]

    monkeypatch.setattr(opened, "score_samples", score)
    some = dict.fromkeys(("run", "split", "data", "collator", "module", "scorer", "checkpoint", "description"))
    own = opened.Opened(config=Config(), shards=[0, 1], console=False, **some)
    assert own.score("as it is") is own.score("once more")
    assert own.score("without both", ["audio", "text"]) is own.score("the same", ["text", "audio"])
    assert own.score("damaged", change=lambda _, s: s) is not own.score("damaged", change=lambda _, s: s)
    assert own.score("some", indices=[1]) is not own.score("some", indices=[1])
    assert calls == [
        (None, (), False), (None, ("audio", "text"), False), (None, (), True), (None, (), True),
        ([1], (), False), ([1], (), False),
    ]  # fmt: skip
