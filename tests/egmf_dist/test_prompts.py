"""Prompts, answers and prefix trees."""

from __future__ import annotations

import pytest
import torch

from egmf_dist.data.answers import AnswerTree, TreeBatch
from egmf_dist.data.prompts import answer_index, render_answer, render_prompt


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


def test_stacked_trees_see_their_ancestors_only():
    batch = TreeBatch.stack([AnswerTree.build([(5, 6), (5, 7)]), AnswerTree.build([(1,), (2,), (3,)])], [0, 4])
    assert batch.tokens_BN.shape == (2, 3)
    assert batch.sees_BNN[0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    assert batch.sees_BNN[1].int().tolist() == torch.eye(3).int().tolist()
    assert batch.place_BC.tolist() == [[0, 1, -1], [4, 5, 6]]


@pytest.mark.parametrize("answers", [[(5,), (5,)], [(5,), ()]], ids=["equal", "empty"])
def test_answers_that_cannot_be_told_apart_are_refused(answers):
    with pytest.raises(ValueError, match="different and not empty"):
        AnswerTree.build(answers)
