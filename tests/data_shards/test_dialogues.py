"""Dialogues: known to the index, kept together by an order, and what is wrong about them is said."""

from __future__ import annotations

import dataclasses
import json
import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egmf_shards import ShardError, ShardSet, Stream, StreamOptions, verify
from egmf_shards.format.index import load_index, save_index
from egmf_shards.importers.foreign_tars import index_foreign
from egmf_shards.order.dialogues import DialogueOrder
from egmf_shards.order.order import Order


@settings(deadline=None)
@given(st.lists(st.integers(-1, 12), min_size=1, max_size=60), st.integers(0, 5))
def test_an_epoch_holds_each_sample_once_and_dialogues_in_one_piece(numbers, seed):
    dialogues = np.array(numbers, dtype=np.int32)
    n = len(dialogues)
    order = DialogueOrder(dialogues, seed, "h")
    indices, epochs = order.at(np.arange(3 * n))
    assert epochs.tolist() == [0] * n + [1] * n + [2] * n
    for epoch in range(3):
        own = indices[epoch * n : (epoch + 1) * n]
        assert sorted(own.tolist()) == list(range(n))
        runs = [d for i, d in enumerate(dialogues[own].tolist()) if d >= 0 and (i == 0 or d != dialogues[own[i - 1]])]
        assert len(runs) == len(set(runs))
        for number in set(runs):
            inside = own[dialogues[own] == number]
            assert (np.diff(inside) > 0).all()
    places = np.random.default_rng(seed).integers(0, 3 * n, 20)
    assert order.at(places)[0].tolist() == indices[places].tolist()  # in any order, however many at once


def test_the_order_of_dialogues_never_changes():
    """A resumed run depends on it."""
    dialogues = np.array([0, 0, 0, 1, 1, 2, -1, -1, 3, 3], dtype=np.int32)
    assert DialogueOrder(dialogues, 7, "data").at(np.arange(12))[0].tolist() == [6, 8, 9, 0, 1, 2, 7, 3, 4, 5, 0, 1]
    sent = pickle.loads(pickle.dumps(DialogueOrder(dialogues, 7, "data")))  # to a process that reads ahead
    assert sent.at(np.arange(3))[0].tolist() == [6, 8, 9]
    with pytest.raises(ShardError, match="position is -1"):
        DialogueOrder(dialogues, 7, "data").at(np.array([-1]))
    with pytest.raises(ShardError, match="0 samples"):
        DialogueOrder(dialogues[:0], 7, "data")


@settings(deadline=None)
@given(st.integers(0, 3), st.integers(0, 5))
def test_first_epochs_may_mix_samples(mixed, seed):
    """As an order without dialogues does; what comes after them is what would have come without them."""
    dialogues = np.repeat(np.arange(8, dtype=np.int32), 5)
    n = len(dialogues)
    order, plain, whole = (
        DialogueOrder(dialogues, seed, "h", mixed),
        Order(n, seed, "h"),
        DialogueOrder(dialogues, seed, "h"),
    )
    positions = np.random.default_rng(seed).permutation(4 * n)
    found, epochs = order.at(positions)
    first = positions < mixed * n
    assert (epochs == positions // n).all()
    assert (found[first] == plain.at(positions[first])[0]).all()
    assert (found[~first] == whole.at(positions[~first])[0]).all()


def test_the_index_knows_the_dialogues(folder, sample):
    """d0 is samples 0 to 3, of which 3 is in another split."""
    out = folder(samples=[sample(i, **({"dialogue": ""} if i == 7 else {})) for i in range(12)])
    shards = ShardSet.open([out], "train")
    keys = [shards.key(i) for i in range(len(shards))]
    found = dict(zip(keys, np.asarray(shards.dialogues).tolist(), strict=True))
    together = {frozenset(k for k in found if found[k] == n) for n in found.values() if n >= 0}
    assert together == {
        frozenset({"toy-0", "toy-1", "toy-2"}),
        frozenset({"toy-5", "toy-6"}),
        frozenset({"toy-10", "toy-11"}),
    }
    assert found["toy-7"] == -1
    stream = Stream(
        shards, seed=0, global_batch=3, micro_batch=3, rank=0, world=1, options=StreamOptions(dialogues=True)
    )
    read = [m.samples[0].dialogue for p in range(0, len(shards), 1) for m in [stream.read(p)[0]]]
    assert sum(a != b for a, b in pairwise(read)) <= 4


def test_two_folders_have_dialogues_of_their_own(folder, sample):
    parts = [folder(name, [sample(i, id=f"{name}-{i}") for i in range(3)]) for name in ("a", "b")]
    numbers = ShardSet.open(parts, "train").dialogues
    assert np.asarray(numbers).tolist() == [0, 0, 0, 1, 1, 1]
    weighted = StreamOptions(weights=[1, 3], dialogues=True)
    stream = Stream(
        ShardSet.open(parts, "train"), seed=0, global_batch=4, micro_batch=4, rank=0, world=1, options=weighted
    )
    assert {slot.index for p in range(0, 40, 4) for slot in stream.global_slots(p)} == set(range(6))


def test_an_index_of_before_gets_them_in_place(folder, sample):
    out = folder(samples=[sample(i) for i in range(12)])
    index = load_index(out)
    before = ShardSet.open([out], "train")
    save_index(out, dataclasses.replace(index, dialogue=None))
    assert load_index(out).content_hash == index.content_hash
    with pytest.raises(ShardError, match=r"does not say which dialogue a sample is of; `egmf shards index` adds"):
        _ = ShardSet.open([out], "train").dialogues
    assert verify(out).ok
    index_foreign(out)
    after = ShardSet.open([out], "train")
    assert np.array_equal(after.dialogues, before.dialogues)
    assert after.index_hash == before.index_hash
    assert verify(out).ok
    with pytest.raises(ShardError, match="exists already"):
        index_foreign(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.astype(np.int64), "the array dialogue is <i8"),
        (lambda d: d[:-1], "one number for each sample"),
        (lambda d: d - 3, "below -1"),
    ],
)
def test_a_column_that_cannot_be_read(folder, sample, change, message, refused):
    out = folder(samples=[sample(i) for i in range(6)])
    index = load_index(out)
    save_index(out, dataclasses.replace(index, dialogue=change(index.dialogue)))
    refused(lambda: load_index(out), message)


@pytest.mark.parametrize("change", [lambda d: d * 0, lambda d: d * 0 - 1, lambda d: np.arange(len(d), dtype=d.dtype)])
def test_verify_compares_them_with_the_samples(folder, sample, change):
    out = folder(samples=[sample(i) for i in range(12)])
    index = load_index(out)
    save_index(out, dataclasses.replace(index, dialogue=change(index.dialogue)))
    report = verify(out)
    assert not report.ok
    assert any("the index counts it among another's, or among none's" in str(p) for p in report.problems)
    assert set(report.counts) == {"index"}
    assert json.loads((out / "manifest.json").read_text())["index"] == index.content_hash
