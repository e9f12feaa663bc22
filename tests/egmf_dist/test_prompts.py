"""Prompts, answers and prefix trees."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from egmf_dist.data.answers import AnswerTree
from egmf_dist.data.prompts import answer_index, render_answer, render_prompt, shown_turns
from egmf_shards import Turn


def test_prompt_in_each_language_with_and_without_context(make_samples, tasks):
    english, chinese = make_samples(2)
    assert render_prompt(english, tasks["emotion"], 3) == f"B: wait\n[A] {english.text}\nEmotion? Answer:"
    assert render_prompt(english, tasks["emotion"], 0) == f"[A] {english.text}\nEmotion? Answer:"
    assert render_prompt(chinese, tasks["emotion"], 0) == f"[A] {chinese.text}\n情绪？ 答："
    assert render_prompt(english.without("text"), tasks["emotion"], 0) == "[A] \nEmotion? Answer:"


def test_answers_are_words_or_numbers_on_the_grid(make_samples, tasks):
    assert [render_answer(tasks["emotion"], "en", i) for i in range(3)] == [" neutral", " joy", " anger"]
    assert render_answer(tasks["emotion"], "zh", 1) == "高兴"
    assert [render_answer(tasks["sentiment"], "en", i) for i in range(5)] == [" -1.0", " -0.5", " 0.0", " 0.5", " 1.0"]
    for sample in make_samples(8):
        task, index = tasks[sample.task], answer_index(sample, tasks[sample.task])
        right = sample.label if task.labels else f"{sample.value:.1f}"
        assert (task.labels[index] if task.labels else task.legal_answers("en")[index]) == right


def test_a_tree_shares_prefixes_and_keeps_every_path():
    answers = [(5, 6), (5, 7), (5,), (8, 6, 9)]
    tree = AnswerTree.build(answers)
    assert len(tree.tokens) == 6  # 5, 6, 7, 8, 6, 9
    for answer, path in zip(answers, tree.paths, strict=True):
        assert tuple(tree.tokens[node - 1] for node in path) == answer
        assert [tree.depths[node - 1] for node in path] == list(range(1, len(answer) + 1))
        for above, node in pairwise(path):  # what follows a node is an interval
            assert above < node < tree.ends[node - 1] <= tree.ends[above - 1]
    assert sorted(end - node for node, end in enumerate(tree.ends, start=1)) == [1, 1, 1, 2, 3, 3]


@pytest.mark.parametrize("answers", [[(5,), (5,)], [(5,), ()]], ids=["equal", "empty"])
def test_answers_that_cannot_be_told_apart_are_refused(answers):
    with pytest.raises(ValueError, match="different and not empty"):
        AnswerTree.build(answers)


def test_stepped_context_is_common_to_neighbours_and_never_short(make_samples):
    """Of 12 turns at most, at least 7 where there are more; up to 12 they are all shown, as ever."""
    sample = make_samples(1)[0]
    for most in range(13):
        first = []
        for turn in range(40):
            before = tuple(Turn("A", str(i)) for i in range(turn))[-12:]
            shown = shown_turns(replace(sample, turn=turn, context=before), most, stepped=True)
            assert shown == turn if turn <= most else most // 2 < shown + (most == 0) <= most + (most == 0)
            first.append(turn - shown)
            assert shown_turns(replace(sample, turn=turn, context=before), most, stepped=False) == min(most, turn)
        assert first == sorted(first)
        if most == 12:
            assert [first.count(n) for n in dict.fromkeys(first)] == [13, 6, 6, 6, 6, 3]
