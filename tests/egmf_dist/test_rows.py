"""The LLM's rows: whatever stands in one, each sequence is read as if it stood alone, and no token twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from egmf_dist.data.answers import AnswerTree
from egmf_dist.data.rows import Asked, one_a_row, pack
from egmf_dist.model.sequence import log_probabilities

PSEUDO, EOS = 2, 999


def forest(seed: int) -> list[Asked]:
    """Sequences of some dialogues, in no order; contexts grow by turns, some are alike, some empty."""
    draw = np.random.default_rng(seed)

    def words(low, high):
        return draw.integers(1, 50, draw.integers(low, high)).tolist()

    asked, owner = [], 0
    for _ in range(draw.integers(1, 4)):
        turns = [words(3, 12) for _ in range(draw.integers(0, 6))]
        for end in range(len(turns) + 1):
            for _ in range(draw.integers(1, 3)):
                answers = [[1], [1, 2], [3, 1, 2], [3, 4]][: draw.integers(0, 5)]
                tree = AnswerTree.build(answers) if answers else None
                context = [7, *(token for turn in turns[:end] for token in turn)]
                asked.append(Asked(context, words(1, 9), len(asked), tree, range(owner, owner + len(answers))))
                owner += len(answers)
    return [asked[i] for i in draw.permutation(len(asked))]


def seen_from(rows, flat):
    """Columns that a column sees, from the mask's definition."""
    row, column = divmod(flat, rows.ids_RC.shape[1])
    return [j for j in range(column + 1) if column < rows.end_RC[row, j]], row


@pytest.mark.parametrize("seed", range(30))
def test_a_sequence_sees_itself_and_nothing_else(seed):
    """Followed back from where each of its answers ends, ids and positions are those of the sequence alone."""
    sequences = forest(seed)
    rows = pack(sequences, PSEUDO, EOS, columns=240)
    wanted = {}
    for s in sequences:
        for answer, owner in zip(s.answers.paths if s.answers else (), s.owners, strict=True):
            tokens = [s.answers.tokens[node - 1] for node in answer]
            wanted[owner] = [*s.context, *[0] * PSEUDO, *s.rest], tokens
    found: dict[int, list[int]] = {}
    place = dict(zip(rows.pseudo_P.tolist(), rows.source_P.tolist(), strict=True))
    source = {owner: s.source for s in sequences for owner in s.owners}
    for at, token, owner in zip(rows.at_E.tolist(), rows.token_E.tolist(), rows.owner_E.tolist(), strict=True):
        flat = int(rows.read_N[at])
        columns, row = seen_from(rows, flat)
        ids = rows.ids_RC[row, columns].tolist()
        prompt, answer = wanted[owner]
        done = ids[len(prompt) :]
        assert ids == prompt + answer[: len(done)]
        assert rows.position_RC[row, columns].tolist() == list(range(len(ids)))
        assert token == [*answer, EOS][len(done)]
        found.setdefault(owner, []).append(token)
        pseudo = [place[row * rows.ids_RC.shape[1] + c] for c in columns if row * rows.ids_RC.shape[1] + c in place]
        assert pseudo == [source[owner] * PSEUDO, source[owner] * PSEUDO + 1]
    assert {owner: sorted(tokens) for owner, tokens in found.items()} == {
        owner: sorted([*answer, EOS]) for owner, (_, answer) in wanted.items()
    }


def test_what_sequences_share_stands_once():
    context = list(range(10, 40))
    alike = [Asked([7, *context[:n]], [1, 2, 3], i, None, ()) for i, n in enumerate((30, 10, 20, 30))]
    rows = pack(alike, PSEUDO, EOS)
    assert rows.ids_RC.shape == (1, 56)
    assert int((rows.end_RC > 0).sum()) == 31 + 4 * (PSEUDO + 3)
    separate = one_a_row(alike, PSEUDO, EOS)
    assert int((separate.end_RC > 0).sum()) == sum(len(s.context) + PSEUDO + 3 for s in alike)
    # Three tokens in common would tie sequences to one row for nothing.
    few = [Asked([7, 8, 9, n], [1] * 40, n, None, ()) for n in range(4)]
    assert pack(few, PSEUDO, EOS, columns=240).ids_RC.shape == (4, 48)


def test_rows_are_filled_alike():
    draw = np.random.default_rng(0)
    asked = [Asked([7], [1] * int(n), i, None, ()) for i, n in enumerate(draw.integers(20, 200, 64))]
    rows = pack(asked, 0, EOS)
    padding = 1 - float((rows.end_RC > 0).float().mean())
    assert padding < 0.06
    assert 1 - float((one_a_row(asked, 0, EOS).end_RC > 0).float().mean()) > 0.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_and_their_gradient_are_log_softmaxs(dtype, monkeypatch):
    """In chunks of three rows, with a token asked for twice and a row for none."""
    monkeypatch.setattr("egmf_dist.model.sequence.CHUNK", 3 * 50)
    torch.manual_seed(0)
    plain = (torch.randn(10, 50) * 4).to(dtype)
    rows = one_a_row([Asked([], [1], 0, None, ())], 0, EOS)._replace(
        at_E=torch.tensor([0, 0, 3, 9, 5, 0]), token_E=torch.tensor([4, 7, 49, 0, 2, 4])
    )
    weight = torch.randn(6)
    ours, theirs = (plain.clone().requires_grad_() for _ in range(2))
    found = log_probabilities(ours * 1, rows)
    (found * weight).sum().backward()
    expected = theirs.float().log_softmax(-1)[rows.at_E, rows.token_E]
    (expected * weight).sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    tight = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-3}
    torch.testing.assert_close(ours.grad, theirs.grad, **tight)
