"""CMU-MultimodalSDK's ``.csd`` files, made here as the SDK writes them: what becomes of each part, and of bad files."""

from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egmf_shards import Sample, ShardError, ShardSet
from egmf_shards.format.manifest import dims_of
from egmf_shards.importers.csd import import_csd, overlapping

h5py = pytest.importorskip("h5py", reason="h5py is not installed; it is the extra 'csd'")

NAMES = {
    "labels": ("CMU_MOSEI_Labels.csd", "All Labels"),
    "words": ("CMU_MOSEI_TimestampedWords.csd", "words"),
    "audio": ("CMU_MOSEI_COVAREP.csd", "COVAREP"),
    "vision": ("CMU_MOSEI_VisualFacet42.csd", "FACET 4.2"),
}
SPLIT = {"train": ["-NFrJFQijFE", "b_c"], "valid": ["zv0Jl4TIQDc"], "test": ["03bSnISJMiM"]}
VIDEOS = [video for videos in SPLIT.values() for video in videos]
Sequence = dict[str, tuple[np.ndarray, np.ndarray]]


def write_csd(path: Path, name: str, data: Sequence, **options: Any) -> None:
    """As the SDK's ``write_CSD``: gzip, one JSON string for each piece of metadata."""
    options = {"compression": "gzip", "compression_opts": 9} | options
    with h5py.File(path, "w") as file:
        root = file.create_group(name)
        group = root.create_group("data")
        for key, (features, intervals) in data.items():
            one = group.create_group(key)
            one.create_dataset("features", data=features, **options)
            one.create_dataset(
                "intervals", data=intervals, **({"compression": "gzip", "compression_opts": 9} | options)
            )
        metadata = root.create_group("metadata")
        for key, value in {"root name": name, "md5": None, "dataset name": "CMU-MOSEI"}.items():
            metadata.create_dataset(key, (1,), dtype=h5py.special_dtype(vlen=str))[0] = json.dumps(value)


def sequences(seconds: float = 30.0) -> dict[str, Sequence]:
    """Four videos: words, COVAREP at 100 Hz, FACET at 30 Hz; segments overlap and stand in no order, as MOSEI's do."""
    data: dict[str, Sequence] = {role: {} for role in NAMES}
    for number, video in enumerate(VIDEOS):
        rng = np.random.default_rng(number)
        spans = np.array([[8.02, 14.72], [-0.48, 4.1], [3.37, 9.02], [20.0, 29.5]])
        labels = np.concatenate([rng.integers(-9, 10, (4, 1)) / 3, rng.uniform(0, 3, (4, 6))], axis=1)
        data["labels"][video] = labels.astype(np.float32), spans
        times = np.arange(0, seconds, 0.5)
        words = [[b"sp" if i % 3 == 2 else f"word{i}".encode()] for i in range(len(times))]
        data["words"][video] = np.array(words, dtype="S32"), np.stack([times, times + 0.5], axis=1)
        for role, rate, dim in (("audio", 100, 74), ("vision", 30, 35)):
            times = np.arange(int(seconds * rate)) / rate
            features = rng.uniform(0.5, 2, (len(times), dim)).astype(np.float32)
            data[role][video] = features, np.stack([times, times + 1 / rate], axis=1)
    return data


def write_all(folder: Path, data: dict[str, Sequence], split: Any = SPLIT, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for role, sequence in data.items():
        write_csd(folder / NAMES[role][0], NAMES[role][1], sequence, **options)
    (folder / "split.json").write_text(json.dumps(split), encoding="utf-8")
    return folder / "split.json"


def by_id(out: Path) -> dict[str, Sample]:
    splits = [split for split in ("train", "valid", "test") if list(out.glob(f"{split}-*.tar"))]
    return {s.id: s for split in splits for s in ShardSet.open([out], split)}


def overlap(intervals: np.ndarray, start: float, end: float) -> list[int]:
    return [i for i, (a, b) in enumerate(intervals) if min(b, end) - max(a, start) > 1e-5]


def test_segments_become_samples(tmp_path):
    data = sequences()
    split = write_all(tmp_path / "in", data)
    manifest = import_csd(tmp_path / "in", tmp_path / "out", "mosei", split)
    samples = by_id(tmp_path / "out")
    assert len(samples) == 16
    for name, videos in SPLIT.items():
        for video in videos:
            labels, spans = data["labels"][video]
            for number, (start, end) in enumerate(spans):
                sample = samples[f"mosei-{video}-{number}"]
                assert (sample.split, sample.language, sample.dialogue) == (name, "en", f"mosei-{video}")
                assert sample.turn == [2, 0, 1, 3][number], "the order of time, not that of the file"
                assert sample.value == pytest.approx(float(labels[number, 0]))
                words, intervals = data["words"][video]
                spoken = [words[i, 0].decode() for i in overlap(intervals, start, end)]
                assert sample.text == " ".join(word for word in spoken if word != "sp")
                for role in ("audio", "vision"):
                    features, intervals = data[role][video]
                    np.testing.assert_array_equal(sample.features[role], features[overlap(intervals, start, end)])
    assert "word7" in samples["mosei-b_c-1"].text and "word7" in samples["mosei-b_c-2"].text, "segments overlap"  # noqa: PT018
    assert manifest["tasks"][0]["step"] == pytest.approx(1 / 3)
    assert [file["file"] for file in manifest["source"]["files"]] == [*(n for n, _ in NAMES.values()), "split.json"]
    assert manifest["source"]["features"]["audio"]["frames_kept"] == sum(
        len(s.features["audio"]) for s in samples.values()
    )
    assert dims_of(manifest) == {"audio": 74, "vision": 35}


def test_files_that_the_sdk_aligned_give_the_same_samples(tmp_path):
    data = sequences()
    split = write_all(tmp_path / "in", data)
    import_csd(tmp_path / "in", tmp_path / "whole", "mosei", split)
    aligned: dict[str, Sequence] = {role: {} for role in NAMES}
    for video in VIDEOS:
        for number, (start, end) in enumerate(data["labels"][video][1]):
            for role in NAMES:
                features, intervals = data[role][video]
                rows = [number] if role == "labels" else overlap(intervals, start, end)
                clipped = np.clip(intervals[rows], start, end)  # as the SDK cuts them
                aligned[role][f"{video}[{number}]"] = features[rows], clipped
    import_csd(tmp_path / "in", tmp_path / "aligned", "mosei", write_all(tmp_path / "in", aligned))
    whole, cut = by_id(tmp_path / "whole"), by_id(tmp_path / "aligned")
    assert whole.keys() == cut.keys()
    for key, sample in whole.items():
        assert sample.to_json() == cut[key].to_json()
        np.testing.assert_array_equal(sample.features["audio"], cut[key].features["audio"])


def test_what_is_left_out_and_repaired_is_counted(tmp_path):
    data = sequences()
    first, second = VIDEOS[0], VIDEOS[1]
    data["labels"][first][1][3] = [21.0, 21.0]
    data["audio"][first][0][400, 7] = -np.inf  # second 4.0: in two segments
    data["audio"][second] = data["audio"][second][0] * 0, data["audio"][second][1]
    del data["vision"][second]
    data["vision"][first][0][0, 0] = 70_000
    data["words"][first] = data["words"][first][0][:1], data["words"][first][1][:1]
    manifest = import_csd(
        tmp_path / "in", tmp_path / "out", "mosei",
        write_all(tmp_path / "in", data, {"train": [first, second, "unknown"], "test": ["zv0Jl4TIQDc"]}),
    )  # fmt: skip
    samples = by_id(tmp_path / "out")
    assert manifest["source"]["segments"] == {
        "videos_in_no_split_left_out": 1,
        "videos_of_a_split_without_labels": 1,
        "segments_without_length_left_out": 1,
    }
    assert f"mosei-{first}-3" not in samples
    assert samples[f"mosei-{first}-1"].text == "word0"
    assert samples[f"mosei-{first}-0"].modalities == ("audio", "vision")
    assert samples[f"mosei-{second}-0"].modalities == ("text",)
    audio, vision = manifest["source"]["features"]["audio"], manifest["source"]["features"]["vision"]
    assert (audio["clips_found"], audio["clips_of_zeros"], audio["clips_without_frames"]) == (7, 4, 0)
    assert (audio["numbers_not_finite_set_to_0"], audio["clips_with_non_finite_set_to_0"]) == (2, 2)
    assert (vision["clips_found"], vision["clips_without_frames"], vision["numbers_beyond_fp16"]) == (7, 4, 1)
    assert manifest["splits"]["train"]["missing"] == {"text": 2, "audio": 4, "vision": 4}


def test_rows_in_no_order_are_put_in_the_order_of_time():
    intervals = np.array([[2.0, 3.0], [0.0, 1.0], [1.0, 2.0], [3.0, 4.0], [0.999995, 1.0]])
    assert overlapping(intervals, np.array([0.5, 3.0])).tolist() == [1, 2, 0]


def test_only_labels_and_words(tmp_path):
    data = sequences()
    split = write_all(tmp_path / "in", {role: data[role] for role in ("labels", "words")})
    manifest = import_csd(tmp_path / "in", tmp_path / "out", "mosei", split)
    assert dims_of(manifest) == {"audio": 0, "vision": 0}
    assert manifest["source"]["features"] == {}


def test_files_by_name(tmp_path):
    data = sequences()
    split = write_all(tmp_path / "in", data)
    write_csd(tmp_path / "in" / "CMU_MOSEI_VisualOpenFace2.csd", "OpenFace_2", data["audio"])
    with pytest.raises(
        ShardError, match=r"VisualFacet42.csd, CMU_MOSEI_VisualOpenFace2.csd may all be the vision; name"
    ):
        import_csd(tmp_path / "in", tmp_path / "out", "mosei", split)
    manifest = import_csd(tmp_path / "in", tmp_path / "out", "mosei", split, vision="CMU_MOSEI_VisualOpenFace2.csd")
    assert dims_of(manifest)["vision"] == 74
    with pytest.raises(ShardError, match=r"x\.csd: there is no such \.csd file for the audio"):
        import_csd(tmp_path / "in", tmp_path / "x", "mosei", split, vision="x", audio="x.csd")


def test_memory_is_bounded_by_a_video_not_by_the_file(tmp_path):
    data = sequences(60)
    base = data["audio"]
    videos = [f"video{i}" for i in range(24)]
    for role in NAMES:
        data[role] = {video: data[role][VIDEOS[i % 4]] for i, video in enumerate(videos)}
    split = write_all(tmp_path / "in", data, {"train": videos}, compression_opts=1)
    one = base[VIDEOS[0]][0].nbytes
    total = len(videos) * one
    del data
    tracemalloc.start()
    try:
        import_csd(tmp_path / "in", tmp_path / "out", "mosei", split)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * one + 6e6 < total / 2


def bad_file(folder: Path, case: str) -> None:
    labels, words, audio = (folder / NAMES[role][0] for role in ("labels", "words", "audio"))
    first = VIDEOS[0]
    if case == "no hdf5":
        audio.write_bytes(b"nothing of the kind")
        return
    if case == "truncated":
        audio.write_bytes(audio.read_bytes()[: audio.stat().st_size // 2])
        return
    if case == "no labels":
        labels.unlink()
        return
    target = {"label": labels, "labels": labels, "words": words}.get(case.split()[0], audio)
    with h5py.File(target, "r+") as file:
        root = next(iter(file.values()))
        one = root["data"][first]
        if case == "two groups":
            file.create_group("more")
        elif case == "no data":
            del root["data"]
        elif case == "soft link":
            del root["data"][first]
            root["data"][first] = h5py.SoftLink("/elsewhere")
        elif case == "external link":
            del one["features"]
            one["features"] = h5py.ExternalLink("/etc/hostname", "/x")
        elif case == "external storage":
            del one["features"]
            one.create_dataset("features", (3000, 74), "f4", external=[(str(folder / "other"), 0, h5py.h5f.UNLIMITED)])
        elif case == "virtual":
            del one["features"]
            layout = h5py.VirtualLayout((3000, 74), "f4")
            layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", (3000, 74))
            one.create_virtual_dataset("features", layout)
        elif case == "no intervals":
            del one["intervals"]
        elif case == "fewer intervals":
            del one["intervals"]
            one["intervals"] = np.zeros((5, 2))
        elif case == "a group for features":
            del one["features"]
            one.create_group("features")
        elif case == "bomb":
            del one["features"]
            one.create_dataset("features", (10**9, 74), "f4", chunks=(1000, 74), compression="gzip")
        elif case == "text for numbers":
            del one["features"]
            one["features"] = np.full((3000, 74), b"x", dtype="S1")
        elif case == "label out of range":
            one["features"][1, 0] = 3.5
        elif case == "labels are text":
            del one["features"]
            one["features"] = np.full((4, 7), b"x", dtype="S1")
        elif case == "words are numbers":
            del one["features"]
            one["features"] = np.zeros((60, 1))
        elif case == "labels of an endless segment":
            root["data"].move(first, f"{first}[{'9' * 5000}]")


@pytest.mark.parametrize(
    ("case", "reason"),
    {
        "no hdf5": "COVAREP.csd: not a readable HDF5 file",
        "truncated": "COVAREP.csd: not a readable HDF5 file",
        "no labels": "holds no .csd of labels; it holds CMU_MOSEI_COVAREP.csd",
        "two groups": "holds 2 groups; one computational sequence is needed",
        "no data": "'data': is not there",
        "soft link": "'-NFrJFQijFE': a link to elsewhere",
        "external link": "'features': a link to elsewhere",
        "external storage": "features lie in another file",
        "virtual": "features lie in another file",
        "no intervals": "'intervals': is not there",
        "fewer intervals": r"features are float32 \[3000, 74\], intervals float64 \[5, 2\]",
        "a group for features": "'features': is a group; a dataset is needed",
        "bomb": "features declare more than 1024 MiB",
        "text for numbers": r"features are \|S1; numbers are needed",
        "label out of range": "'-NFrJFQijFE', segment 1: value 3.5 is outside the range",
        "labels are text": r"segment 0: labels are \|S1 \[4, 7\]",
        "words are numbers": "holds float; words are needed",
        "labels of an endless segment": "a segment's number has at most 9 digits",
    }.items(),
)
def test_bad_files(case, reason, tmp_path):
    split = write_all(tmp_path / "in", sequences())
    bad_file(tmp_path / "in", case)
    with pytest.raises(ShardError, match=reason) as caught:
        import_csd(tmp_path / "in", tmp_path / "out", "mosei", split)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("split", "reason"),
    [
        ([1], "is needed"),
        ({"train": ["a"], "dev": ["b"]}, "is needed"),
        ({"train": "abc"}, "train is not a list of video ids"),
        ({"train": ["a"], "test": ["b", "a"]}, "video 'a' is in train and test"),
        ({"train": ["unknown"]}, "no sample was written"),
    ],
)
def test_bad_split_files(split, reason, tmp_path):
    path = write_all(tmp_path / "in", sequences(), split)
    with pytest.raises(ShardError, match=reason):
        import_csd(tmp_path / "in", tmp_path / "out", "mosei", path)
    path.unlink()
    with pytest.raises(ShardError, match=r"split\.json: there is no such file"):
        import_csd(tmp_path / "in", tmp_path / "out", "mosei", path)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_without_h5py(tmp_path, monkeypatch):
    split = write_all(tmp_path / "in", sequences())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ShardError, match=r"needs h5py; install it with `pip install 'egmf-dist\[csd\]'`"):
        import_csd(tmp_path / "in", tmp_path / "out", "mosei", split)
