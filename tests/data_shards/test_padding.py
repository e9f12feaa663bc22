"""The side of the padding, found from the zeros of each modality and file, or given; contradictions are refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egmf_launcher.cli import main
from egmf_shards import Sample, ShardError, ShardSet, import_mmsa, import_mse_adapter
from egmf_shards.importers.padding import PaddingSide
from egmf_shards.importers.repairs import PaddedReport

SPLITS = ("train", "valid", "test")
LENGTHS = (2, 5, 8)
TOTAL = 8


def clip(row: int, length: int) -> np.ndarray:
    return np.random.default_rng(row).uniform(0.5, 2, (length, 3)).astype(np.float32)


def padded(row: int, length: int, side: str, dim: int = 3) -> np.ndarray:
    array = np.zeros((TOTAL, dim), np.float32)
    array[TOTAL - length if side == "front" else 0 :][:length] = clip(row, length)
    return array


def mmsa(folder: Path, arrays: list[np.ndarray], lengths: list[int] | None, **options: Any) -> dict[str, Any]:
    """Three splits of one clip each (and vision padded at the end)."""
    data = {}
    for row, split in enumerate(SPLITS):
        data[split] = {
            "id": [f"{split}$_$1"],
            "raw_text": ["x"],
            "regression_labels": [0.2],
            "audio": arrays[row][None],
        }
        data[split] |= {"vision": padded(row, 3, "end")[None], "vision_lengths": [3]}
        if lengths is not None:
            data[split]["audio_lengths"] = [lengths[row]]
    (folder / "p.pkl").write_bytes(pickle.dumps(data))
    return import_mmsa(folder / "p.pkl", folder / "out", "simsv2", **options)


def mse_adapter(folder: Path, arrays: list[np.ndarray], lengths: list[int], **options: Any) -> dict[str, Any]:
    for row, split in enumerate(SPLITS):
        features = {
            "text": "x",
            "audio": arrays[row],
            "audio_len": lengths[row],
            "video": np.ones((1, 2)),
            "video_len": 1,
        }
        (folder / f"meld_{split}.pkl").write_bytes(pickle.dumps([{"label": "joy", "features": features}] * 2))
    return import_mse_adapter(folder, folder / "out", "meld", **options)


def samples_of(out: Path) -> list[Sample]:
    return [ShardSet.open([out], split)[0] for split in SPLITS]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("side", ["front", "end"])
@pytest.mark.parametrize("importer", [mmsa, mse_adapter])
def test_real_frames_are_kept_whichever_side_is_padded(importer, side, given, tmp_path, capsys):
    arrays = [padded(row, length, side) for row, length in enumerate(LENGTHS)]
    manifest = importer(tmp_path, arrays, list(LENGTHS), padding=side if given else None)
    for row, sample in enumerate(samples_of(tmp_path / "out")):
        np.testing.assert_array_equal(sample.features["audio"], clip(row, LENGTHS[row]))
    report, sides = manifest["source"]["features"]["audio"], manifest["source"]["padding"]["audio"]
    clips = 3 if importer is mmsa else 6
    assert report["clips_found"] == clips
    assert report["padding_frames_removed"] == clips // 3 * (3 * TOTAL - sum(LENGTHS))
    assert report["clips_with_frames_outside_their_length_cut"] == 0
    if importer is mmsa:
        assert sides == {"p.pkl": f"{side} (given)" if given else f"{side} (by the zeros of 2 clips)"}
        if not given:
            assert manifest["source"]["padding"]["vision"] == {"p.pkl": "end (by the zeros of 3 clips)"}
    else:  # each file says it for itself, and the test file has no padding
        found = f"{side} (given)" if given else f"{side} (by the zeros of 2 clips)"
        assert sides == {f"meld_{split}.pkl": found for split in (SPLITS if given else SPLITS[:2])}
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("audio: ") and "padded at" in line]
    assert said == [f"audio: {file} is padded at the {what}" for file, what in sides.items()]


@pytest.mark.parametrize("side", ["front", "end"])
def test_without_lengths_the_majority_says_it(side, tmp_path):
    other = "end" if side == "front" else "front"
    arrays = [padded(0, 2, side), padded(1, 5, side), padded(2, 7, other)]
    manifest = mmsa(tmp_path, arrays, None)
    first, second, third = samples_of(tmp_path / "out")
    np.testing.assert_array_equal(first.features["audio"], clip(0, 2))
    np.testing.assert_array_equal(second.features["audio"], clip(1, 5))
    np.testing.assert_array_equal(
        third.features["audio"], arrays[2]
    )  # its zeros are a frame in which nothing was found
    assert manifest["source"]["padding"]["audio"] == {
        "p.pkl": f"{side} (by the zeros of 2 clips; 1 have theirs on the other)"
    }
    assert manifest["source"]["features"]["audio"]["clips_with_zeros_at_an_end_kept"] == 1


def test_lengths_that_contradict_the_zeros_are_refused(tmp_path):
    arrays = [padded(0, 2, "front"), padded(1, 5, "end"), padded(2, 8, "end")]
    with pytest.raises(
        ShardError, match=r"audio: by their lengths 1 clips have their zeros in front .'train, row 0'. and 1"
    ):
        mmsa(tmp_path, arrays, [2, 5, 8])
    full = [clip(row, TOTAL) for row in range(3)]
    reason = "lengths of 1 clips, the first 'valid, row 0', leave over rows that are no zeros .* decide with --padding"
    with pytest.raises(ShardError, match=reason) as caught:
        mmsa(tmp_path, full, [8, 5, 8])
    assert "\n" not in str(caught.value)
    with pytest.raises(ShardError, match=r"meld_train.pkl, audio: the lengths of 2 clips, the first 'row 0'"):
        mse_adapter(tmp_path, full, [5, 5, 5])
    assert not (tmp_path / "out").exists()


def test_a_side_that_is_given_decides_and_what_is_cut_is_counted(tmp_path):
    full = [clip(row, TOTAL) for row in range(3)]
    manifest = mmsa(tmp_path, full, [8, 5, 0], padding="front")
    first, second, third = samples_of(tmp_path / "out")
    np.testing.assert_array_equal(first.features["audio"], full[0])
    np.testing.assert_array_equal(second.features["audio"], full[1][3:])
    assert "audio" not in third.features
    report = manifest["source"]["features"]["audio"]
    assert report["clips_with_frames_outside_their_length_cut"] == 2
    assert (report["clips_without_frames"], report["clips_of_zeros"]) == (1, 0)
    with pytest.raises(ShardError, match="padding is 'left'; it must be front or end"):
        mmsa(tmp_path, full, None, padding="left")


def test_one_length_that_is_too_short_is_counted_where_others_say_the_side(tmp_path):
    arrays = [padded(0, 2, "end"), padded(1, 5, "end"), padded(2, 8, "end")]
    manifest = mmsa(tmp_path, arrays, [2, 5, 4])
    assert len(samples_of(tmp_path / "out")[2].features["audio"]) == 4
    assert manifest["source"]["features"]["audio"]["clips_with_frames_outside_their_length_cut"] == 1


def test_frames_of_zeros_inside_a_length_stay(tmp_path):
    array = padded(0, 5, "end")
    array[3:5] = 0  # no face in the last two frames
    manifest = mmsa(tmp_path, [array, padded(1, 2, "end"), padded(2, 8, "end")], [5, 2, 8])
    np.testing.assert_array_equal(samples_of(tmp_path / "out")[0].features["audio"], array[:5])
    assert manifest["source"]["features"]["audio"]["clips_with_zeros_at_an_end_kept"] == 1


def test_lengths_that_are_the_arrays_own_are_seen(tmp_path):
    """As some word-aligned files have them: nothing is cut, and the count says that there is something to cut."""
    manifest = mmsa(tmp_path, [padded(row, length, "front") for row, length in enumerate(LENGTHS)], [TOTAL] * 3)
    assert manifest["source"]["features"]["audio"]["frames_kept"] == 3 * TOTAL
    assert manifest["source"]["features"]["audio"]["clips_with_zeros_at_an_end_kept"] == 2


def test_what_is_not_finite_is_no_frame_and_no_padding_of_another_side():
    asked = PaddingSide("x")
    array = padded(0, 4, "end")
    array[5:] = np.nan
    asked.ask("a", array, 4)
    assert asked.side() == "end"
    report = PaddedReport()
    taken = report.take(array, None, "end")
    np.testing.assert_array_equal(taken, clip(0, 4))
    assert report.numbers_not_finite_set_to_0 == 9
    asked = PaddingSide("x")
    asked.ask("nothing", np.zeros((0, 3)), None)
    asked.ask("zeros", np.zeros((4, 3)), 2)
    assert (asked.side(), asked.describe()) == ("end", None)


def test_the_commands_take_the_side(tmp_path, capsys):
    arrays = [clip(row, TOTAL) for row in range(3)]
    with pytest.raises(ShardError):
        mmsa(tmp_path, arrays, [5, 5, 5])
    with pytest.raises(ShardError):
        mse_adapter(tmp_path, arrays, [5, 5, 5])
    for n, (name, source, dataset) in enumerate(
        [("mmsa", tmp_path / "p.pkl", "simsv2"), ("mse-adapter", tmp_path, "meld")]
    ):
        arguments = ["shards", "import", name, "--source", str(source), "--dataset", dataset]
        assert main([*arguments, "--out", str(tmp_path / "none")]) == 2
        assert "--padding front or --padding end" in capsys.readouterr().err
        assert main([*arguments, "--out", str(tmp_path / f"o{n}"), "--padding", "front"]) == 0
        np.testing.assert_array_equal(samples_of(tmp_path / f"o{n}")[1].features["audio"], arrays[1][3:])
