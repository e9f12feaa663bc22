"""The generator: the same bytes from the same seed, the construction it claims, and ceilings that hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import f1_score

from egmf_shards import Sample, ShardError, ShardSet, synthesize
from egmf_shards.format.manifest import dims_of
from egmf_shards.synthetic import ceilings as ce
from egmf_shards.synthetic import construction as c
from egmf_shards.synthetic.generate import Settings, _draw, dialogue_lengths, split_sizes

ALL = (True, True, True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "demo"
    synthesize(out, seed=0, samples=1500)
    return out


@pytest.fixture(scope="module")
def samples(demo: Path) -> list[Sample]:
    return [s for split in ("train", "valid", "test") for s in ShardSet.open([demo], split)]


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    """60,000 utterances as the generator draws them: mood, emotion, bits, levels, presence."""
    rng = np.random.default_rng(0)
    moods = rng.integers(0, 2, size=60_000)
    rows = [_draw(rng, int(mood), Settings(c.STANDARD, 0.03, 0.01)) for mood in moods]
    return {
        "mood": moods,
        "emotion": np.array([r.emotion for r in rows]),
        "bits": np.array([r.bits for r in rows]),
        "levels": np.array([r.levels for r in rows]),
        "present": np.array([[m in r.modalities for m in c.STANDARD.names] for r in rows]),
    }


def test_same_arguments_same_bytes(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        synthesize(tmp_path / name, seed=seed, samples=40)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["index.npz", "manifest.json", "test-000000.tar", "train-000000.tar", "valid-000000.tar"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


def test_utterances_and_their_two_samples(demo, samples):
    manifest = json.loads((demo / "manifest.json").read_text(encoding="utf-8"))
    counts = {split: (data["samples"], data["utterances"]) for split, data in manifest["splits"].items()}
    assert counts == {"train": (2400, 1200), "valid": (300, 150), "test": (300, 150)}
    assert dims_of(manifest) == {"audio": 16, "vision": 12}
    assert manifest["languages"] == ["en", "zh"]
    assert [s.id for s in samples[:3]] == ["demo-000000-emotion", "demo-000000-sentiment", "demo-000001-emotion"]
    for one, other in zip(samples[::2], samples[1::2], strict=True):
        a, b = one.to_json(), other.to_json()
        shared = set(a) - {"id", "task", "label", "value"}
        assert {k: a[k] for k in shared} == {k: b[k] for k in shared}
        assert (one.task, other.task) == ("emotion", "sentiment")
        for modality in ("audio", "vision"):
            assert np.array_equal(one.features.get(modality), other.features.get(modality))
        assert -3 <= other.value <= 3
        assert other.value * 2 == round(other.value * 2)


def dialogues(samples: list[Sample]) -> Iterator[list[Sample]]:
    by_name: dict[str, list[Sample]] = {}
    for sample in samples[::2]:
        by_name.setdefault(sample.dialogue, []).append(sample)
    yield from by_name.values()


def test_dialogues(samples):
    for turns in dialogues(samples):
        assert 2 <= len(turns) <= 3
        assert len({(t.language, t.split) for t in turns}) == 1
        for k, turn in enumerate(turns):
            assert turn.turn == k + 1 == len(turn.context)
            assert turn.context[0] == turns[0].context[0]
            assert turn.context[1:] == tuple(type(turn.context[0])(t.speaker, t.text) for t in turns[:k])
            assert turn.speaker != turn.context[-1].speaker


def mood_of(sample: Sample) -> int:
    """Read the mood off the opening line; it must be repeated and unmistakable."""
    found = [sum(sample.context[0].text.count(w) for w in words) for words in c.MOOD_WORDS[sample.language]]
    assert sorted(found)[0] == 0
    assert sorted(found)[1] >= 3
    return int(np.argmax(found))


def test_the_mood_shifts_the_emotions(samples):
    """The long-range cue: classes of the dialogue's mood are 1.5 times as frequent."""
    emotions = samples[::2]
    own = [e.label in c.MOOD_CLASSES[mood_of(e)] for e in emotions]
    expected = np.mean([c.emotion_prior()[m][[label in c.MOOD_CLASSES[m] for label in c.LABELS]].sum() for m in (0, 1)])
    assert abs(np.mean(own) - expected) < 4 * np.sqrt(0.25 / len(own))


def words_of(sample: Sample) -> tuple[int, int]:
    """Bit and level, read off the text."""
    if sample.language == "en":
        found = [sum(sample.text.split().count(w) for w in words) for words in c.BIT_WORDS["en"]]
    else:
        found = [sum(sample.text.count(w) for w in words) for words in c.BIT_WORDS["zh"]]
    bit = int(np.argmax(found))
    return bit, int(np.flatnonzero(found[bit] == c.CUE_WORDS)[0])


def burst_of(array: np.ndarray, burst: int, directions: np.ndarray) -> tuple[int, int]:
    """Bit and level by the matched filter: the likeliest burst, over place, direction and gain."""
    windows = np.lib.stride_tricks.sliding_window_view(array, burst, axis=0).sum(axis=-1)
    best, found = -np.inf, (0, 0)
    for bit in (0, 1):
        for level, gain in enumerate(c.GAINS):
            direction = gain * directions[bit]
            score = (windows @ direction).max() - burst * (direction @ direction) / 2
            if score > best:
                best, found = score, (bit, level)
    return found


def test_the_cues_can_be_read(samples):
    """What the ceilings take for granted: words and arrays alone tell bits and levels, and so the sentiment."""
    full = [s for s in samples[1::2] if len(s.modalities) == 3]
    right = 0
    for s in full:
        cues = [
            words_of(s),
            burst_of(s.features["audio"], c.AUDIO_BURST, c.AUDIO_DIRECTIONS),
            burst_of(s.features["vision"], c.VISION_BURST, c.VISION_DIRECTIONS),
        ]
        bits, levels = np.array(cues).T
        right += float(c.sentiment(bits, levels)) == s.value
    assert right / len(full) > 0.99
    lengths = [len(s.features["audio"]) for s in full], [len(s.features["vision"]) for s in full]
    assert (min(lengths[0]), max(lengths[0]), min(lengths[1]), max(lengths[1])) == (20, 59, 10, 29)


def test_missing_modalities(samples):
    rates = [np.mean([m not in s.modalities for s in samples[::2]]) for m in c.STANDARD.names]
    assert all(abs(rate - 0.03) < 0.018 for rate in rates)
    patterns = c.STANDARD.missing_patterns(0.4)
    assert abs(sum(p for _, p in patterns) - 1) < 1e-12
    assert (False, False, False) not in dict(patterns)


def test_streams_of_other_names_carry_cues_of_their_own(tmp_path):
    """The sentiment is what all cues show; the emotion is told by words, voice and face as before."""
    manifest = synthesize(tmp_path / "four", seed=1, samples=300, streams="vision, eda,audio")
    assert dims_of(manifest) == {"audio": 16, "eda": 8, "vision": 12}
    cues = c.Cues(("audio", "eda", "vision"))
    assert cues.names == ("text", "audio", "eda", "vision")
    assert manifest["ceilings"] == ce.compute_ceilings(0.03, 0.01, cues)
    emotion, sentiment = (manifest["ceilings"][task] for task in ("emotion", "sentiment"))
    standard = ce.compute_ceilings(0.03, 0.01)["emotion"]
    assert emotion["text+audio+vision"] == pytest.approx(standard["text+audio+vision"])
    assert sentiment["text+audio+eda+vision"] - sentiment["text+audio+vision"] > 0.1
    samples = [s for split in ("train", "valid", "test") for s in ShardSet.open([tmp_path / "four"], split)]
    full = [s for s in samples if len(s.modalities) == 4 and s.task == "sentiment"]
    right = 0
    for sample in full:
        bits, levels = zip(
            words_of(sample),
            *(burst_of(sample.features[m], c.signal(m).burst, c.signal(m).directions) for m in cues.names[1:]),
            strict=True,
        )
        right += float(c.sentiment(np.array(bits), np.array(levels))) == sample.value
    assert right / len(full) > 0.98
    for streams, message in (
        ("audio,audio", "each name may occur once"),
        ("a b", "is called"),
        ("a,b,c,d,e,f", "at most 5"),
    ):
        with pytest.raises(ShardError, match=message):
            synthesize(tmp_path / "x", samples=60, streams=streams)


def test_calm_utterances(tmp_path):
    """Their words say so, their sentiment is 0, and the ceilings know of them."""
    manifest = synthesize(tmp_path / "calm", seed=2, samples=1500, zeros=0.14)
    assert manifest["ceilings"] == ce.compute_ceilings(0.03, 0.01, zeros=0.14)
    asked = [s for split in ("train", "valid", "test") for s in ShardSet.open([tmp_path / "calm"], split)][1::2]
    assert abs(np.mean([s.value == 0 for s in asked]) - 0.222) < 4 * np.sqrt(0.222 * 0.778 / 1500)
    with_words = [s for s in asked if s.text]
    calm = [any(word in s.text for word in c.CALM_WORDS[s.language]) for s in with_words]
    assert abs(np.mean(calm) - 0.14) < 4 * np.sqrt(0.14 * 0.86 / 1500)
    assert all(s.value == 0 for s, said in zip(with_words, calm, strict=True) if said)
    emotion, sentiment = (ce.compute_ceilings(0.03, 0.01, zeros=0.14)[task] for task in ("emotion", "sentiment"))
    standard = ce.compute_ceilings(0.03, 0.01)
    assert emotion == standard["emotion"]
    # Voice and face do not show that the words are calm; words that are there do.
    assert sentiment["audio+vision"] < standard["sentiment"]["audio+vision"] - 0.03
    assert sentiment["text"] > standard["sentiment"]["text"]
    with pytest.raises(ShardError, match=r"zeros is 1.0; it must be at least 0 and below 1"):
        synthesize(tmp_path / "x", samples=60, zeros=1.0)


def test_the_promised_inequalities(demo):
    ceilings = json.loads((demo / "manifest.json").read_text(encoding="utf-8"))["ceilings"]
    assert ceilings == ce.compute_ceilings(0.03, 0.01)
    emotion, sentiment = ceilings["emotion"], ceilings["sentiment"]
    assert (emotion["metric"], sentiment["metric"]) == ("weighted_f1", "corr")
    assert set(emotion) - {"metric"} == {
        "text", "audio", "vision", "text+audio", "text+vision", "audio+vision", "text+audio+vision"
    }  # fmt: skip
    every = emotion["text+audio+vision"]
    assert every >= 0.92
    assert emotion["text"] <= 0.60
    for two in ("text+audio", "text+vision", "audio+vision"):
        assert every - emotion[two] >= 0.10
    assert sentiment["text+audio+vision"] >= 0.97
    assert 0.80 <= ce.compute_ceilings(0.10, 0.01)["emotion"]["text+audio+vision"] <= 0.88


def cells(drawn: dict[str, np.ndarray], kept: tuple[bool, ...]) -> np.ndarray:
    seen = drawn["present"] & np.array(kept)
    states = np.where(seen, drawn["bits"], 2)
    return 27 * drawn["mood"] + states @ (3 ** np.arange(3))


@pytest.mark.parametrize("kept", ce.subsets())
def test_the_enumeration_against_drawn_utterances(drawn, kept):
    """The joint table of what is seen and the emotion, and a rule's weighted F1, agree with 60,000 draws."""
    n = len(drawn["mood"])
    joint = ce.emotion_joint(0.03, 0.01, kept)
    assert abs(joint.sum() - 1) < 1e-12
    cell = cells(drawn, kept)
    counts = np.zeros_like(joint)
    np.add.at(counts, (cell, drawn["emotion"]), 1)
    assert counts[joint == 0].sum() == 0
    expected = n * joint
    frequent = expected > 5
    deviation = (counts[frequent] - expected[frequent]) / np.sqrt(expected[frequent])
    assert (deviation**2).sum() < frequent.sum() + 5 * np.sqrt(2 * frequent.sum())
    rule = ce.argmax_rule(joint)
    measured = f1_score(drawn["emotion"], rule.argmax(axis=1)[cell], average="weighted", zero_division=0.0)
    assert abs(measured - ce.weighted_f1(joint, rule)) < 0.01
    assert ce.best_weighted_f1(joint) >= ce.weighted_f1(joint, rule)


@pytest.mark.parametrize("kept", [ALL, (True, True, False), (False, True, True), (True, False, False)])
def test_the_correlation_against_drawn_utterances(drawn, kept):
    """E[s | seen], estimated from one half, correlates with the other half's sentiment as the ceiling says."""
    s = c.sentiment(drawn["bits"], drawn["levels"])
    seen = drawn["present"] & np.array(kept)
    code = drawn["mood"].copy()
    for i in range(3):
        code = code * 7 + np.where(seen[:, i], drawn["bits"][:, i] * 3 + drawn["levels"][:, i], 6)
    half = len(s) // 2
    mass = np.bincount(code[:half], minlength=2 * 7**3)
    mean = np.bincount(code[:half], weights=s[:half], minlength=2 * 7**3) / np.maximum(mass, 1)
    assert abs(np.corrcoef(mean[code[half:]], s[half:])[0, 1] - ce.sentiment_correlation(0.03, 0.01, kept)) < 0.01


def test_the_best_rule_spreads_its_answers_over_equals():
    """Four equally likely classes and nothing seen: naming one scores 0.1, spreading 0.25, and no rule more."""
    joint = np.full((1, 4), 0.25)
    assert ce.weighted_f1(joint, ce.argmax_rule(joint)) == pytest.approx(0.1)
    assert ce.best_weighted_f1(joint) == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize("kept", [ALL, (True, True, False), (True, False, False)])
def test_no_other_search_beats_the_ceiling(kept):
    joint = ce.emotion_joint(0.03, 0.01, kept)
    joint = joint[joint.sum(axis=1) > 0]
    best = ce.best_weighted_f1(joint)
    seen, prior = joint.sum(axis=1, keepdims=True), joint.sum(axis=0)

    def loss(logits: np.ndarray) -> tuple[float, np.ndarray]:
        rule = np.exp(logits.reshape(joint.shape) - logits.reshape(joint.shape).max(axis=1, keepdims=True))
        rule /= rule.sum(axis=1, keepdims=True)
        hits, bulk = (joint * rule).sum(axis=0), prior + (seen * rule).sum(axis=0)
        gradient = 2 * prior * (joint / bulk - seen * hits / bulk**2)
        gradient = rule * (gradient - (rule * gradient).sum(axis=1, keepdims=True))
        return -float((2 * prior * hits / bulk).sum()), -gradient.ravel()

    for seed in range(4):
        start = np.random.default_rng(seed).normal(size=joint.size)
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 3000})
        assert -found.fun <= best + 1e-3


def test_sizes():
    rng = np.random.default_rng(0)
    for count in range(2, 60):
        lengths = dialogue_lengths(count, rng)
        assert sum(lengths) == count
        assert all(2 <= n <= 3 for n in lengths)
    for samples in (30, 31, 99, 4000):
        assert sum(split_sizes(samples).values()) == samples
        assert min(split_sizes(samples).values()) >= 3


def test_bad_arguments_leave_nothing(tmp_path):
    for arguments, message in [
        ({"samples": 29}, "samples is 29; at least 30"),
        ({"missing": 1.0}, "missing is 1.0"),
        ({"missing": -0.1}, "missing is -0.1"),
        ({"noise": 0.5}, "noise is 0.5"),
        ({"seed": -1}, "seed is -1"),
    ]:
        with pytest.raises(ShardError, match=message):
            synthesize(tmp_path / "x", **arguments)
    assert list(tmp_path.iterdir()) == []
