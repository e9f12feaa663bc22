"""What a number's distance costs: against a plain forward of every legal number alone, and formulas of other forms."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from egmf_dist.config import Config, ObjectiveConfig, config_from_saved, without_effect
from egmf_dist.config.check import check_config
from egmf_dist.config.schema import PromptConfig
from egmf_dist.data import Collator
from egmf_dist.data.loader import micro_batches_of
from egmf_dist.errors import EgmfError
from egmf_dist.model.trained import trained_parameters
from egmf_dist.objectives import numbers
from egmf_dist.objectives.answers import AnswerLoss
from egmf_dist.objectives.numbers import check_numbers, crps, soft_cross_entropy
from egmf_shards import Turn

SOFT = ObjectiveConfig(number="soft", width=0.2)
EXPECTED = ObjectiveConfig(number="expected", answer_weight=0.3)
ORDERED = [replace(settings, ordered=["emotion"]) for settings in (SOFT, EXPECTED)]
FOREST = PromptConfig(pseudo_tokens="before_utterance", chat_template="off")


@pytest.fixture
def asking(load):
    """``asking(family, settings, packed)``: the family's model, and collator and loss with these settings."""

    def make(family: str, settings: ObjectiveConfig, packed: bool):
        model, plain, capabilities = load(family, prompt=FOREST)
        config = replace(plain.config, objective=settings)
        collator = Collator(plain.tokenizer, plain.tasks, plain.languages, plain.streams, config, plain.limits)
        collator.packed = packed
        return model, collator, AnswerLoss(config, collator.tasks), capabilities

    return make


def conversation(make_samples, seed: int):
    """Two dialogues whose utterances are asked both tasks in both languages; the truths lie between legal numbers."""
    draw = np.random.default_rng(seed)
    words = ["i am glad", "no wait", "wait no no", "glad", "no i am"]
    turns = [tuple(Turn("AB"[i % 2], str(draw.choice(words)) * 3) for i in range(5)) for _ in range(2)]
    return [
        replace(
            s,
            context=turns[i // 5][: draw.integers(0, 6)],
            text=f"{s.text} {'wait ' * draw.integers(0, 4)}",
            value=None if s.value is None else float(draw.uniform(-1, 1)),
        )
        for i, s in enumerate(make_samples(10, seed=seed))
    ]


def log_p_alone(model, collator, sample, answer: int) -> torch.Tensor:
    """By the backbone's own forward on [start; context; pseudo tokens; rest; answer; end], without any mask."""
    batch, limits = collator.unanswered([sample], [1.0]), collator.limits
    prompt, embed = batch.prompts[0], model.backbone.get_input_embeddings()
    said = [*collator.answers[sample.task, sample.language][answer], limits.eos]
    before, after = [*limits.start, *prompt.ids[: prompt.before]], [*prompt.ids[prompt.before :], *said]
    pseudo = model.pseudo_tokens(model.fuse(batch).pooled_BKD)[0]
    parts = [embed(torch.tensor(before, dtype=torch.long)), pseudo, embed(torch.tensor(after))]
    logits = model.backbone(inputs_embeds=torch.cat(parts)[None], use_cache=False).logits[0]
    last = len(logits) - 1
    return logits.log_softmax(-1)[range(last - len(said), last), said].sum()


def score_by_distances(p, values, y):
    """The same score in its other form, E|X - y| - E|X - X'| / 2."""
    v = torch.tensor(values)
    return (p * (v - y).abs()).sum() - (p[:, None] * p * (v[:, None] - v).abs()).sum() / 2


def reference(model, collator, samples, weights, settings):
    """The loss of a batch, answer by answer and sample by sample."""
    total = torch.zeros(())
    for sample, weight in zip(samples, weights, strict=True):
        task = collator.tasks[sample.task]
        if task.labels and task.name not in settings.ordered:
            cost = -log_p_alone(model, collator, sample, task.labels.index(sample.label))
        else:
            values, y = range(len(task.labels)), sample.label and task.labels.index(sample.label)
            if not task.labels:
                values, y = task.values, sample.value
            log_p = torch.stack([log_p_alone(model, collator, sample, c) for c in range(len(values))])
            if settings.number == "soft":
                sigma = settings.width * (values[-1] - values[0])
                bell = [math.exp(-(((v - y) / sigma) ** 2) / 2) for v in values]
                cost = -sum(b / sum(bell) * each for b, each in zip(bell, log_p, strict=True))
            else:
                even = torch.full((len(values),), 1 / len(values))
                guess = sum(float(score_by_distances(even, values, v)) for v in values) / len(values)
                score = score_by_distances(log_p.exp() / log_p.exp().sum(), values, y)
                nearest = min(range(len(values)), key=lambda c: abs(values[c] - y))
                cost = score * math.log(len(values)) / guess - settings.answer_weight * log_p[nearest]
        batch = collator([sample], [1.0])
        auxiliary = model.auxiliary(model.fuse(batch).pooled_BKD, batch)[0]
        total = total + weight * (cost + 0.5 * auxiliary)
    return total


def gradients(model, total):
    model.zero_grad(set_to_none=True)
    total.backward()
    return {name: p.grad.clone() for name, p in trained_parameters(model).items() if p.grad is not None}


@pytest.mark.parametrize(
    ("family", "packed", "settings"),
    [
        (family, packed, settings)
        for settings in (SOFT, EXPECTED)
        for family, packed in (("qwen2", True), ("gemma3", True), ("qwen2", False), ("bloom", False))
    ]
    + [("qwen2", True, settings) for settings in ORDERED]
    + [("bloom", False, ORDERED[1])],
    ids=lambda x: f"{x.number}{'-ordered' * bool(x.ordered)}" if isinstance(x, ObjectiveConfig) else str(x),
)  # bloom takes no tree
def test_loss_and_gradients_are_those_of_every_answer_fed_alone(asking, make_samples, family, packed, settings):
    """A forest of dialogues, both tasks, a filler and other weights, in one forward of the LLM."""
    model, collator, loss, _ = asking(family, settings, packed)
    samples, weights = conversation(make_samples, seed=len(family) + packed), [1.0, 2.0, 0.5, 0.0, 1.0] * 2
    calls = []
    hook = model.backbone.register_forward_hook(lambda *rest: calls.append(1))
    sums = model(collator(samples, weights), loss)
    hook.remove()
    assert len(calls) == 1
    found, wanted = gradients(model, sums.total), reference(model, collator, samples, weights, settings)
    torch.testing.assert_close(sums.total, wanted, rtol=1e-5, atol=1e-5)
    dense = gradients(model, wanted)
    assert found.keys() == dense.keys()
    whole, apart = (
        torch.cat([each.flatten() for each in parts])
        for parts in (dense.values(), (found[name] - dense[name] for name in dense))
    )
    assert apart.norm() < 1e-5 * whole.norm()
    for name, gradient in dense.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)
    # What is logged as the answers' loss is that of the right answers, as without the setting.
    plain = copy.copy(collator)
    plain.numbers, plain.config = {}, replace(collator.config, objective=ObjectiveConfig())
    with torch.no_grad():
        tokens = model(plain(samples, weights), AnswerLoss(plain.config, plain.tasks))
    torch.testing.assert_close(sums.answer, tokens.answer, rtol=1e-5, atol=1e-5)
    assert abs(float(sums.total.detach() - tokens.total)) > 0.1


def test_the_score_by_hand():
    """Numbers 0, 1, 2: F is 1/4 up to 1, then 3/4."""
    log_p = torch.tensor([[0.25, 0.5, 0.25]]).log().repeat(4, 1) - 3  # legal numbers together have p = e^-3
    found = crps(log_p, torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 0.5, 0.0, 2.0]))
    by_hand = [1 / 16 + 1 / 16, (1 / 16 + 9 / 16) / 2 + 1 / 16, 9 / 16 + 1 / 16, 1 / 16 + 9 / 16]
    torch.testing.assert_close(found, torch.tensor(by_hand))


def test_of_one_number_the_score_is_its_distance():
    values, truth = torch.linspace(-3, 3, 13), torch.tensor([-3.0, -0.7, 0.0, 2.9])
    sure = torch.full((4, 13), -80.0)
    sure[:, 4] = 0.0  # -1
    torch.testing.assert_close(crps(sure, values, truth), (truth + 1).abs(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("low", "high", "step"), [(-1.0, 1.0, 0.1), (0.0, 10.0, 2.5), (-3.0, 3.0, 6.0)])
def test_a_guess_costs_what_it_costs_as_an_answer(tasks, low, high, step):
    task = replace(tasks["sentiment"], low=low, high=high, step=step, convention="mosei")
    values = torch.tensor(task.values)
    each = crps(torch.zeros(len(values), len(values)), values, values)
    assert float(each.mean()) * numbers._Numbers.of(task).in_guesses == pytest.approx(math.log(len(values)), rel=1e-5)


def test_the_bell_by_hand():
    """Numbers 0, 1, 2 and sigma 1: e^-1/2, 1, e^-1/2; at the end 1, e^-1/2, e^-2. A narrow bell is one number."""
    values, log_p = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[0.1, 0.2, 0.3]]).log()
    side, far = math.exp(-0.5), math.exp(-2.0)
    middle = -(side * math.log(0.1) + math.log(0.2) + side * math.log(0.3)) / (1 + 2 * side)
    end = -(math.log(0.1) + side * math.log(0.2) + far * math.log(0.3)) / (1 + side + far)
    found = soft_cross_entropy(log_p.repeat(2, 1), values, torch.tensor([1.0, 0.0]), 0.5)
    torch.testing.assert_close(found, torch.tensor([middle, end]))
    narrow = soft_cross_entropy(log_p, values, torch.tensor([2.0]), 0.01)
    torch.testing.assert_close(narrow, torch.tensor([-math.log(0.3)]))


def test_tokens_ask_for_the_right_answers_alone(asking, make_samples):
    """An answer adds up under its sample's number, as ever."""
    _, collator, loss, _ = asking("qwen2", ObjectiveConfig(), True)
    assert collator.numbers == {}
    assert loss.numbers is None
    rows = collator(conversation(make_samples, 0), [1.0] * 10).rows
    assert sorted(set(rows.owner_E.tolist())) == list(range(10))


class Forty(SimpleNamespace):
    """Stands in for a stream of one global batch, and for its shards."""

    world, global_batch, tolerate = 1, 40, False

    def __init__(self, samples):
        super().__init__(samples=samples, shards=self)

    def __len__(self):
        return 1

    def global_slots(self, position):
        return [SimpleNamespace(index=i) for i in range(40)]

    def read(self, indices, tolerate):
        return SimpleNamespace(samples=self.samples)


@pytest.mark.parametrize("packed", [True, False])
def test_micro_batches_are_cut_by_what_is_read(asking, make_samples, packed):
    """More of them, and evenly: first the classes come, then the numbers."""
    samples = sorted(make_samples(40), key=lambda s: s.task)
    stream = Forty(samples)
    _, plain, _, _ = asking("qwen2", ObjectiveConfig(), packed)
    _, collator, _, _ = asking("qwen2", SOFT, packed)
    tokens = [int((c([s], [1.0]).rows.end_RC > 0).sum()) for c in (plain, collator) for s in samples]
    assert tokens[:20] == tokens[40:60]
    few, many = (micro_batches_of(stream, c, 100, packed) for c in (plain, collator))
    assert many > few
    if packed:  # what is read more is each tree in place of one path in it
        key = [(s.task, s.language) for s in samples[20:]]
        right = [collator.tasks["sentiment"].values.index(s.value) for s in samples[20:]]
        more = [len(collator.numbers[k].tokens) - len(collator.answers[k][c]) for k, c in zip(key, right, strict=True)]
        assert np.subtract(tokens[60:], tokens[20:40]).tolist() == more
    else:  # of rows that share nothing the count is plain
        assert many == min(-(-sum(tokens[40:]) // 100), 40)
    sizes = np.cumsum([collator.row_bytes(s) for s in samples])
    half = int(np.searchsorted(sizes, sizes[-1] / 2))
    assert 0.4 < sum(tokens[40 : 40 + half]) / sum(tokens[40:]) < 0.6
    assert half > 20
    assert [plain.row_bytes(s) for s in samples] == [plain.prompt_bytes(s) for s in samples]


def test_old_settings_mean_tokens():
    saved = asdict(Config())
    del saved["objective"]
    assert config_from_saved(saved).objective == ObjectiveConfig(number="tokens")


def test_settings_that_fit_nothing(asking, monkeypatch):
    """One line each, before a rank starts."""
    own = replace(Config(objective=SOFT), training=replace(Config().training, objective="mine:Own"))
    with pytest.raises(EgmfError, match=r"objective.number is 'soft'; it must be tokens where .* is mine:Own"):
        check_config(own)
    with pytest.raises(EgmfError, match=r"objective.width is 0.0; it must be above 0 and at most 1"):
        check_config(Config(objective=replace(SOFT, width=0.0)))
    said = "objective.width has no effect: objective.number is expected"
    assert without_effect(Config(objective=replace(EXPECTED, width=0.3))) == [said]
    assert without_effect(Config(objective=EXPECTED)) == without_effect(Config(objective=SOFT)) == []
    _, collator, _, capabilities = asking("qwen2", SOFT, False)
    config, vocabulary = collator.config, capabilities.vocabulary
    check_numbers(config, collator, capabilities, 2)
    nodes = max(len(tree.tokens) for tree in collator.numbers.values()) + 1
    monkeypatch.setattr(numbers, "LOGITS", 7 * nodes * vocabulary)
    check_numbers(replace(config, training=replace(config.training, micro_batch=7)), collator, capabilities, 2)
    check_numbers(replace(config, training=replace(config.training, micro_tokens=64)), collator, capabilities, 2)
    check_numbers(config, collator, capabilities, 5)  # 32 samples over 5 ranks
    with pytest.raises(EgmfError, match=r"5 legal answers of task 'sentiment' .* lower training.micro_batch to 7, "):
        check_numbers(config, collator, capabilities, 2)
    seven = replace(config.training, micro_batch=7)
    for rows in (
        {"training": replace(seven, packing="off")},
        {"training": seven, "evaluation": replace(config.evaluation, scoring="sequence")},
        {"training": seven, "backbone": replace(config.backbone, attn_implementation="flash_attention_2")},
    ):  # a row for every number takes more columns than their tree
        with pytest.raises(EgmfError, match=r"lower training.micro_batch to [456], give the task a larger step, or"):
            check_numbers(replace(config, **rows), collator, capabilities, 2)
    classes = {"emotion": collator.tasks["emotion"]}
    alone = Collator(collator.tokenizer, classes, ["en", "zh"], collator.streams, config, collator.limits)
    with pytest.raises(EgmfError, match=r"no task of this run is a regression \(emotion\); it must be tokens, or"):
        check_numbers(config, alone, capabilities, 2)
    assert without_effect(Config(objective=ObjectiveConfig(ordered=["emotion"]))) == [
        "objective.ordered has no effect: objective.number is tokens"
    ]
    for name, fault in (("moods", "no task of this run"), ("sentiment", "a regression")):
        other = replace(config, objective=replace(config.objective, ordered=[name]))
        with pytest.raises(EgmfError, match=rf"names '{name}', which is {fault}.*its classifications are: emotion"):
            check_numbers(other, collator, capabilities, 2)
