"""A mapped index says what a held one said, of the same samples in the same order; what follows from it is kept."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from indexes import epochs_of, new_stream

from egmf_shards import Mixture, Order, Permutation, ShardError, ShardSet
from egmf_shards.format import arrays, index_checks
from egmf_shards.format.arrays import Archive, Pieces, write_arrays
from egmf_shards.format.index import load_index
from egmf_shards.order import dialogues
from egmf_shards.order.dialogues import DialogueOrder
from egmf_shards.read import columns

SPLITS = ("train", "valid", "test", "unlabelled")


class Flat:
    """The columns of a split over several folders as they were held once: taken, concatenated, counted on."""

    def __init__(self, folders: list[Path], split: str) -> None:
        parts: dict[str, list[np.ndarray]] = {}
        self.counts, first = [], 0
        for folder in folders:
            with np.load(folder / "index.npz") as stored:
                found = dict(stored)
            rows = np.flatnonzero(found["split"] == SPLITS.index(split))
            own = np.where(found["dialogue"] < 0, -1, found["dialogue"] + first)[rows]
            first = max(first, int(own.max()) + 1)
            names = ("key", "text_chars", "audio_frames", "vision_frames", "target")
            for name, column in {"dialogue": own, **{name: found[name][rows] for name in names}}.items():
                parts.setdefault(name, []).append(column)
            self.counts.append(len(rows))
        self.columns = {name: np.concatenate(own) for name, own in parts.items()}

    def lengths(self) -> np.ndarray:
        return sum(self.columns[name].astype(np.int64) for name in ("text_chars", "audio_frames", "vision_frames"))


def held_dialogue_order(numbers: np.ndarray, name: str, epochs: range, seed: int = 3) -> list[int]:
    """Epochs as they were once computed, with everything held: dialogues sorted, and the order of the epoch's."""
    alone = np.where(numbers < 0, numbers.max() + 1 + np.arange(len(numbers)), numbers)
    samples = np.argsort(alone, kind="stable")
    starts = np.flatnonzero(np.diff(alone[samples], prepend=-1))
    pieces = np.split(samples, starts[1:])
    found: list[int] = []
    for epoch in epochs:
        order = Permutation(len(starts), seed, "dialogues", epoch, name)(np.arange(len(starts)))
        found += np.concatenate([pieces[d] for d in order]).tolist()
    return found


class HeldDialogues(Order):
    """The same as an order."""

    def __init__(self, numbers: np.ndarray, name: str) -> None:
        super().__init__(len(numbers), 3, name)
        self.numbers = numbers

    def _of_epoch(self, epoch: int, places: np.ndarray) -> np.ndarray:
        return np.array(held_dialogue_order(self.numbers, self.index_hash, range(epoch, epoch + 1)))[places]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("order", [[0], [1], [0, 1], [1, 0]], ids=str)
def test_columns_are_those_that_were_held(folders, keeping, order, split):
    chosen = [folders[i] for i in order]
    shards, flat = ShardSet.open(chosen, split), Flat(chosen, split)
    assert shards.counts == flat.counts
    assert [shards.key(i) for i in range(len(shards))] == flat.columns["key"].tolist()
    assert shards.find(set(flat.columns["key"][[1, -1]].tolist())) == [1, len(shards) - 1]
    for name in shards.columns:
        assert np.array_equal(shards.column(name), flat.columns[name])
        some = np.random.default_rng(0).integers(0, len(shards), 50)
        assert np.array_equal(shards.column(name)[some], flat.columns[name][some])
    assert np.array_equal(shards.dialogues, flat.columns["dialogue"])
    assert np.array_equal(shards.without_target, np.flatnonzero(flat.columns["target"] == 0))
    assert [sample.id for sample in shards] == flat.columns["key"].tolist()
    some = np.random.default_rng(1).permutation(len(shards))[:9]
    assert [sample.id for sample in shards.read(some).samples] == flat.columns["key"][some].tolist()
    with pytest.raises(IndexError, match=f"of {len(shards)}"):
        shards.column("text_chars")[np.array([len(shards)])]


@pytest.mark.parametrize("order", [[0], [1], [0, 1], [1, 0]], ids=str)
def test_the_order_is_the_one_of_a_held_index(folders, keeping, order):
    """For each way of shuffling, mixtures and grouping by length among them, and in a process that reads ahead."""
    chosen = [folders[i] for i in order]
    shards, flat = ShardSet.open(chosen, "train"), Flat(chosen, "train")
    n, whole = len(shards), flat.columns["dialogue"]
    plain = Order(n, 3, shards.index_hash).indices(0, 3 * n).tolist()
    assert epochs_of(new_stream(shards), n, 3) == plain
    blocks = Order(n, 3, shards.index_hash, 4, 2).indices(0, 2 * n).tolist()
    assert epochs_of(new_stream(shards, block=4, window=2), n, 2) == blocks
    talked = held_dialogue_order(whole, shards.index_hash, range(3))
    assert epochs_of(new_stream(shards, dialogues=True), n, 3) == talked
    assert epochs_of(new_stream(shards, dialogues=True, mixed_epochs=1), n, 3) == plain[:n] + talked[n:]
    for options in ({"dialogues": True}, {}, {"block": 4, "window": 2}):
        weights = [1.0, 2.0][: len(order)]
        stream = new_stream(shards, weights=weights, **options)
        parts, orders = np.split(whole, np.cumsum(flat.counts)[:-1]), []
        for d, count in enumerate(flat.counts):
            name = f"{shards.index_hash} {d}"
            held = HeldDialogues(parts[d], name) if "dialogues" in options else Order(count, 3, name, **options)
            orders.append(held)
        mixed = Mixture(orders, weights, 3, shards.index_hash).at(np.arange(4 * n))[0].tolist()
        assert epochs_of(stream, n, 4) == mixed
    lengths = flat.lengths()
    for rank in range(3):
        stream = new_stream(shards, rank, 3, by_length=True, dialogues=True)
        sent = pickle.loads(pickle.dumps(stream))
        for position in range(0, 2 * n, 7):
            slots = sorted(stream.global_slots(position), key=lambda slot: (-int(lengths[slot.index]), slot.position))
            rounds = [slots[i : i + 3] for i in range(0, 7, 3)]
            dealt = [taken[::-1] if i % 2 and len(taken) == 3 else taken for i, taken in enumerate(rounds)]
            own = [taken[rank] for taken in dealt if rank < len(taken)]
            assert [slot for cut in stream.plan(position) for slot in cut] == own
            assert sent.plan(position) == stream.plan(position)


@pytest.mark.parametrize("block", [1, 3, 4096])
def test_dialogues_of_any_number_however_many_are_added_up_at_once(monkeypatch, block):
    monkeypatch.setattr(dialogues, "_BLOCK", block)
    monkeypatch.setattr(dialogues, "_BLOCKS_AT_HAND", 2)
    rng = np.random.default_rng(5)
    for seed in range(20):
        numbers = rng.choice([-1, 0, 7, 2**31 - 1, *range(20, 40)], rng.integers(1, 120)).astype(np.int32)
        order = DialogueOrder(numbers, seed, "x")
        wanted = held_dialogue_order(numbers.astype(np.int64), "x", range(2), seed)
        places = rng.permutation(len(wanted))
        assert order.at(places)[0].tolist() == np.array(wanted)[places].tolist()
    with pytest.raises(ShardError, match="dialogue number 4294967295"):
        DialogueOrder(np.array([2**32 - 1]), 0, "x")


def test_nothing_that_grows_with_the_samples_is_held_or_sent(folders):
    shards = ShardSet.open(folders[:1], "train")
    found = shards.table.columns.parts[0].index
    assert not found.key.flags.writeable
    assert not found.member_offset.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        found.member_offset[:] = 0
    for column in (shards.column("text_chars"), shards.dialogues):
        assert len(pickle.dumps(column)) < 4000
    few, many = len(pickle.dumps(new_stream(shards))), (folders[0] / "index.npz").stat().st_size
    assert few < many / 2


def mapped_bytes(path: Path) -> int:
    """Of the file's pages those that count as this process's memory."""
    resident, own = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split(" ")[0] and not line.split(" ")[0].endswith(":"):
            own = line.endswith(f" {path}")
        elif own and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    return resident


@pytest.mark.parametrize("large", [True, False])
def test_of_a_large_index_pages_are_let_go_of_now_and_then(tmp_path, folder, sample, monkeypatch, large):
    out = folder("many", [sample(i, features={}, modalities=("text",), split="train") for i in range(400)])
    monkeypatch.setattr(columns, "LET_GO_BYTES", 0 if large else 1 << 30)
    monkeypatch.setattr(columns, "LET_GO_SAMPLES", 64)
    shards = ShardSet.open([out], "train")
    some = np.arange(0, 400, 25)
    first = shards.column("text_chars")[some]
    seen = []
    for _ in range(6):
        assert np.array_equal(shards.column("text_chars")[some], first)
        seen.append(mapped_bytes(out / "index.npz"))
    assert min(seen) > 0
    before = mapped_bytes(out / "index.npz")
    shards.table.columns.find(np.arange(64))
    assert (mapped_bytes(out / "index.npz") < before) is large


def test_an_index_that_was_replaced_is_not_taken_for_the_one_that_is_mapped(folders):
    whole, apart = folders
    shards = ShardSet.open([whole], "train")
    keys, sent = [shards.key(i) for i in range(len(shards))], pickle.dumps(shards)
    shutil.copy(apart / "index.npz", whole / "new.npz")
    os.replace(whole / "new.npz", whole / "index.npz")
    assert [shards.key(i) for i in range(len(shards))] == keys, "who has it mapped keeps it"
    with pytest.raises(ShardError, match=r"index\.npz: another index was put in its place while it was in use"):
        pickle.loads(sent)


def test_keys_whose_hashes_collide_are_compared(folders, monkeypatch):
    monkeypatch.setattr(index_checks, "_hashes", lambda keys, salt: np.zeros(len(keys), np.uint64))
    monkeypatch.setattr(arrays, "PIECE", 5)
    assert len(load_index(folders[0])) == 41
    with np.load(folders[0] / "index.npz") as stored:
        found = dict(stored)
    found["key"][30] = found["key"][2]
    write_arrays(folders[0] / "index.npz", found)
    with pytest.raises(ShardError, match="a key occurs twice"):
        load_index(folders[0])


def test_arrays_are_written_as_numpy_writes_them(tmp_path):
    many = {"version": np.int64(2) * np.ones((), np.int64), "key": np.array(["a", "bcd"]), "none": np.zeros(0, "<u4"),
            "numbers": np.arange(20, dtype="<i4")}  # fmt: skip
    np.savez(tmp_path / "numpy.npz", **many)
    parts = (many["numbers"][first : first + 7] for first in range(0, 20, 7))
    write_arrays(tmp_path / "ours.npz", many | {"numbers": Pieces("<i4", 20, parts)})
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()
    with Archive(tmp_path / "ours.npz") as file:
        for name, array in many.items():
            assert np.array_equal(file.array(name), array)
            assert file.array(name).dtype == array.dtype
        file.check()


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    write_arrays(tmp_path / "x.npz", {"a": np.arange(3)})

    def broken():
        yield np.arange(2)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_arrays(tmp_path / "x.npz", {"a": Pieces("<i8", 4, broken())})
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["x.npz"]
    with np.load(tmp_path / "x.npz") as stored:
        assert stored["a"].tolist() == [0, 1, 2]


def test_feature_lengths_that_members_cannot_hold_are_named_in_any_split(folders, keeping):
    """What the members' bytes could hold is known of the whole index; the sample is looked for when one cannot."""
    with np.load(folders[1] / "index.npz") as stored:
        found = dict(stored)
    row = np.flatnonzero(found["split"] == SPLITS.index("valid"))[3]
    found["vision_frames"][row] = 2**31 - 1
    write_arrays(folders[1] / "index.npz", found)
    manifest = json.loads((folders[1] / "manifest.json").read_text(encoding="utf-8"))
    text = json.dumps(manifest | {"index": load_index(folders[1]).content_hash})
    (folders[1] / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(ShardError, match=f"sample '{found['key'][row]}': the index counts 2147483647 vision frames"):
        ShardSet.open([folders[1]], "valid")
    assert len(ShardSet.open([folders[1]], "train"))
