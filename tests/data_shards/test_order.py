"""The computed permutation: a bijection for every size and key, well mixed, another one in every epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egmf_shards import Mixture, Order, Permutation, ShardError
from egmf_shards.order.mixture import quotas
from egmf_shards.order.permutation import BlockPermutation


@pytest.mark.parametrize("n", [*range(1, 70), 1000, 4095, 4096, 4097, 99_991])
def test_every_size_is_a_bijection(n):
    for key in ((0, 0, "a"), (7, 3, "b")):
        assert np.array_equal(np.sort(Permutation(n, *key)(np.arange(n))), np.arange(n))


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6), name=st.text(max_size=5))
def test_any_key_is_a_bijection(n, seed, epoch, name):
    assert np.array_equal(np.sort(Permutation(n, seed, epoch, name)(np.arange(n))), np.arange(n))


def test_a_huge_set_needs_no_memory():
    n = 10**15
    places = np.array([0, 1, n // 2, n - 1])
    found = Permutation(n, 0)(places)
    assert len(set(found.tolist())) == 4
    assert found.min() >= 0
    assert found.max() < n


def test_mixing():
    """Over many keys each place receives each sample about equally often, and neighbours do not stay neighbours."""
    n, keys = 23, 4000
    rows = np.array([Permutation(n, seed, 0, "x")(np.arange(n)) for seed in range(keys)])
    counts = np.array([np.bincount(rows[:, place], minlength=n) for place in range(n)])
    expected = keys / n
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (n - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)
    fixed_points = (rows == np.arange(n)).sum(axis=1)
    assert abs(fixed_points.mean() - 1) < 0.1  # a random permutation has one on average
    steps = np.diff(rows, axis=1)
    assert abs((steps == 1).mean() - 1 / n) < 0.005


def test_mixing_of_one_large_permutation():
    n = 100_000
    found = Permutation(n, 1, 2, "x")(np.arange(n))
    assert abs(np.corrcoef(np.arange(n), found)[0, 1]) < 0.02
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    # The samples of any stretch of places spread evenly over the data set.
    spread = np.histogram(found[:10_000], bins=20, range=(0, n))[0]
    assert ((spread - 500) ** 2 / 500).sum() < 60


def test_epochs_seeds_and_data_change_the_order():
    n = 50
    orders = [tuple(Permutation(n, *key)(np.arange(n))) for key in ((0, 0, "a"), (0, 1, "a"), (1, 0, "a"), (0, 0, "b"))]
    assert len(set(orders)) == 4
    assert len({tuple(Permutation(2, e)(np.arange(2))) for e in range(20)}) == 2


def test_the_order_never_changes():
    """A run resumes by recomputing it: another order would silently repeat samples. If this fails, change no number."""
    assert Order(10, 0, "x").indices(0, 20).tolist() == [9, 6, 3, 8, 2, 7, 5, 1, 4, 0, 7, 2, 8, 5, 4, 3, 9, 6, 1, 0]


def test_order_crosses_epochs():
    order = Order(7, 3, "h")
    whole = order.indices(0, 35)
    for start in range(0, 35, 7):
        assert sorted(whole[start : start + 7].tolist()) == list(range(7))
    for start in range(30):
        assert order.indices(start, 5).tolist() == whole[start : start + 5].tolist()
        assert order.index(start) == whole[start]
        assert order.epoch(start) == start // 7
    assert order.indices(3, 0).tolist() == []


def test_refusals():
    with pytest.raises(ShardError, match="at least 1"):
        Permutation(0)
    with pytest.raises(ShardError, match="at least 1"):
        Order(0, 0, "")
    with pytest.raises(ShardError, match=r"places must be in \[0, 5\)"):
        Permutation(5)(np.array([5]))
    with pytest.raises(ShardError, match="position is -1"):
        Order(5, 0, "").indices(-1, 1)


def test_ten_thousand_random_permutations_are_bijections():
    """Of random size, seed and epoch, every other one of them in blocks; the sizes are log-uniform up to 3,000."""
    rng = np.random.default_rng(20261121)
    for trial in range(10_000):
        n = int(np.exp(rng.uniform(0, np.log(3000))))
        seed, epoch = int(rng.integers(2**63)), int(rng.integers(10**6))
        found = Permutation(n, seed, epoch, "x")(np.arange(n))
        if trial % 2:
            block, window = int(rng.integers(1, 40)), int(rng.integers(1, 10))
            found = BlockPermutation(n, block, window, seed, epoch)(np.arange(n))
        assert np.array_equal(np.sort(found), np.arange(n)), (n, seed, epoch)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 500), block=st.integers(1, 60), window=st.integers(1, 6), seed=st.integers(0, 99))
def test_a_window_holds_a_few_whole_blocks(n, block, window, seed):
    found = BlockPermutation(n, block, window, seed)(np.arange(n))
    span = block * window
    for start in range(0, n, span):
        blocks = np.unique(found[start : start + span] // block)
        # The last, shorter block shifts the cut between two windows: then one block lies in both.
        assert len(blocks) <= window + 1
    parts = [BlockPermutation(n, block, window, seed)(np.array([place])) for place in range(n)]
    assert np.concatenate(parts).tolist() == found.tolist()


def test_blocks_are_mixed():
    n, block, window = 4096, 64, 4
    found = BlockPermutation(n, block, window, 0)(np.arange(n))
    assert abs(np.corrcoef(np.arange(n), found)[0, 1]) < 0.1
    first = found[: block * window] // block
    assert (np.diff(first) != 0).mean() > 0.6  # neighbours mostly come from different blocks: 3 of 4 by chance
    other = BlockPermutation(n, block, window, 1)(np.arange(n))
    assert (found == other).mean() < 0.01


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.05, 10), min_size=4, max_size=4),
    seed=st.integers(0, 99),
    block=st.sampled_from([0, 5]),
)
def test_a_mixture_keeps_its_proportions_and_each_sets_epochs(sizes, weights, seed, block):
    weights = weights[: len(sizes)]
    mixture = Mixture([Order(n, seed, f"set {d}", block) for d, n in enumerate(sizes)], weights, seed, "x")
    indices, epochs = mixture.at(np.arange(3 * Mixture.SLOTS))
    first = np.concatenate([[0], np.cumsum(sizes)])
    which = np.searchsorted(first, indices, side="right") - 1
    for d, n in enumerate(sizes):
        for number in range(3):
            own = which[number * Mixture.SLOTS : (number + 1) * Mixture.SLOTS] == d
            assert own.sum() == mixture.quotas[d]
            assert abs(mixture.quotas[d] - weights[d] / sum(weights) * Mixture.SLOTS) < 1
        mine, own_epochs = indices[which == d] - first[d], epochs[which == d]
        for epoch in range(len(mine) // n):
            assert sorted(mine[own_epochs == epoch].tolist()) == list(range(n))
    part = mixture.at(np.array([5, 2500, 999, 1000]))
    assert part[0].tolist() == indices[[5, 2500, 999, 1000]].tolist()


@pytest.mark.parametrize("block", [0, 7])
def test_however_many_places_are_asked_for_at_once(block):
    """Across chunks of places and epochs' ends, the numbers are those of the permutation."""
    n = 5000
    order = Order(n, 3, "x", block, 2)
    keys = [(3, epoch, "x") for epoch in range(3)]
    epochs = [BlockPermutation(n, block, 2, *key) if block else Permutation(n, *key) for key in keys]
    whole = np.concatenate([permute(np.arange(n)) for permute in epochs])
    assert order.indices(0, 3 * n).tolist() == whole.tolist()
    for start in range(0, 3 * n - 40, 37):
        assert order.indices(start, 40).tolist() == whole[start : start + 40].tolist()
    scattered = np.array([9000, 1, 4999, 5000, 2048, 14999])
    assert order.at(scattered)[0].tolist() == whole[scattered].tolist()
    assert order.at(scattered)[1].tolist() == [1, 0, 0, 1, 0, 2]


def test_a_mixture_is_shuffled_anew_in_every_round():
    mixture = Mixture([Order(100, 0, "a"), Order(100, 0, "b")], [1, 1], 0, "x")
    which = mixture.at(np.arange(2 * Mixture.SLOTS))[0] >= 100
    same = (which[: Mixture.SLOTS] == which[Mixture.SLOTS :]).mean()
    assert 0.4 < same < 0.6  # by chance: a half


def test_quotas():
    assert quotas([1, 1, 1], 3, 1000) == [334, 333, 333]
    assert quotas([0.7, 0.3], 2, 10) == [7, 3]
    for weights, message in [
        ([1.0], "1 weights for 2 folders"),
        ([1.0, 0.0], "numbers above 0"),
        ([1.0, float("nan")], "numbers above 0"),
        ([1.0, 1e-5], "at least 1/1000"),
    ]:
        with pytest.raises(ShardError, match=message):
            quotas(weights, 2, 1000)
