"""One sequence of global batches however it is cut, each sample exactly once per epoch, equal micro-batch counts."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egmf_shards import ShardError, ShardSet, Slot, Stream, StreamOptions, partition, sequential
from egmf_shards.order.partition import partition_by_length


class Numbers:
    """Stands in for a shard set whose samples are numbers."""

    def __init__(self, count: int, folders: int = 1) -> None:
        self.count = count
        self.counts = [len(partition(count, i, folders)) for i in range(folders)]
        self.index_hash = f"numbers {count}"

    def __len__(self) -> int:
        return self.count

    def read(self, indices: list[int], tolerate: bool) -> SimpleNamespace:
        return SimpleNamespace(samples=list(indices), bad=[])

    columns = ("text_chars", "audio_frames", "vision_frames")

    def column(self, name: str) -> np.ndarray:
        salt = {"text_chars": 1, "audio_frames": 2, "vision_frames": 3}[name]
        return np.array([(i * 7919 * salt) % 97 for i in range(self.count)], dtype=np.int32)


def streams(count: int, seed: int, global_batch: int, micro_batch: int, world: int) -> list[Stream]:
    numbers = Numbers(count)
    return [
        Stream(numbers, seed=seed, global_batch=global_batch, micro_batch=micro_batch, rank=rank, world=world)
        for rank in range(world)
    ]


sizes = {
    "count": st.integers(1, 60),
    "seed": st.integers(0, 5),
    "global_batch": st.integers(3, 20),
    "micro_batch": st.integers(1, 9),
    "start": st.integers(0, 200),
}


@settings(max_examples=150, deadline=None)
@given(**sizes)
def test_the_cut_changes_nothing(count, seed, global_batch, micro_batch, start):
    reference = streams(count, seed, global_batch, global_batch, 1)[0]
    for step in range(4):
        position = start + step * global_batch
        [whole] = reference.plan(position)
        assert [s.position for s in whole] == list(range(position, position + global_batch))
        assert all(s.epoch == s.position // count for s in whole)
        for world in (1, 2, 3):
            ranks = streams(count, seed, global_batch, micro_batch, world)
            plans = [stream.plan(position) for stream in ranks]
            assert [slot for plan in plans for cut in plan for slot in cut] == whole
            assert {len(plan) for plan in plans} == {ranks[0].micro_batches}
            shares = [sum(map(len, plan)) for plan in plans]
            assert max(shares) - min(shares) <= 1
            assert max(len(cut) for plan in plans for cut in plan) <= micro_batch
            assert all(max(map(len, plan)) - min(map(len, plan)) <= 1 for plan in plans)


@settings(max_examples=60, deadline=None)
@given(**sizes)
def test_what_is_read_is_what_was_planned(count, seed, global_batch, micro_batch, start):
    for world in (1, 2, 3):
        real = []
        for stream in streams(count, seed, global_batch, micro_batch, world):
            batches = stream.read(start)
            assert len(batches) == stream.micro_batches
            for batch, plan in zip(batches, stream.plan(start), strict=True):
                assert len(batch.samples) == len(batch.slots) == len(batch.weights) >= 1
                assert batch.samples == [slot.index for slot in batch.slots]
                assert batch.weights == ([1.0] * len(plan) if plan else [0.0])
                if not plan:
                    assert batch.slots == batches[0].slots[:1]
                real += [s for s, w in zip(batch.slots, batch.weights, strict=True) if w]
        assert [s.position for s in real] == list(range(start, start + global_batch))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("count", "global_batch"), [(12, 4), (13, 5), (5, 8), (1, 3)])
def test_exactly_once_per_epoch(count, global_batch, world):
    epochs: dict[int, list[int]] = {}
    position = 0
    while position < 6 * count + global_batch:
        for stream in streams(count, 0, global_batch, 2, world):
            for batch in stream.read(position):
                for slot, weight in zip(batch.slots, batch.weights, strict=True):
                    if weight:
                        epochs.setdefault(slot.epoch, []).append(slot.index)
        position += global_batch
    for epoch in range(6):
        assert sorted(epochs[epoch]) == list(range(count))
    if count > 5:
        assert len({tuple(epochs[e]) for e in range(6)}) == 6


@settings(max_examples=100, deadline=None)
@given(**sizes, world=st.sampled_from([1, 2, 3, 4, 8]))
def test_dealing_by_length_changes_only_who_computes_what(count, seed, global_batch, micro_batch, start, world):
    numbers, global_batch = Numbers(count), max(global_batch, world)
    shape = {"seed": seed, "global_batch": global_batch, "micro_batch": micro_batch, "world": world}
    ranks = [Stream(numbers, rank=rank, options=StreamOptions(by_length=True), **shape) for rank in range(world)]
    plans = [stream.plan(start) for stream in ranks]
    parts = sorted((slot for plan in plans for cut in plan for slot in cut), key=lambda slot: slot.position)
    assert parts == ranks[0].global_slots(start)
    assert {len(plan) for plan in plans} == {ranks[0].micro_batches}
    shares = [sum(map(len, plan)) for plan in plans]
    assert max(shares) - min(shares) <= 1
    assert min(shares) >= 1
    assert max(len(cut) for plan in plans for cut in plan) <= micro_batch


def test_dealing_by_length_evens_out_ranks_and_micro_batches():
    """64 samples on 4 ranks in micro-batches of 4: loads within a longest sample, padding less than half."""
    numbers = Numbers(500)
    lengths = sum(numbers.column(name) for name in ("text_chars", "audio_frames", "vision_frames"))
    loads: dict[bool, list[int]] = {}
    padding: dict[bool, int] = {}
    for by_length in (False, True):
        loads[by_length], padding[by_length] = [], 0
        for rank in range(4):
            shape = {"seed": 0, "global_batch": 64, "micro_batch": 4, "rank": rank, "world": 4}
            cuts = [
                [int(lengths[slot.index]) for slot in cut]
                for cut in Stream(numbers, options=StreamOptions(by_length=by_length), **shape).plan(0)
            ]
            loads[by_length].append(sum(map(sum, cuts)))
            padding[by_length] += sum(max(cut) * len(cut) - sum(cut) for cut in cuts)
    assert max(loads[True]) - min(loads[True]) <= int(lengths.max())
    assert max(loads[True]) - min(loads[True]) < max(loads[False]) - min(loads[False])
    assert padding[True] < padding[False] / 2


def test_dealing_goes_to_and_fro():
    """Always in one direction, the first rank would get the longer one of every round."""
    slots = [Slot(i, 0, i) for i in range(8)]
    lengths = np.array([80, 70, 60, 50, 40, 30, 20, 10])
    parts = [[slot.index for slot in partition_by_length(slots, lengths, rank, 2)] for rank in (0, 1)]
    assert parts == [[0, 3, 4, 7], [1, 2, 5, 6]]
    assert [int(lengths[part].sum()) for part in parts] == [180, 180]


def test_a_mixture_of_folders(folder, sample):
    """Three to one, although the first folder holds six times as many samples."""
    first = folder("first")
    few = [sample(i, id=f"few-{i}", dataset="few", split="train") for i in range(3)]
    second = folder("second", few, dataset="few")
    shards = ShardSet.open([first, second], "train")
    stream = Stream(shards, seed=0, global_batch=100, micro_batch=100, rank=0, world=1, options=StreamOptions([3, 1]))
    samples = [s for p in range(0, 1000, 100) for batch in stream.read(p) for s in batch.samples]
    assert [sum(s.dataset == name for s in samples) for name in ("toy", "few")] == [750, 250]
    with pytest.raises(ShardError, match="1 weights for 2 folders"):
        Stream(shards, seed=0, global_batch=4, micro_batch=4, rank=0, world=1, options=StreamOptions([1.0]))


@settings(max_examples=150, deadline=None)
@given(**sizes, world=st.sampled_from([1, 2, 3]))
def test_a_cut_by_sizes_keeps_the_samples_and_the_number_of_micro_batches(
    count, seed, global_batch, micro_batch, start, world
):
    """Whatever the sizes; a micro-batch that gets nothing holds the first sample with weight 0."""
    for stream in streams(count, seed, global_batch, micro_batch, world):
        plain = stream.read(start)
        cut = stream.read(start, lambda sample: 1 + sample**3 % 101)
        assert len(cut) == len(plain)
        real = [[(s, w) for m in part for s, w in zip(m.slots, m.weights, strict=True) if w] for part in (plain, cut)]
        assert real[0] == real[1]
        for m in cut:
            assert m.weights == [1.0] * len(m.samples) or (m.weights == [0.0] and m.samples == cut[0].samples[:1])
            assert [slot.index for slot in m.slots] == m.samples


def test_a_cut_by_sizes_is_even():
    stream = streams(64, 0, 64, 16, 1)[0]
    size = [1 + (i * 37) % 50 for i in range(64)]
    found = [sum(size[i] for i in m.samples) for m in stream.read(0, lambda sample: size[sample])]
    assert max(found) - min(found) <= max(size)
    plain = [sum(size[i] for i in m.samples) for m in stream.read(0)]
    assert max(plain) - min(plain) > max(found) - min(found)


def test_the_position_is_the_whole_state(folder, equal):
    """A stream opened anew, or pickled, goes on where another stopped; global batch 7 on 2 ranks: 4 + 3."""
    out = folder()

    def ids(position: int, world: int, rank: int, stream: Stream | None = None) -> list[str]:
        shards = ShardSet.open([out], "train")
        stream = stream or Stream(shards, seed=1, global_batch=7, micro_batch=2, rank=rank, world=world)
        return [s.id for b in stream.read(position) for s, w in zip(b.samples, b.weights, strict=True) if w]

    one = [ids(p, 1, 0) for p in range(0, 70, 7)]
    two = [ids(p, 2, 0) + ids(p, 2, 1) for p in range(0, 70, 7)]
    assert one == two
    assert len({i for batch in one for i in batch}) == 18
    used = Stream(ShardSet.open([out], "train"), seed=1, global_batch=7, micro_batch=2, rank=0, world=1)
    used.read(0)
    assert ids(35, 1, 0, pickle.loads(pickle.dumps(used))) == one[5]


@settings(max_examples=150, deadline=None)
@given(count=st.integers(0, 40), world=st.integers(1, 6), batch=st.integers(1, 7))
def test_an_evaluation_counts_nothing_twice(count, world, batch):
    plans = [sequential(count, rank, world, batch) for rank in range(world)]
    assert len({len(plan) for plan in plans}) == 1
    real = [i for plan in plans for b in plan for i, w in zip(b.indices, b.weights, strict=True) if w]
    assert real == list(range(count))
    for plan in plans:
        for b in plan:
            assert 1 <= len(b.indices) == len(b.weights) <= batch
            assert all(0 <= i < count for i in b.indices)


def test_refusals():
    with pytest.raises(ShardError, match="the global batch is 2 for 3 ranks"):
        streams(10, 0, 2, 1, 3)
    with pytest.raises(ShardError, match="the micro-batch is 0"):
        streams(10, 0, 2, 0, 1)
    with pytest.raises(ShardError, match="rank is 2 of 2"):
        partition(5, 2, 2)
    with pytest.raises(ShardError, match="the batch is 0"):
        sequential(5, 0, 1, 0)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_rank_scores_batches_of_the_same_sizes(world):
    """Whoever cuts a batch further makes as many pieces on every rank: else they wait for each other for ever."""
    for count in range(1, 40):
        for batch in (1, 2, 3, 7):
            ranks = [sequential(count, rank, world, batch) for rank in range(world)]
            assert len({tuple(len(b.indices) for b in plan) for plan in ranks}) == 1
            pairs = [(i, w) for plan in ranks for b in plan for i, w in zip(b.indices, b.weights, strict=True)]
            assert sorted(i for i, w in pairs if w) == list(range(count))
