"""What is left out of a prompt that is too long, on token ids."""

from __future__ import annotations

from dataclasses import replace

import pytest

from egmf_dist.data.prompt_ids import PromptEncoder
from egmf_dist.data.prompts import prompt_pieces, render_prompt
from egmf_dist.errors import EgmfError
from egmf_shards import Turn


@pytest.fixture(scope="module")
def tokenizer(random_backbone):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(random_backbone)


@pytest.fixture
def encode(tokenizer, tasks):
    """``encode(sample, limit, most)`` gives the prompt's text again, its ids and how many were cut."""

    def run(sample, limit=1000, most=1000):
        pieces = prompt_pieces(sample, tasks[sample.task], 12)
        found = PromptEncoder(tokenizer, len(tokenizer), most, limit).prompts([pieces])[0]
        return tokenizer.decode(found.ids), found

    return run


def dialogue(make_samples, text="i am glad", turns=()):
    return replace(make_samples(1)[0], text=text, context=tuple(Turn(*t) for t in turns))


def test_a_prompt_within_its_limits_is_the_whole_text_tokenised_once(encode, make_samples, tokenizer, tasks):
    for sample in make_samples(8):
        whole = render_prompt(sample, tasks[sample.task], 12)
        words, found = encode(sample)
        assert words == whole
        assert found == (tokenizer(whole, add_special_tokens=False)["input_ids"], 0, 0)


def test_turns_that_stand_before_the_pseudo_tokens_are_tokenised_apart(make_samples, tokenizer, tasks):
    """Whatever follows them, so that other prompts of the dialogue begin with the same ids; cut as ever."""
    sample = dialogue(make_samples, "glad", [("B", "wait " * n) for n in (3, 1, 4)])
    pieces = prompt_pieces(sample, tasks[sample.task], 12)
    turns, rest = ("".join(p.text for p in part) for part in (pieces[:3], pieces[3:]))
    ids, behind = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (turns, rest))
    for limit, first in ((1000, 0), (len(ids) + len(behind) - 1, 1)):
        encoder = PromptEncoder(tokenizer, len(tokenizer), 1000, limit, apart=True)
        found = encoder.prompts([pieces])[0]
        assert found.ids[found.before :] == behind
        kept = "".join(p.text for p in pieces[first:3])
        assert tokenizer.decode(found.ids[: found.before]) == kept
        assert found.cut == len(ids) + len(behind) - len(found.ids)
    alone = PromptEncoder(tokenizer, len(tokenizer), 1000, 1000, apart=True).prompts([pieces[3:]])[0]
    assert alone == (behind, 0, 0)


def test_the_oldest_turns_go_first_whole(encode, make_samples):
    sample = dialogue(make_samples, turns=[("A", "one one one"), ("B", "two two"), ("", "three")])
    whole, found = encode(sample)
    size = len(found.ids)
    assert whole.startswith("A: one one one\nB: two two\nthree\n[A] i am glad")
    words, found = encode(sample, limit=size - 1)
    assert words.startswith("B: two two\nthree\n[A] i am glad\n")
    assert len(found.ids) + found.cut == size
    words, _ = encode(sample, limit=len(found.ids) - 1)
    assert words.startswith("three\n[A] i am glad\n")


def test_then_the_utterance_keeps_its_end_then_the_speaker_goes(encode, make_samples):
    sample = dialogue(make_samples, text="begin no wait i am glad", turns=[("B", "two two")])
    alone = len(encode(replace(sample, context=()))[1].ids)
    words, _ = encode(sample, limit=alone - 4)
    assert words.startswith("[A] ")
    assert "begin" not in words
    assert words.endswith("glad\nEmotion? Answer:")
    question = "\nEmotion? Answer:"
    size = len(encode(replace(sample, text="", context=(), speaker=""))[1].ids)
    named, _ = encode(replace(sample, speaker="A very long name " * 9), limit=size)
    assert named.endswith(question)
    assert "glad" not in named


def test_question_and_answer_are_never_cut(encode, make_samples):
    with pytest.raises(EgmfError, match=r"a question takes \d+ tokens and a prompt may have 5"):
        encode(dialogue(make_samples), limit=5)


@pytest.mark.parametrize("text", ["我很高兴不等我很高兴", "🙂🙃😀😢🥲", "👩‍👩‍👧 ok 👍🏽 no", "a我b🙂c等d"])
def test_no_character_is_cut_in_half(tokenizer, encode, make_samples, text):
    """Every limit, for characters of three and four bytes, each of several tokens: what stays is an end of the text."""
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    encoder = PromptEncoder(tokenizer, len(tokenizer), 1000, 1000)
    for most in range(1, len(whole) + 1):
        encoder.max_text_tokens = most
        kept = encoder.texts([text])[0]
        assert len(kept) <= most
        assert text.endswith(tokenizer.decode(kept))
    sample = dialogue(make_samples, text=text)
    size = len(encode(sample)[1].ids)
    for limit in range(size - len(whole), size):
        words, found = encode(sample, limit=limit)
        assert len(found.ids) <= limit
        said = words.removeprefix("[A]").removeprefix(" ").removesuffix("\nEmotion? Answer:")
        assert text.endswith(said)


def test_a_long_turn_keeps_its_speaker_and_its_end(encode, make_samples):
    sample = dialogue(make_samples, turns=[("Someone", "no " * 30 + "wait")])
    words, found = encode(sample, most=3)
    assert words.startswith("Someone:")
    assert words.count("no") <= 3
    assert "wait\n[A]" in words
    assert found.cut > 20


def test_a_tokenizer_without_offsets_cuts_by_the_same_rules(tokenizer, tasks, make_samples):
    class Slow:
        is_fast = False

        def __call__(self, texts, **options):
            assert not options.pop("return_offsets_mapping", False)
            return tokenizer(texts, **options)

    sample = dialogue(make_samples, text="begin no wait i am glad", turns=[("A", "one one one"), ("B", "two two")])
    pieces = prompt_pieces(sample, tasks["emotion"], 12)
    encoder = PromptEncoder(Slow(), len(tokenizer), 1000, 1000)
    whole = encoder.prompts([pieces])[0]
    assert tokenizer.decode(whole.ids) == "".join(piece.text for piece in pieces)
    encoder.limit = len(whole.ids) - 1
    assert tokenizer.decode(encoder.prompts([pieces])[0].ids).startswith("B: two two\n[A] begin")
    encoder.max_text_tokens = 2
    assert tokenizer.decode(encoder.prompts([pieces])[0].ids).count("one") <= 2


def test_a_token_beyond_the_embedding_is_refused_with_the_text(tokenizer):
    encoder = PromptEncoder(tokenizer, 20, 10, 10)
    with pytest.raises(EgmfError, match=r"the text 'glad' holds the token .* embedding of 20 rows has none"):
        encoder.plain("glad")
