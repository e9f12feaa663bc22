"""The same global batches for any number of ranks and loader processes, and after a stop at any position."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egmf_dist.config import DataConfig
from egmf_dist.data.loader import load, micro_batches_of
from egmf_dist.errors import EgmfError, MachineError
from egmf_shards import ShardError, Stream, StreamOptions
from egmf_shards.errors import UnreachableError

WORLDS = (1, 2, 3, 4, 8)


class Numbers:
    """Stands in for a shard set of several folders whose samples are numbers; ``broken`` cannot be read."""

    def __init__(self, counts: list[int], broken: frozenset[int] = frozenset()) -> None:
        self.counts, self.broken = counts, broken
        self.index_hash = f"numbers {counts}"

    def __len__(self) -> int:
        return sum(self.counts)

    def read(self, indices: list[int], tolerate: bool) -> SimpleNamespace:
        bad = [
            SimpleNamespace(place=b, key=str(i), reason=f"shard 7: sample {i}")
            for b, i in enumerate(indices)
            if i in self.broken
        ]
        if bad and not tolerate:
            raise ShardError(bad[0].reason)
        return SimpleNamespace(samples=list(indices), bad=bad)

    columns = ("text_chars", "audio_frames", "vision_frames")

    def column(self, name: str) -> np.ndarray:
        salt = {"text_chars": 1, "audio_frames": 2, "vision_frames": 3}[name]
        return np.array([(i * 7919 * salt) % 97 for i in range(len(self))], dtype=np.int32)


def collate(samples: list[int], weights: list[float]) -> SimpleNamespace:
    """Stands in for the collator."""
    return SimpleNamespace(samples=torch.tensor(samples), weights=torch.tensor(weights))


def global_batch(per_rank: list) -> list[tuple[int, int, int]]:
    """(position, epoch, sample) of a global batch's real entries, by position."""
    real = []
    for step in per_rank:
        for batch, slots in zip(step.batches, step.slots, strict=True):
            for sample, weight, slot in zip(batch.samples.tolist(), batch.weights.tolist(), slots, strict=True):
                assert sample == slot.index
                if weight:
                    real.append((slot.position, slot.epoch, slot.index))
    return sorted(real)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
    size=st.integers(8, 24),
    micro_batch=st.integers(1, 9),
    block=st.sampled_from([0, 1, 3, 8]),
    weighted=st.booleans(),
    by_length=st.booleans(),
    cuts=st.lists(st.tuples(st.integers(1, 3), st.sampled_from(WORLDS), st.integers(0, 2)), min_size=1, max_size=3),
)
def test_worlds_workers_and_stops_change_nothing(counts, seed, size, micro_batch, block, weighted, by_length, cuts):
    """Each cut is a start that goes on where the one before it stopped, with other ranks and loader processes."""
    numbers = Numbers(counts)
    shape = {"seed": seed, "global_batch": size, "micro_batch": micro_batch}
    weights = [1.0 + d for d in range(len(counts))] if weighted else []
    shape["options"] = StreamOptions(weights, block, window=2, by_length=by_length)
    reference = Stream(numbers, rank=0, world=1, **shape)
    position = 0
    for steps, world, workers in cuts:
        positions = range(position, position + steps * size, size)
        streams = [Stream(numbers, rank=rank, world=world, **shape) for rank in range(world)]
        config = DataConfig(workers=workers, prefetch=1 + workers)
        # Loader processes on the first and the last rank: eight ranks of two would only be slow.
        loaders = [
            load(stream, collate, positions, config if rank in (0, world - 1) else DataConfig())
            for rank, stream in enumerate(streams)
        ]
        for start, *per_rank in zip(positions, *loaders, strict=True):
            found = global_batch(per_rank)
            assert found == [(s.position, s.epoch, s.index) for s in reference.global_slots(start)]
            assert len({len(step.batches) for step in per_rank}) == 1
            shares = [sum(float(b.weights.sum()) for b in step.batches) for step in per_rank]
            assert max(shares) - min(shares) <= 1
        position = positions.stop


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_broken_sample_is_one_line_from_any_process(workers):
    numbers = Numbers([50], broken=frozenset({7}))
    arguments = {"seed": 0, "global_batch": 10, "micro_batch": 5, "rank": 0, "world": 1}
    with pytest.raises(EgmfError) as caught:
        list(load(Stream(numbers, **arguments), collate, range(0, 50, 10), DataConfig(workers=workers)))
    assert str(caught.value) == "shard 7: sample 7"
    steps = list(
        load(
            Stream(numbers, options=StreamOptions(tolerate=True), **arguments),
            collate,
            range(0, 50, 10),
            DataConfig(workers=workers),
        )
    )
    assert [bad.key for step in steps for bad in step.bad] == ["7"]
    zero = [s for step in steps for b in step.batches for s, w in zip(b.samples, b.weights, strict=True) if not w]
    assert zero == [7]
    assert sum(float(b.weights.sum()) for step in steps for b in step.batches) == 49


def test_loading_draws_nothing_from_the_global_generator():
    """Else the dropout of a resumed run would differ from the uninterrupted run's."""
    stream = Stream(Numbers([50]), seed=0, global_batch=10, micro_batch=5, rank=0, world=1)
    for workers in (0, 1):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        list(load(stream, collate, range(0, 30, 10), DataConfig(workers=workers)))
        assert torch.equal(before, torch.get_rng_state())


def die(samples: list[int], weights: list[float]) -> None:
    """A collator that ends its process, as a lack of memory would."""
    import os

    os._exit(1)


class GoneStore(Numbers):
    def read(self, indices: list[int], tolerate: bool) -> SimpleNamespace:
        raise UnreachableError("store: does not answer")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_store_that_is_gone_is_no_users_error(workers):
    """Nor is a loader process that was killed: a supervisor starts the training again."""
    stream = Stream(GoneStore([50]), seed=0, global_batch=10, micro_batch=5, rank=0, world=1)
    with pytest.raises(MachineError, match=r"^store: does not answer$"):
        list(load(stream, collate, range(0, 30, 10), DataConfig(workers=workers)))


def test_a_loader_process_that_dies_is_one_line():
    stream = Stream(Numbers([50]), seed=0, global_batch=10, micro_batch=5, rank=0, world=1)
    with pytest.raises(MachineError, match=r"data.workers: a loader process died .*data.workers 0") as caught:
        list(load(stream, die, range(0, 30, 10), DataConfig(workers=1)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("share", "wanted"), [(1.0, 7), (0.5, 4)], ids=["one a row", "packed"])
def test_as_many_micro_batches_as_the_tokens_say(share, wanted):
    """From the fullest of eight global batches, 60 samples of 10 tokens each, on two ranks of 50 tokens at once."""

    class Counting:
        packed = False

        def __call__(self, samples, weights):
            columns = int(len(samples) * 10 * (share if self.packed else 1))
            return SimpleNamespace(rows=SimpleNamespace(end_RC=torch.ones(1, columns)))

    made = [Stream(Numbers([500]), seed=0, global_batch=60, micro_batch=60, rank=rank, world=2) for rank in range(2)]
    found = [micro_batches_of(stream, Counting(), 45, packed=share < 1) for stream in made]
    assert found == [wanted, wanted]
    assert micro_batches_of(made[0], Counting(), 1, packed=False) == 30  # a sample is the least there is
    assert micro_batches_of(made[0], Counting(), 10**6, packed=False) == 1
