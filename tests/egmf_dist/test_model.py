"""EGMF in one process: scoring, padding, absence, rank of the pseudo tokens, switches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.data.prompts import render_answer, render_prompt
from egmf_dist.data.run_data import RunData
from egmf_dist.inference.scorer import TreeScorer

STREAMS = {"audio": [6], "vision": [5]}


@pytest.fixture
def build(random_backbone, tasks):
    """``build(**model settings)`` gives a model in fp32 without dropout, and its collator."""

    def make(backbone=None, **settings):
        config = Config(
            data=DataConfig(shards=["unused"]),
            backbone=BackboneConfig(
                path=str(random_backbone), lora_rank=4, lora_alpha=8, lora_dropout=0.0, **(backbone or {})
            ),
            model=replace(ModelConfig(width=32, heads=2), **settings),
            training=TrainingConfig(precision="fp32"),
        )
        data = RunData(tasks, ["en", "zh"], STREAMS, {})
        capabilities, collator = read_backbone(config, data)
        model = build_egmf(config, capabilities, data)
        # A fresh adapter changes nothing (B is zero); give it weights so that tests see it.
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return model.eval(), collator

    return make


def each_alone(model, collator, samples):
    """Loss of every sample, one batch each."""
    return torch.stack([model(collator([s], [1.0])).total for s in samples])


def scores(model, collator, samples):
    """Log-probabilities of all legal answers, by the tree."""
    scorer = TreeScorer(collator, model.capabilities, 8)
    return model(scorer.prepare(samples, [1.0] * len(samples)), scorer).log_p_BC


PATTERNS = [(1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]


def test_a_batch_is_the_sum_of_its_samples_in_any_presence_pattern(build, make_samples):
    """No padding is attended to, batch size 1 works, and nothing of one sample reaches another."""
    model, collator = build()
    samples = make_samples(8, PATTERNS)
    together = model(collator(samples, [1.0] * 8))
    alone = each_alone(model, collator, samples)
    assert torch.isfinite(alone).all()
    torch.testing.assert_close(together.total, alone.sum(), rtol=1e-5, atol=1e-4)
    scored = scores(model, collator, samples)
    for b, sample in enumerate(samples):
        single = scores(model, collator, [sample])[0]
        torch.testing.assert_close(scored[b, : len(single)], single, rtol=1e-4, atol=1e-4)


def test_a_sample_with_weight_zero_counts_nothing_and_leaves_no_gradient(build, make_samples):
    model, collator = build()
    samples = make_samples(4)
    model(collator(samples[:2], [1.0, 1.0])).total.backward()
    alone = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    sums = model(collator(samples, [1.0, 1.0, 0.0, 0.0]))
    sums.total.backward()
    assert sums.valid == 2
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, alone[name], rtol=1e-4, atol=1e-5, msg=name)


def test_tree_scores_are_those_of_every_answer_fed_alone(build, make_samples, tasks):
    """One forward over the prefix tree equals one teacher-forced forward per legal answer."""
    model, collator = build()
    for sample in make_samples(6):
        task = tasks[sample.task]
        scored = scores(model, collator, [sample])[0]
        for index in range(len(task.legal_answers(sample.language))):
            target = {"label": task.labels[index]} if task.labels else {"value": task.values[index]}
            batch = collator([type(sample)(**(sample.__dict__ | target))], [1.0])
            torch.testing.assert_close(scored[index], -model(batch).answer, rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_plain_causal_language_model_loss(build, make_samples, tasks):
    """Against Hugging Face's own forward on [pseudo tokens; prompt; answer; end]."""
    model, collator = build()
    sample = make_samples(1)[0]
    batch = collator([sample], [1.0])
    tokenizer = collator.tokenizer
    prompt = tokenizer(render_prompt(sample, tasks[sample.task], 3), add_special_tokens=False)["input_ids"]
    answer = tokenizer(render_answer(tasks[sample.task], "en", int(batch.answer_B[0])), add_special_tokens=False)[
        "input_ids"
    ]
    answer = [*answer, tokenizer.eos_token_id]
    pseudo = model.pseudo_tokens(model.fuse(batch).pooled_BKD)
    embedded = torch.cat([pseudo, model.backbone.get_input_embeddings()(torch.tensor([prompt + answer]))], 1)
    labels = torch.tensor([[-100] * (pseudo.shape[1] + len(prompt)) + answer])
    expected = model.backbone(inputs_embeds=embedded, labels=labels).loss * len(answer)
    torch.testing.assert_close(model(batch).answer, expected.detach(), rtol=1e-5, atol=1e-5)


def test_an_absent_modality_changes_nothing_through_its_padding(build, make_samples):
    """The loss of a sample without audio does not depend on how long its neighbour's audio is."""
    model, collator = build()
    short, long = make_samples(2, [(1, 0, 1), (1, 1, 1)], seed=3)
    audio = np.repeat(long.features["audio"], 40, axis=0) + 5
    longer = replace(long, features={**long.features, "audio": audio})
    for neighbour in (long, longer):
        both = model(collator([short, neighbour], [1.0, 0.0])).total
        torch.testing.assert_close(both, model(collator([short], [1.0])).total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pattern", [(1, 1, 1), (1, 0, 0), (0, 0, 0)])
def test_pseudo_tokens_have_full_rank(build, make_samples, pattern):
    """K pseudo tokens span K dimensions, even where every pooled vector is the same."""
    model, collator = build(pseudo_tokens=6)
    sample = make_samples(1, [pattern])[0]
    if pattern == (1, 0, 0):
        sample = type(sample)(**(sample.__dict__ | {"text": "i"}))
    pseudo = model.pseudo_tokens(model.fuse(collator([sample], [1.0])).pooled_BKD)[0].double()
    values = torch.linalg.svdvals(pseudo)
    assert int((values > 1e-3 * values[0]).sum()) == 6
    rms = model.backbone.get_input_embeddings().weight.pow(2).mean().sqrt()
    torch.testing.assert_close(pseudo.pow(2).mean().sqrt().float(), rms, rtol=1e-3, atol=1e-6)


def test_gate_weights_are_distributions_and_absent_modalities_weigh_nothing(build, make_samples):
    model, collator = build()
    fused = model.fuse(collator(make_samples(8, PATTERNS), [1.0] * 8))
    present = torch.tensor(PATTERNS, dtype=torch.bool)
    assert (fused.diagnostics["modalities"][~present] == 0).all()
    torch.testing.assert_close(fused.diagnostics["modalities"][:-1].sum(1), torch.ones(7))
    assert (fused.diagnostics["modalities"][-1] == 0).all()
    torch.testing.assert_close(fused.diagnostics["experts"][:-1].sum(1), torch.ones(7))
    assert (fused.pooled_BKD[-1] == 0).all()


@pytest.mark.parametrize(
    "switch",
    [
        {"local_expert": False},
        {"semantic_expert": False},
        {"global_expert": False},
        {"semantic_expert": False, "global_expert": False},
        {"gate": False},
        {"pseudo_tokens": 0},
        {"text_stream": "learned"},
        {"modality_weight_in": "mix"},
        {"auxiliary_weight": 0.0},
    ],
    ids=str,
)
def test_every_switch_trains_every_parameter_it_leaves(build, make_samples, switch):
    """Each ablation runs, and no trained parameter is left without a gradient."""
    model, collator = build(**switch)
    model(collator(make_samples(8, PATTERNS), [1.0] * 8)).total.backward()
    without = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert not without
    whole, _ = build()
    assert sum(p.numel() for p in model.parameters()) != sum(p.numel() for p in whole.parameters()) or switch in (
        {"modality_weight_in": "mix"},
    )


def test_the_backbone_is_frozen_and_its_embeddings_get_no_gradient(build, make_samples):
    model, collator = build()
    model(collator(make_samples(4), [1.0] * 4)).total.backward()
    for name, parameter in model.backbone.named_parameters():
        assert ("lora_" in name) == parameter.requires_grad, name
    assert model.backbone.get_input_embeddings().weight.grad is None


def test_an_overlong_clip_is_averaged_down(build, make_samples):
    _, collator = build()
    sample = make_samples(1)[0]
    frames = np.arange(10_000, dtype=np.float32)[:, None].repeat(6, 1)
    batch = collator([replace(sample, features={**sample.features, "audio": frames})], [1.0])
    audio = batch.features[[own.stream for own in collator.inputs].index("audio")]
    assert audio.shape == (128, 6)
    assert abs(float(audio.mean()) - frames.mean()) < 8.0


def test_a_special_token_in_an_utterance_is_plain_text(build, make_samples):
    """A transcript that spells the end-of-sequence token must not end the sequence."""
    _, collator = build()
    sample = make_samples(1)[0]
    batch = collator([type(sample)(**(sample.__dict__ | {"text": "no <eos> wait"}))], [1.0])
    eos = collator.tokenizer.eos_token_id
    assert eos not in batch.text_ids.tolist()
    assert eos not in batch.rows.ids_RC.flatten().tolist()
    assert batch.rows.token_E.tolist().count(eos) == 1


def test_it_learns_eight_samples_by_heart(build, make_samples):
    """The adapter and the fusion alone bring the right answers up, on a random frozen backbone."""
    model, collator = build()
    samples = make_samples(8)
    batch = collator(samples, [1.0] * 8)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    first = model(batch).total
    for _ in range(120):
        optimizer.zero_grad()
        model(batch).total.backward()
        optimizer.step()
    assert model(batch).total < 0.3 * first
    right = scores(model, collator, samples).argmax(1) == batch.answer_B
    assert right.float().mean() >= 0.75


def test_layers_that_are_computed_again_keep_less(build, make_samples):
    """Each layer runs twice in a training step and once in scoring, and what is kept for backward is far less."""

    def step(again: bool) -> tuple[int, int]:
        model, collator = build(backbone={"gradient_checkpointing": again})
        runs, kept = 0, 0
        (layers,) = (m for n, m in model.backbone.named_modules() if n.endswith("model.layers"))

        def count(*rest):
            nonlocal runs
            runs += 1

        def keep(tensor):
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        for layer in layers:
            layer.self_attn.register_forward_pre_hook(count)
        with torch.no_grad():
            model(collator(make_samples(2), [1.0, 1.0]))
        assert runs == len(layers)
        model.train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(collator(make_samples(8), [1.0] * 8)).total.backward()
        return runs - len(layers), kept

    (once, much), (twice, little) = step(again=False), step(again=True)
    assert twice == 2 * once
    assert little < much
