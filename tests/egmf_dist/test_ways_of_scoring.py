"""The check before step 1: which way of scoring a backbone is given, and what scoring holds at once."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from families import FAMILIES, SMALL, STREAMS, save_model, spoken

from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.config import BackboneConfig, Config, ModelConfig, TrainingConfig
from egmf_dist.data.run_data import RunData
from egmf_dist.errors import EgmfError
from egmf_dist.inference.scorer import SequenceScorer, TreeScorer, choose_scorer


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_bf16_rounding_is_no_disagreement(load, make_samples, alone, name):
    """Trees that are right in fp32 stay the choice in bf16, whichever samples are looked at."""
    import copy

    model, collator, capabilities = load(name)
    half = copy.deepcopy(model).bfloat16()
    samples = spoken(make_samples, 12)
    for first in range(0, 12, 3):
        choice = choose_scorer(Config().evaluation, half, capabilities, collator, samples[first : first + 3])
        assert choice.scorer.way == "tree", choice.line


def test_a_tree_without_the_window_would_be_found_out(load, make_samples, alone):
    """The check before step 1: a backbone whose window is not in its configuration is scored answer by answer."""
    model, collator, capabilities = load("mistral")
    hidden = replace(capabilities, kinds=(capabilities.kinds[0]._replace(window=None),))
    model.capabilities = hidden
    try:
        choice = choose_scorer(Config().evaluation, model, hidden, collator, spoken(make_samples, 6)[4:])
        assert choice.scorer.way == "sequence"
        assert "differ by" in choice.line
        asked = replace(Config().evaluation, scoring="tree")
        with pytest.raises(EgmfError, match=r"which mistral cannot .the tree's scores differ by"):
            choose_scorer(asked, model, hidden, collator, spoken(make_samples, 6)[4:])
    finally:
        model.capabilities = capabilities


def test_a_model_that_fails_under_the_trees_mask_is_scored_by_sequences(load, make_samples, alone):
    """Bloom unpacks a mask of two dimensions; what says so here is the check, not its configuration."""
    model, collator, capabilities = load("bloom")
    samples = spoken(make_samples, 6)[5:]
    choice = choose_scorer(Config().evaluation, model, replace(capabilities, sequence_only=""), collator, samples)
    assert choice.scorer.way == "sequence"
    assert "made it fail: ValueError: too many values to unpack" in choice.line


def test_a_model_that_ignores_its_padding_is_refused(load, make_samples, alone, monkeypatch):
    model, collator, capabilities = load("qwen2")
    plain = model.logits

    def deaf(embedded, mask, position, read):
        return plain(embedded, torch.ones_like(mask) if mask.dim() == 2 else mask, position, read)

    monkeypatch.setattr(model, "logits", deaf)
    with pytest.raises(EgmfError, match="ignores its padding mask"):
        choose_scorer(Config().evaluation, model, capabilities, collator, spoken(make_samples, 6)[5:])


def test_a_trained_models_rounding_is_named_and_not_refused(load, make_samples, alone, monkeypatch):
    """Gemma 3 270M, trained in bf16 on a distance of numbers: padding moved its scores by 0.6 to 1.5."""
    import copy

    model, collator, capabilities = load("qwen2")
    samples = spoken(make_samples, 6)[5:]
    half = copy.deepcopy(model).bfloat16()
    for loud in (model, half):
        plain = loud.logits

        def rounded(embedded, mask, position, read, plain=plain):
            torch.manual_seed(mask.shape[-1])
            found = plain(embedded, mask, position, read)
            return found + 2 * torch.randn_like(found)

        monkeypatch.setattr(loud, "logits", rounded)
    choice = choose_scorer(Config().evaluation, half, capabilities, collator, samples, trained=True)
    assert re.search(r"; rounding moves a score by up to [1-9][.\d]*: bfloat16", choice.line)
    for loud, trained in ((half, False), (model, True)):
        with pytest.raises(EgmfError, match="ignores its padding mask"):
            choose_scorer(Config().evaluation, loud, capabilities, collator, samples, trained=trained)


def test_a_tree_in_several_passes_scores_the_same(load, make_samples):
    """A tree cut into passes, and samples scored a few at a time, give what one pass gives."""
    model, collator, capabilities = load("gemma3")
    samples = spoken(make_samples, 6)
    whole, cut = (TreeScorer(collator, capabilities, 6) for _ in range(2))
    from egmf_dist.data.answers import AnswerTree

    cut.trees = {key: AnswerTree.build_passes(ids, 4) for key, ids in collator.answers.items()}
    cut.passes, cut.samples_at_once = max(map(len, cut.trees.values())), 4
    assert cut.passes > 2
    with torch.no_grad():
        expected = model(whole.prepare(samples, [1.0] * 6), whole).log_p_BC
        found = model(cut.prepare(samples, [1.0] * 6), cut).log_p_BC
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class TestMemory:
    """What scoring holds at once, whatever the number of answers."""

    def test_sixty_one_numbers_on_sixty_four_samples_by_sequences(self, families, make_samples, tasks, alone):
        numbers = replace(tasks["sentiment"], low=-3.0, high=3.0, step=0.1)
        folder = families["bloom"]
        config = Config(
            backbone=BackboneConfig(path=str(folder), lora_rank=4, lora_dropout=0.0),
            model=ModelConfig(width=32, heads=2),
            training=TrainingConfig(precision="fp32"),
        )
        data = RunData({"sentiment": numbers}, ["en", "zh"], STREAMS, {})
        capabilities, collator = read_backbone(config, data)
        model = build_egmf(config, capabilities, data).eval()
        scorer = SequenceScorer(collator, capabilities, batch_size=64)
        samples = [replace(s, task="sentiment", label=None, value=0.3) for s in make_samples(64)]
        seen = []
        model.backbone.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(len(kwargs["inputs_embeds"])), with_kwargs=True
        )
        with torch.no_grad():
            log_p_BC = model(scorer.prepare(samples, [1.0] * 64), scorer).log_p_BC
        assert log_p_BC.shape == (64, 61)
        assert torch.isfinite(log_p_BC).all()
        assert max(seen) <= 64
        assert sum(seen) == 64 * 61
        fed = model(collator([replace(samples[7], value=numbers.values[60])], [1.0])).answer
        torch.testing.assert_close(log_p_BC[7, 60], -fed.detach(), rtol=1e-5, atol=1e-4)

    def test_five_hundred_answers_at_a_vocabulary_of_152k_by_the_tree(self, tasks, run_ranks, tmp_path):
        """A process of its own, because its peak is what counts: everything, torch too, within 2 GiB."""
        wide = SMALL | {"hidden_size": 16, "tie_word_embeddings": True}
        folder = save_model(tmp_path / "wide", "qwen2", (), wide, vocabulary=152_000)
        numbers = replace(tasks["sentiment"], low=-2.5, high=2.5, step=0.01)
        found = run_ranks("many_answers.py", 1, {"backbone": str(folder), "task": numbers})
        assert found["answers"] == 501
        assert found["apart"] < 1e-4
        assert found["peak_gib"] < 2.0, found

    def test_sixty_four_samples_at_a_vocabulary_of_262k(self, tasks, run_ranks, tmp_path, monkeypatch):
        """Logits stand where a token is asked for alone: loss, gradient and scores within 1 GiB above the model."""
        # Blocks go back to the system as they are freed. By itself glibc comes to keep those of up to 32 MiB, and what
        # it keeps changed a step's peak by 0.1 GiB from one run to the next.
        for threshold in ("MMAP", "TRIM"):
            monkeypatch.setenv(f"MALLOC_{threshold}_THRESHOLD_", str(2**17))
        kind, start, settings, _ = FAMILIES["gemma3"]
        folder = save_model(tmp_path / "words", kind, start, settings | {"hidden_size": 16}, vocabulary=262_144)
        numbers = replace(tasks["sentiment"], low=-3.0, high=3.0, step=0.1)
        found = run_ranks("many_words.py", 1, {"backbone": str(folder), "tasks": [tasks["emotion"], numbers]})
        short, long = found["columns"]
        assert long > 1.7 * short > 64 * 100
        assert found["loss"] < 1.0, found
        assert found["score"] < 1.0, found
        assert found["longer"] < found["loss"] + 0.1, found
