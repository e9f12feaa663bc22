"""One tiny random model of each of a dozen families, with LoRA: is every one trained and scored as it reads?

Windows are 8 positions, prompts several times as long, so a mask without its window shows.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import CHATS, FAMILIES, STREAMS, spoken

from egmf_dist.config import BackboneConfig, Config, ModelConfig, PromptConfig
from egmf_dist.data import Collator
from egmf_dist.data.chat import read_chat
from egmf_dist.data.prompts import answer_mark, render_prompt
from egmf_dist.errors import EgmfError
from egmf_dist.inference.scorer import SequenceScorer, TreeScorer, choose_scorer
from egmf_dist.model.backbone import load_tokenizer, read_capabilities
from egmf_shards import Turn


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_is_the_sum_of_its_samples(load, make_samples, monkeypatch, name):
    """Whatever shares its batch, a sample's loss is the same: no padding is seen by any kind of layer."""
    model, collator, _ = load(name)
    samples = spoken(make_samples, 6)
    with torch.no_grad():
        together = model(collator(samples, [1.0] * 6))
        alone = [model(collator([s], [1.0])) for s in samples]
    one_by_one = torch.stack([sums.answer for sums in alone])
    torch.testing.assert_close(together.answer, one_by_one.sum(), rtol=1e-5, atol=1e-5)
    assert torch.isfinite(one_by_one).all()
    assert one_by_one.std() > 1e-2
    if FAMILIES[name][3] == "tree":  # what honours the tree's masks is trained on rows of several samples
        monkeypatch.setattr(collator, "packed", True)
        batch = collator(samples, [1.0] * 6)
        assert len(batch.rows.ids_RC) < 6
        with torch.no_grad():
            torch.testing.assert_close(model(batch).answer, together.answer, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_those_of_one_forward_an_answer(load, make_samples, tasks, alone, name):
    """The way that is chosen gives, in a batch, the loss of every legal answer fed alone."""
    model, collator, capabilities = load(name)
    samples = spoken(make_samples, 6)
    choice = choose_scorer(Config().evaluation, model, capabilities, collator, samples[4:])
    assert choice.scorer.way == FAMILIES[name][3], choice.line
    with torch.no_grad():
        scored = model(choice.scorer.prepare(samples, [1.0] * 6), choice.scorer).log_p_BC
        for b, sample in enumerate(samples):
            task = tasks[sample.task]
            count = len(task.legal_answers(sample.language))
            assert torch.isneginf(scored[b, count:]).all()
            for index in range(count):
                target = {"label": task.labels[index]} if task.labels else {"value": task.values[index]}
                fed = model(collator([replace(sample, **target)], [1.0])).answer
                torch.testing.assert_close(scored[b, index], -fed, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family[3] == "tree"])
def test_utterances_that_share_their_context_are_read_as_if_alone(load, make_samples, tasks, name):
    """Two dialogues, two questions: loss, every gradient and every score equal those of separate sequences."""
    model, collator, capabilities = load(name, prompt=PromptConfig(pseudo_tokens="before_utterance"))
    turns = tuple(Turn("AB"[i % 2], text) for i, text in enumerate(["i am glad " * 3, "no wait", "wait no no", "glad"]))
    samples = [
        replace(s, context=(turns if i < 5 else turns[::-1])[: i % 5], text=f"{s.text} {'wait ' * (i % 3)}")
        for i, s in enumerate([*make_samples(8), *make_samples(2)])
    ]
    weights = [1.0, 2.0, 0.5, 1.0, 0.0, 1.0, 3.0, 1.0, 1.0, 1.0]

    def computed(packed):
        collator.packed = packed
        model.zero_grad(set_to_none=True)
        batch = collator(samples, weights)
        total = model(batch).total
        total.backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return batch.tokens, total.detach(), found

    try:
        tokens, loss, gradients = computed(False)
        fewer, shared, found = computed(True)
    finally:
        collator.packed = False
    assert fewer < tokens - 40
    torch.testing.assert_close(shared, loss, rtol=1e-5, atol=1e-5)
    assert found.keys() == gradients.keys()
    for parameter, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-5 * max(1.0, scale), msg=parameter)
    with torch.no_grad():
        for scorer in (TreeScorer(collator, capabilities, 10), SequenceScorer(collator, capabilities, 10)):
            scored = model(scorer.prepare(samples, weights), scorer).log_p_BC
            right = [list(tasks[s.task].labels or tasks[s.task].values).index(s.label or s.value) for s in samples]
            picked = -(scored[range(10), right] * torch.tensor(weights)).sum()
            torch.testing.assert_close(picked, model(collator(samples, weights)).answer, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_pseudo_tokens_begin_at_the_size_of_words(load, make_samples, name):
    model, collator, _ = load(name)
    batch = collator(make_samples(4), [1.0] * 4)

    def rms(x):
        return float(x.detach().pow(2).mean().sqrt())

    words = rms(model.backbone.get_input_embeddings()(torch.tensor([i for p in batch.prompts for i in p.ids])))
    pseudo = rms(model.pseudo_tokens(model.fuse(batch).pooled_BKD))
    assert words / 2 < pseudo < words * 2


@pytest.mark.parametrize("name", CHATS)
def test_an_instruct_model_is_spoken_to_by_its_chat_template(load, make_samples, tasks, alone, name):
    """What is read is the family's own dialogue, letter for letter; the answer's end is what ends a turn in it."""
    model, collator, capabilities = load(name, prompt=PromptConfig())
    tokenizer, chat = collator.tokenizer, CHATS[name]
    samples = make_samples(4)
    batch = collator(samples, [1.0] * 4)
    for b, sample in enumerate(samples):
        task, mark = tasks[sample.task], "" if sample.language == "zh" else " "
        plain = render_prompt(sample, task, collator.config.data.context_turns)
        words = plain[: plain.rindex(mark + answer_mark(sample.language))].rstrip()
        answer = task.legal_answers(sample.language)[int(batch.answer_B[b])]
        row = batch.rows.ids_RC[b][batch.rows.end_RC[b] > 0].tolist()
        said = [*collator.answers[sample.task, sample.language][int(batch.answer_B[b])]]
        start, pseudo_tokens = len(collator.limits.start), collator.limits.pseudo_tokens
        read = row[:start] + row[start + pseudo_tokens :]
        shown, right = tokenizer.decode(read), chat.before + words + chat.after + tokenizer.decode(said)
        if name == "phi3":  # SentencePiece marks where a part begins: template and prompt are tokenized apart
            shown, right = shown.replace(" ", ""), right.replace(" ", "")
        assert shown == right, sample.id
        assert tokenizer.decode(said).strip() == answer
        assert not tokenizer.decode(said).startswith(" ")
    assert tokenizer.convert_ids_to_tokens(collator.limits.eos) == chat.end
    choice = choose_scorer(Config().evaluation, model, capabilities, collator, samples)
    assert choice.scorer.way == FAMILIES[name][3], choice.line
    with torch.no_grad():
        scored = model(choice.scorer.prepare(samples, [1.0] * 4), choice.scorer).log_p_BC
        picked = -scored[range(4), batch.answer_B].sum()
        torch.testing.assert_close(picked, model(batch).answer, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('no turns') }}", "chat template fails: 'no turns'"),
        ("{% for m in messages %}hello{% endfor %}", "shows a message's words 0 times; once is needed"),
        ("{% for m in messages %}{{ m.content }}<beyond>{% endfor %}", "has the token '<beyond>'"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_refused(families, template, says):
    tokenizer = load_tokenizer(BackboneConfig(path=str(families["qwen2"])))
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<beyond>"]})
    tokenizer.chat_template = template
    with pytest.raises(EgmfError, match=r"^prompt.chat_template: [^\n]*; set prompt.chat_template off") as told:
        read_chat(tokenizer, rows, 1)
    assert says in str(told.value)


def test_a_chat_template_does_not_depend_on_the_day(families):
    """Llama 3's shows it, and whoever trains today evaluates tomorrow."""
    tokenizer = load_tokenizer(BackboneConfig(path=str(families["llama"])))
    before = tokenizer.decode(read_chat(tokenizer, len(tokenizer), 1).before)
    assert "Today Date: 26 Jul 2024" in before


def test_every_id_before_a_text_is_read(load, families):
    for name, (_, start, _, _) in FAMILIES.items():
        _, collator, capabilities = load(name)
        assert collator.tokenizer.convert_ids_to_tokens(list(capabilities.start)) == list(start), name


def test_an_answer_follows_the_prompt_as_its_tokenizer_writes_it(load, tasks):
    """A tokenizer that puts a mark before every text puts none between "Answer:" and the answer."""
    _, collator, _ = load("phi3")
    tokenizer = collator.tokenizer
    for word, ids in zip(tasks["emotion"].answers["en"], collator.answers["emotion", "en"], strict=True):
        whole = tokenizer(f"Answer: {word}", add_special_tokens=False)["input_ids"]
        assert whole == [*tokenizer("Answer:", add_special_tokens=False)["input_ids"], *ids]
    alone = tokenizer(" joy", add_special_tokens=False)["input_ids"]
    assert len(alone) > len(collator.answers["emotion", "en"][1]), "alone it begins with a mark of its own"


def test_a_backbone_that_needs_token_ids_is_refused(families, monkeypatch):
    """Before any weight is loaded: Gemma 3n's layers look every word up once more."""
    from transformers import AutoConfig

    config = BackboneConfig(path=str(families["llama"]))
    tokenizer = load_tokenizer(config)
    monkeypatch.setattr(
        "egmf_dist.model.backbone.load_backbone_config", lambda config: AutoConfig.for_model("gemma3n_text")
    )
    with pytest.raises(EgmfError, match="per-layer embeddings"):
        read_capabilities(config, tokenizer)


def test_weights_that_are_not_finite_are_said_to_be(load, make_samples, alone):
    model, collator, capabilities = load("qwen3")
    broken = model.pseudo_tokens.scale.data.clone()
    model.pseudo_tokens.scale.data.fill_(float("nan"))
    try:
        with pytest.raises(EgmfError, match="scores of a sample are not finite"):
            choose_scorer(Config().evaluation, model, capabilities, collator, make_samples(2))
    finally:
        model.pseudo_tokens.scale.data.copy_(broken)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_past_the_longest_position_loses_its_oldest_turns_then_its_beginning(
    load, families, make_samples, tmp_path, tasks, name
):
    """Twelve turns and a long utterance on 256 positions (GPT-2's are a table: one more would be an index error)."""
    model, collator, capabilities = load(name, max_text_tokens=128, context_turns=12)
    if name != "gpt2":  # no table of positions: past the trained length it would go on silently
        capabilities = replace(capabilities, longest=256)
        collator = Collator(
            collator.tokenizer, tasks, ["en", "zh"], STREAMS, collator.config, capabilities.limits(ModelConfig())
        )
    longest_answer = max(len(ids) for answers in collator.answers.values() for ids in answers)
    assert collator.prompt_limit == 256 - len(capabilities.start) - 4 - longest_answer
    sample = make_samples(1)[0]
    turns = tuple(Turn("B", f"turn {chr(97 + i)} " + "no wait " * 20) for i in range(12))
    text = "begin " + "glad no wait " * 60 + "the very end"
    batch = collator([replace(sample, text=text, context=turns)], [1.0])
    words = collator.tokenizer.decode(batch.prompts[0].ids)
    assert len(batch.prompts[0].ids) <= collator.prompt_limit
    assert batch.cut[0] > 0
    assert words.endswith("the very end\nEmotion? Answer:")
    assert "turn l" in words
    assert "turn a" not in words
    assert torch.isfinite(model(batch).answer)


def test_a_question_that_does_not_fit_is_refused(load, tasks):
    _, collator, capabilities = load("gpt2")
    limits = replace(capabilities, longest=24).limits(ModelConfig())
    with pytest.raises(EgmfError, match=r"its question takes \d+ tokens, the backbone's longest position leaves"):
        Collator(collator.tokenizer, tasks, ["en", "zh"], STREAMS, collator.config, limits)


def test_train_resume_evaluate(families, tmp_path, run_ranks):
    """The whole way through DeepSpeed for every family, in one process: 4 steps, the last 2 once more, evaluation."""
    from egmf_shards import synthesize

    data = tmp_path / "data"
    synthesize(data, 0, 64, 0.1, 0.01)
    job = {
        "families": {name: str(folder) for name, folder in families.items()},
        "data": str(data),
        "runs": str(tmp_path),
    }
    results = run_ranks("architectures.py", 1, job)
    assert results.keys() == FAMILIES.keys()
    for name, result in results.items():
        records = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4], name
        assert all(np.isfinite(r["loss"]) for r in records if r["kind"] == "train"), name
        starts = [r for r in records if r["kind"] == "start"]
        assert [r["step"] for r in starts] == [0, 2], name  # the second one went on from the checkpoint
        assert [r["loss"] for r in records if r["kind"] == "train"] == result["losses"], name
        start = starts[0]
        way = "tree" if "in one pass" in start["scoring"] else "sequence"
        assert way == FAMILIES[name][3], start["scoring"]
        assert sum(task["n"] for task in result["tasks"].values()) == result["samples"] > 0, name
    # On two ranks, whose batches hold different numbers of answers, both ways give what one rank gives.
    two = tmp_path / "two"
    both = {name: job["families"][name] for name in ("bloom", "gemma3")}
    run_ranks("architectures.py", 2, job | {"families": both, "runs": str(two)})
    for name in both:
        ours, theirs = (
            [
                json.loads(line)
                for line in (runs / name / "evaluation" / "predictions-test.jsonl").read_text().splitlines()
            ]
            for runs in (tmp_path, two)
        )
        assert [p["id"] for p in ours] == [p["id"] for p in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4), name


def test_a_collator_can_be_sent_to_another_process(load, make_samples):
    _, collator, _ = load("qwen2")
    samples = make_samples(3)
    again = pickle.loads(pickle.dumps(collator))(samples, [1.0] * 3)
    assert again.prompts == collator(samples, [1.0] * 3).prompts
