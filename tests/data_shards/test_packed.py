"""What the reader compares beside checksums, when index and manifest agree with a sample that is wrong all the same."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from indexes import held_index

from egmf_shards import FeatureInput, ShardError, ShardSet
from egmf_shards.format import codec
from egmf_shards.format.index import load_index, save_index

SHARD = "train-000000.tar"


@pytest.fixture
def good(folder, sample) -> Path:
    return folder(samples=[sample(i, split="train") for i in range(6)])


def replace_member(folder: Path, name: str, data: bytes) -> None:
    """Put ``data`` in the place of a member and mend index and manifest, without asking what the member means."""
    with tarfile.open(folder / SHARD) as tar:
        items = [(info, handle.read()) for info in tar if (handle := tar.extractfile(info))]
    with tarfile.open(folder / SHARD, "w") as tar:
        for info, old in items:
            payload = data if info.name == name else old
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    index = held_index(folder)
    index.shard_sizes[0] = (folder / SHARD).stat().st_size
    with tarfile.open(folder / SHARD) as tar:
        for m, info in enumerate(tar):
            handle = tar.extractfile(info)
            assert handle is not None
            index.member_offset[m], index.member_size[m] = info.offset_data, info.size
            index.member_crc[m] = codec.crc32(handle.read())
    save_index(folder, index)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"index": index.content_hash}), encoding="utf-8")


def edit(folder: Path, sample, **changes: object) -> None:
    fields = sample(1, split="train").to_json() | changes
    text = json.dumps({k: v for k, v in fields.items() if v is not None}).encode()
    replace_member(folder, "toy-1.json", text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "toy-7"}, "its JSON says id 'toy-7'"),
        ({"split": "test"}, "split 'test'"),
        ({"task": "nothing"}, "task 'nothing'"),
        ({"label": "ugly"}, "label 'ugly' is not in the label space of task 'mood'"),
        ({"label": None, "value": 0}, "task 'mood' is a classification; a label and a value exclude each other"),
        ({"task": "score"}, "task 'score' is a regression; a label and a value exclude each other"),
        ({"task": "score", "label": None, "value": 7}, r"value 7 is outside the range \[-1, 1\] of task 'score'"),
        ({"language": "xx"}, "language is 'xx'; task 'mood' knows en, zh"),
        ({"language": "zh"}, "language is 'zh'; the manifest names en"),  # the task knows it
        ({"dataset": "other"}, "data set is 'other'; this folder holds 'toy'"),
        ({"text": "  "}, "declared present"),
        ({"context": [["a", "b"]] * 13}, "13 turns of context"),
        ({"context": {"ab": 1, "cd": 2}}, "malformed"),
        ({"context": [{"a": 1, "b": 2}]}, "malformed"),
        ({"turn": -1}, "turn is -1; turns count from 0"),
    ],
)
def test_a_sample_that_contradicts_its_folder(good, sample, equal, changes, message):
    edit(good, sample, **changes)
    shards = ShardSet.open([good], "train")
    with pytest.raises(ShardError, match=message) as caught:
        shards.read(range(6))
    assert f"{SHARD}: sample 'toy-1'" in str(caught.value)
    assert "\n" not in str(caught.value)
    packed = shards.read(range(6), tolerate=True)
    assert [bad.key for bad in packed.bad] == ["toy-1"]
    assert all(equal(packed.samples[i], sample(i, split="train")) for i in (0, 2, 3, 4, 5))


def test_an_array_of_another_shape_does_not_spread_itself(good, sample):
    """One frame would otherwise be repeated over the two that the index counts."""
    replace_member(good, "toy-1.vision.npy", codec.encode_array(np.ones((1, 3), np.float32)))
    with pytest.raises(ShardError, match=r"member vision.npy: is \[1, 3\]; index and manifest say \[2, 3\]"):
        ShardSet.open([good], "train").read(range(6))


def test_other_float_types_are_read_as_float32(good, sample):
    numbers = np.arange(6, dtype=np.float16).reshape(2, 3)
    buffer = io.BytesIO()
    np.save(buffer, numbers)
    replace_member(good, "toy-1.vision.npy", buffer.getvalue())
    read = ShardSet.open([good], "train")[1].features["vision"]
    assert read.dtype == np.float32
    assert np.array_equal(read, numbers)


def test_lengths_that_the_bytes_cannot_hold_are_refused_before_memory_is_asked_for(good):
    index = held_index(good)
    index.frames["vision"][2] = 2**31 - 1
    save_index(good, index)
    manifest = json.loads((good / "manifest.json").read_text(encoding="utf-8"))
    (good / "manifest.json").write_text(json.dumps(manifest | {"index": index.content_hash}), encoding="utf-8")
    with pytest.raises(ShardError, match=r"sample 'toy-2': the index counts 2147483647 vision frames in \d+ bytes"):
        ShardSet.open([good], "train")


def test_a_bad_sample_hides_no_other_and_leaves_no_gap(good, sample, equal):
    """Sample 0 has a flipped bit, sample 3 a number that is not finite, in one batch."""
    array = sample(3).features["vision"].copy()
    array[0, 0] = np.nan
    replace_member(good, "toy-3.vision.npy", codec.encode_array(array))
    index = load_index(good)
    data = bytearray((good / SHARD).read_bytes())
    data[int(index.member_offset[0]) + int(index.member_size[0]) - 1] ^= 1
    (good / SHARD).write_bytes(data)
    packed = ShardSet.open([good], "train").read(range(6), tolerate=True)
    assert [(bad.key, bad.place) for bad in packed.bad] == [("toy-0", 0), ("toy-3", 3)]
    assert "CRC32" in packed.bad[0].reason
    assert "not finite" in packed.bad[1].reason
    whole = [sample(i, split="train") for i in (1, 2, 4, 5)]
    for modality in ("audio", "vision"):
        arrays = [s.features[modality] for s in whole if modality in s.features]
        width = FeatureInput(modality, arrays[0].shape[1])
        assert np.array_equal(packed.features[width], np.concatenate(arrays))
        assert packed.frames[width][[0, 3]].tolist() == [0, 0]
        assert int(packed.frames[width].sum()) == len(packed.features[width])
        for one in packed.samples:
            own = one.features.get(modality)
            assert own is None or np.shares_memory(own, packed.features[width])


def test_what_was_sound_once_is_still_checksummed_and_what_was_bad_stays_bad(good, sample):
    """Later reads of a sample leave out what its bytes have settled, and nothing else."""
    array = sample(3).features["vision"].copy()
    array[0, 0] = np.inf
    replace_member(good, "toy-3.vision.npy", codec.encode_array(array))
    edit(good, sample, language="xx")
    shards = ShardSet.open([good], "train")
    for _ in range(3):
        packed = shards.read(range(6), tolerate=True)
        assert [bad.key for bad in packed.bad] == ["toy-1", "toy-3"]
    assert shards.table.proven(np.arange(6)).tolist() == [True, False, True, False, True, True]
    index = load_index(good)
    place = int(index.member_offset[0]) + int(index.member_size[0]) - 1
    with (good / SHARD).open("r+b") as file:  # in place: the map sees it
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    assert [bad.key for bad in shards.read(range(6), tolerate=True).bad] == ["toy-0", "toy-1", "toy-3"]
    with pytest.raises(ShardError, match=r"toy-0.*CRC32"):
        shards.read([0])
