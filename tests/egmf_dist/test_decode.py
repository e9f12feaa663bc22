"""Greedy generation behind the same prompts, and what is made of what it says."""

from __future__ import annotations

import pytest
import torch
from families import spoken
from transformers import GenerationConfig

from egmf_dist.inference.decode import UNPARSED, GreedyDecoder, _judged


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_it_is_the_likeliest_token_again_and_again(load, make_samples, alone, monkeypatch, name: str) -> None:
    """Several samples at once with a cache: what one sample gives alone, read whole for each token."""
    model, collator, _ = load(name)
    samples = spoken(make_samples, 6)
    # As an instruct model's folder brings them along.
    chatty = GenerationConfig(repetition_penalty=5.0, no_repeat_ngram_size=1, min_new_tokens=3)
    monkeypatch.setattr(model.backbone, "generation_config", chatty)
    decoder = GreedyDecoder(collator)
    eos = collator.limits.eos
    with torch.no_grad():
        together = model(decoder.prepare(samples, [1.0] * 6), decoder).tolist()
        for sample, found in zip(samples, together, strict=True):
            batch = decoder.prepare([sample], [1.0])
            (rows,) = batch.answers.rows
            embedded = model.lay_out(rows, model.speak(model.fuse(batch)))
            said: list[int] = []
            while len(said) < decoder.most and eos not in said:
                logits = model.backbone(inputs_embeds=embedded).logits[0, -1]
                said.append(int(logits.argmax()))
                embedded = torch.cat([embedded, model.embed(torch.tensor([said[-1:]]))], 1)
            kept = found[: found.index(eos) + 1] if eos in found else found
            assert kept == said


def test_words_are_parsed(load, make_samples) -> None:
    _, collator, _ = load("llama")
    decoder = GreedyDecoder(collator)
    emotion = next(s for s in make_samples(8) if s.task == "emotion" and s.language == "zh")
    for number, ids in enumerate(collator.answers["emotion", "zh"]):
        assert decoder.parse([*ids, collator.limits.eos, 3], emotion).answer == number
        assert decoder.parse(ids, emotion).answer == number
    first = collator.answers["emotion", "zh"][0]
    assert decoder.parse([*first, *first], emotion).answer is None
    assert decoder.parse([], emotion).answer is None


def test_what_cannot_be_parsed_counts(tasks) -> None:
    rows = [("emotion", "joy", 1), ("emotion", "joy", None), ("emotion", "anger", 2)]
    rows += [("sentiment", 1.0, 4), ("sentiment", -0.5, None)]
    found = _judged(rows, tasks)
    assert found["emotion"]["unparsed"] == 1
    assert found["emotion"]["metrics"]["accuracy"] == pytest.approx(2 / 3)
    # joy: precision 1, recall 1/2; anger: both 1; weighted by 2 and 1.
    assert found["emotion"]["metrics"]["weighted_f1"] == pytest.approx((2 * 2 / 3 + 1) / 3)
    assert found["emotion"]["metrics"]["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["sentiment"]["metrics"]["mae"] == pytest.approx((0 + 0.5) / 2)
    assert UNPARSED not in tasks["emotion"].labels
