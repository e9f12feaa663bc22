"""One answer explained: attributions that are known by hand, the model's own log-probabilities, nothing changed."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from egmf_dist import Utterance, load
from egmf_dist.config import PromptConfig
from egmf_dist.errors import EgmfError
from egmf_dist.inference import explain as explaining
from egmf_dist.inference import scorer as scoring
from egmf_dist.inference.explain import Reading, integrated_gradients, units
from egmf_dist.inference.explanation import AGAINST, FOR
from egmf_dist.inference.model import Model
from egmf_dist.inference.scorer import SequenceScorer, TreeScorer, score
from egmf_dist.style import COLOURS
from egmf_launcher.cli import main

RNG = np.random.default_rng(3)
AUDIO, VISION = RNG.normal(size=(4, 6)).astype(np.float32), RNG.normal(size=(3, 5)).astype(np.float32)
WHOLE = Utterance("i am glad, no", "A", [("B", "wait"), ("A", "no")], {"audio": AUDIO, "vision": VISION}, id="u")


@pytest.fixture(scope="module")
def model(exported):
    return load(exported)


class TestIntegratedGradients:
    """Against integrals taken by hand."""

    def test_of_a_linear_function_each_input_has_its_own_share(self):
        weights = [torch.tensor([[2.0, -1.0], [0.5, 4.0]]), torch.tensor([3.0])]
        inputs = [torch.tensor([[1.0, 2.0], [-4.0, 0.0]]), torch.tensor([-0.5])]
        found = integrated_gradients(lambda x: sum((w * x).sum() for w, x in zip(weights, x, strict=True)) + 7, inputs)
        np.testing.assert_allclose(found[0], [[2, -2], [-2, 0]], atol=1e-6)
        np.testing.assert_allclose(found[1], [-1.5], atol=1e-6)

    def test_of_products_and_powers(self):
        x = torch.tensor([2.0, 3.0, -1.0], dtype=torch.float64)

        # x0 x1 gives each half of it; x2^3 all to x2. The middle of a cell is wrong by its length squared.
        def function(parts):
            return parts[0][0] * parts[0][1] + parts[0][2] ** 3

        (coarse,), (fine,) = (integrated_gradients(function, [x], steps) for steps in (500, 1000))
        np.testing.assert_allclose(fine, [3, 3, -1], rtol=1e-3)
        np.testing.assert_allclose(4 * (fine - [3, 3, -1]), coarse - [3, 3, -1], rtol=0.01)

    def test_a_norm_of_embeddings_is_integrated_through_its_steep_beginning(self):
        x = torch.tensor([0.3, -0.1], dtype=torch.float64)

        def normed(parts):  # an RMS norm with the epsilon that models have
            return (parts[0] / (parts[0].pow(2).mean() + 1e-6).sqrt())[0]

        (found,) = integrated_gradients(normed, [x])
        assert found.sum() == pytest.approx(float(normed([x])), rel=0.005)


@pytest.mark.parametrize(
    ("text", "places", "words"),
    [
        ("i am glad!", [(0, 1), (1, 4), (4, 6), (6, 9), (9, 10)], ["i", "am", "glad!"]),
        ("i am glad", [(0, 4), (4, 9)], ["i am", "glad"]),  # a token over two words
        ("a  b", [(0, 1), (1, 2), (2, 4)], ["a", "b"]),  # a lone space
        ("我很高兴。OK 吗", [(0, 1), (0, 1), (1, 2), (2, 4), (4, 5)], ["我", "很", "高兴", "。", "OK", "吗"]),
        ("我很", [(0, 2)], ["我很"]),
        ("", [], []),
    ],
)
def test_words_and_characters(text, places, words):
    assert [text[begin:end] for begin, end in units(text, places)] == words


def scored(model, scorer, sample):
    log_p = score(scorer, model, [sample], [1.0])[0].log_p_BC[0]
    return log_p[torch.isfinite(log_p)]


PLAIN = PromptConfig(chat_template="off")
BEFORE = PromptConfig(chat_template="off", pseudo_tokens="before_utterance")


class TestReading:
    """The function that gradients are taken of is the model's own, and its inputs are where they are said to be."""

    @pytest.mark.parametrize(
        ("family", "prompt", "way"),
        [
            ("qwen3", PLAIN, TreeScorer), ("qwen3", BEFORE, TreeScorer), ("gemma3", BEFORE, SequenceScorer),
            ("llama", PromptConfig(), TreeScorer), ("bloom", PLAIN, SequenceScorer),
        ],
    )  # fmt: skip
    def test_log_probabilities_are_the_scorers(self, load, make_samples, family, prompt, way):
        model, collator, capabilities = load(family, prompt)
        scorer = way(collator, capabilities, 8)
        sample = make_samples(2)[1]
        other = replace(sample, text=sample.text[::-1], features={m: -x for m, x in sample.features.items()})
        reading, theirs = (Reading(model, scorer, own) for own in (sample, other))
        with torch.no_grad():
            torch.testing.assert_close(reading(reading.inputs), scored(model, scorer, sample).double())
            # What another utterance of as many tokens reads gives what that is answered.
            assert [part.shape for part in reading.inputs] == [part.shape for part in theirs.inputs]
            torch.testing.assert_close(reading(theirs.inputs), scored(model, scorer, other).double())

    def test_many_answers_in_several_passes(self, load, make_samples, monkeypatch):
        model, collator, capabilities = load("qwen3")
        sample = make_samples(4)[2]
        found = []
        for nodes in (scoring.NODES, 6):
            monkeypatch.setattr(scoring, "NODES", nodes)
            reading = Reading(model, TreeScorer(collator, capabilities, 8), sample)
            leaves = [part.clone().requires_grad_() for part in reading.inputs]
            found.append(torch.autograd.grad(reading(leaves).log_softmax(0)[1], leaves))
        assert len(reading.rows) > 1
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_a_planted_cue_is_found(model, monkeypatch):
    """The answer's log-probability is made linear in one word of the prompt, one of the fusion's and one frame."""

    def planted(self, inputs):
        prompt, text, audio, vision = inputs
        words = [WHOLE.text[b:e].strip() for b, e in self.spoken.prompt_places.tolist()]
        fused = [WHOLE.text[b:e].strip() for b, e in self.spoken.text_places.tolist()]
        s = -2.0 + 0.01 * prompt[words.index("no")].sum() - 0.02 * text[fused.index("am")].sum() + 0.1 * audio[2, 1]
        s = s.double() + 0.0 * vision.sum()
        return torch.stack([s, s, s]).scatter(0, torch.tensor([1, 2]), (1 - s.exp()).log().expand(2) - math.log(2))

    own = explaining.explain

    def first(answer, *rest):  # the answer that is explained is made the first one
        def answers(samples):
            return [replace(a, answer=next(iter(a.probabilities))) for a in answer(samples)]

        return own(answers, *rest)

    monkeypatch.setattr("egmf_dist.inference.model.explain", first)
    monkeypatch.setattr(Reading, "__call__", planted)
    found = model.explain(WHOLE, "emotion")
    (sample,) = model.samples(WHOLE, 0, ["emotion"])
    reading = Reading(model._model, model._scorer, sample)
    words = {word.text: word for word in found.words}
    place = [WHOLE.text[b:e].strip() for b, e in reading.spoken.prompt_places.tolist()].index("no")
    assert words["no"].prompt == pytest.approx(0.01 * float(reading.inputs[0][place].sum()), abs=1e-6)
    place = [WHOLE.text[b:e].strip() for b, e in reading.spoken.text_places.tolist()].index("am")
    assert words["am"].fused == pytest.approx(-0.02 * float(reading.inputs[1][place].sum()), abs=1e-6)
    assert [word.text for word in found.words] == ["i", "am", "glad,", "no"]
    assert all(word.prompt == 0 for word in found.words if word.text != "no")
    assert all(word.fused == 0 for word in found.words if word.text != "am")
    audio = next(own for own in found.modalities if own.name == "audio")
    np.testing.assert_allclose(audio.attributions, [0, 0, 0.1 * float(reading.inputs[2][2, 1]), 0], atol=1e-7)
    assert found.completeness_error < 1e-5


class TestExplain:
    """A model end to end."""

    @pytest.fixture(scope="class")
    def found(self, model):
        return {task: model.explain(WHOLE, task) for task in model.tasks}

    def test_its_numbers_are_those_of_predict(self, model, found):
        for task, own in found.items():
            (answer,) = model.predict(WHOLE, tasks=[task])
            assert own.answer == answer
            assert own.log_probability == pytest.approx(math.log(answer.probability), abs=1e-5)
            less = {
                "text": replace(WHOLE, text=""),
                "audio": replace(WHOLE, features={"vision": VISION}),
                "vision": replace(WHOLE, features={"audio": AUDIO}),
                "context": replace(WHOLE, context=()),
            }
            assert [one.what for one in own.without] == [*less]
            for one, utterance in zip(own.without, less.values(), strict=True):
                (then,) = model.predict(utterance, tasks=[task])
                assert one.answer == then  # bit for bit
                assert one.change == math.log(then.probabilities[answer.answer]) - math.log(answer.probability)
                assert one.value_change == (None if answer.value is None else then.value - answer.value)
            assert max(abs(one.change) for one in own.without) > 1e-3

    def test_attributions_add_up(self, model, found):
        for own in found.values():
            assert own.completeness_error < 0.05
            total = sum(word.attribution for word in own.words)
            total += sum(m.attributions.sum() for m in own.modalities if m.name != "text")
            assert own.attributed == pytest.approx(total)
            text = own.modalities[0]
            assert text.attribution == pytest.approx(sum(word.fused for word in own.words))
            difference = own.log_probability - own.baseline
            assert own.completeness_error == pytest.approx(abs(total - difference) / abs(difference))
        # The baseline is what is said of zeros: frames at the mean alone do not move the sum any more.
        # Beneath what an utterance is read by, which takes a stream of zeros for an absent one.
        (sample,) = model.samples(WHOLE, 0, ["emotion"])
        zeros = replace(sample, features={**sample.features, "audio": np.zeros_like(sample.features["audio"])})
        audio = model.explain_sample(zeros, steps=1).modalities[1]
        np.testing.assert_array_equal(audio.attributions, np.zeros(4))

    def test_gates_of_every_token(self, found):
        own = found["emotion"]
        assert [(m.name, m.frames, len(m.attributions)) for m in own.modalities][1:] == [
            ("audio", 4, 4), ("vision", 3, 3),
        ]  # fmt: skip
        assert "".join(own.modalities[0].labels) == WHOLE.text
        experts = [np.array([*m.gates["experts"].values()]) for m in own.modalities]
        for modality, weights in zip(own.modalities, experts, strict=True):
            assert [*modality.gates["experts"]] == ["local", "semantic", "global"]
            np.testing.assert_allclose(weights.sum(0), 1, atol=1e-5)
            assert weights.shape[1] == len(modality.attributions)
        mean = np.concatenate(experts, 1).mean(1)
        np.testing.assert_allclose(mean, [*own.answer.diagnostics["experts"].values()], atol=1e-6)

    def test_nothing_of_the_model_is_changed(self, model):
        weights = {name: value.clone() for name, value in model._model.state_dict().items()}
        before = model.predict(WHOLE)
        with torch.inference_mode():  # as a caller may
            model.explain(WHOLE, steps=4)
        assert all(torch.equal(value, weights[name]) for name, value in model._model.state_dict().items())
        assert all(parameter.grad is None for parameter in model._model.parameters())
        assert not model._model.training
        assert model.predict(WHOLE) == before

    def test_chinese_and_an_absent_modality(self, model):
        own = model.explain({"text": "我很高兴", "features": {"vision": VISION}}, "sentiment", steps=4)
        assert own.answer.language == "zh"
        assert "".join(word.text for word in own.words) == "我很高兴"
        assert len(own.words) > 1
        assert [m.name for m in own.modalities] == ["text", "vision"]
        assert [one.what for one in own.without] == ["text", "vision"]
        assert all(one.value_change is not None for one in own.without)
        own = model.explain({"features": {"audio": AUDIO}}, steps=4)
        assert (own.answer.task, own.words, [m.name for m in own.modalities]) == ("emotion", (), ["audio"])
        own = model.explain("i am glad", steps=4)
        assert [one.what for one in own.without] == ["text"]
        assert np.isfinite(own.without[0].change)

    def test_a_fusion_that_says_nothing_of_its_tokens(self, model, monkeypatch, tmp_path):
        forward = model._model.fusion.forward
        monkeypatch.setattr(
            model._model.fusion, "forward", lambda x, b: forward(x, b)._replace(diagnostics={}, tokens={})
        )
        own = model.explain(WHOLE, steps=2)
        assert all(m.gates == {} for m in own.modalities)
        assert own.plot(tmp_path / "a.png").stat().st_size > 1000
        assert "<table>" in own._repr_html_()
        monkeypatch.setattr(
            model._model.fusion, "forward", lambda x, b: forward(x, b)._replace(tokens={"experts": x[:, :2]})
        )
        with pytest.raises(EgmfError, match=r"tokens' diagnostic 'experts' of shape \[\d+, 2\]; .* \[\d+, 3\]"):
            model.explain(WHOLE, steps=2)

    def test_what_is_shown(self, model, found, tmp_path):
        own = model.explain(replace(WHOLE, text="i <am> $glad$"), steps=2)
        page = own._repr_html_()
        assert "&lt;am&gt;" in page
        assert "<am>" not in page
        assert "vision" in page
        drawn = found["sentiment"].plot(tmp_path / "a.png")
        assert drawn.read_bytes()[:4] == b"\x89PNG"
        once = drawn.read_bytes()
        assert found["sentiment"].plot(drawn).read_bytes() == once
        json.dumps(own.to_json(), allow_nan=False)
        assert COLOURS[:2] == (FOR, AGAINST)

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({"task": "mood"}, "the model has no task 'mood'"),
            ({"utterance": ""}, "has neither text nor features"),
            ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ],
    )
    def test_a_mistake_is_one_line(self, model, given, says):
        with pytest.raises(EgmfError, match=says):
            model.explain(**{"utterance": "no"} | given)


class TestFile:
    """`egmf predict --explain DIR`."""

    @pytest.fixture
    def call(self, exported, tmp_path):
        np.save(tmp_path / "a.npy", AUDIO)
        rows = [
            {"id": "one", "text": "i am glad", "audio": "a.npy"},
            {"id": "../Ross & Rachel", "text": "no"},
            {"id": "one", "text": "wait"},
            {"id": "gone", "text": "no", "audio": "gone.npy"},
            {"id": 7, "text": "我很高兴"},
        ]
        source = tmp_path / "in.jsonl"
        source.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")

        def call(*more):
            options = ["--input", str(source), "--out", str(tmp_path / "out.jsonl"), "--explain", str(tmp_path / "e")]
            return main(["predict", str(exported), *options, *more])

        return call

    def test_a_picture_and_a_line_for_each_utterance(self, call, tmp_path, monkeypatch):
        own = Model.explain_sample
        monkeypatch.setattr(Model, "explain_sample", lambda self, sample: own(self, sample, 2))
        assert call("--tasks", "emotion") == 1  # one line is not answered
        odd = "_Ross_Rachel-" + hashlib.sha256(b"../Ross & Rachel").hexdigest()[:8]
        # Two utterances have the id "one", and on several ranks they are written at the same time.
        ones = sorted((tmp_path / "e").glob("one-????????.json"))
        names = ["7", odd, *(path.stem for path in ones)]
        assert len(ones) == 2
        assert sorted(path.name for path in (tmp_path / "e").iterdir()) == sorted(
            [*(f"{name}.json" for name in names), *(f"{name}.png" for name in names)]
        )
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [("error" in row, "answers" in row) for row in rows] == [(False, True)] * 3 + [
            (True, False),
            (False, True),
        ]
        found = [json.loads(line) for path in ones for line in path.read_text().splitlines()]
        assert [line["id"] for line in found] == ["one", "one"]
        written = next(line for line in found if "audio" in line["explanations"]["emotion"]["without"])
        assert [*written["explanations"]] == ["emotion"]
        assert written["explanations"]["emotion"]["answer"] == rows[0]["answers"]["emotion"]["answer"]
        assert [*written["explanations"]["emotion"]["without"]] == ["text", "audio"]

    def test_an_answer_that_cannot_be_explained_is_an_error_of_its_own(self, call, tmp_path, monkeypatch, capsys):
        def fails(self, sample):
            if sample.text != "wait":
                raise EgmfError(f"utterance {sample.id}: its gradients are not finite")
            return own(self, sample, 2)

        own = Model.explain_sample
        monkeypatch.setattr(Model, "explain_sample", fails)
        assert call() == 1
        assert "answered, but not explained: utterance one: its gradients" in capsys.readouterr().out
        written = sorted(re.sub("one-[0-9a-f]{8}", "one", path.name) for path in (tmp_path / "e").iterdir())
        assert written == ["one.emotion.png", "one.json", "one.sentiment.png"]
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [("error" in row, "answers" in row) for row in rows][:3] == [(True, True), (True, True), (False, True)]

    def test_a_folder_of_something_else_is_left_alone(self, call, tmp_path, capsys):
        (tmp_path / "e").mkdir()
        (tmp_path / "e" / "mine.txt").touch()
        assert call() == 2
        assert "it is not empty; name another folder" in capsys.readouterr().err
        assert not (tmp_path / "out.jsonl").exists()
