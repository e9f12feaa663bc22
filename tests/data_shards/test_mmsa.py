"""What becomes of each part of MMSA's pickles."""

from __future__ import annotations

import hashlib
import importlib.util
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egmf_shards import Sample, ShardError, ShardSet
from egmf_shards.importers import mmsa
from egmf_shards.importers.label_csv import import_label_csv
from egmf_shards.importers.mmsa import import_mmsa

_spec = importlib.util.spec_from_file_location("mmsa_files", Path(__file__).with_name("mmsa_files.py"))
mmsa_files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mmsa_files)
COUNTS, LAYOUTS = mmsa_files.COUNTS, mmsa_files.LAYOUTS
mmsa_split, mmsa_data, write = mmsa_files.mmsa_split, mmsa_files.mmsa_data, mmsa_files.write


def by_id(out: Path) -> dict[str, Sample]:
    return {s.id: s for split in ("train", "valid", "test") for s in ShardSet.open([out], split)}


def check_samples(samples: dict[str, Sample], data: dict[str, Any], dataset: str, lengths: dict[str, Any]) -> None:
    assert len(samples) == sum(COUNTS.values())
    for split in COUNTS:
        part = data[split]
        for row, clip in enumerate(part["id"]):
            sample = samples[f"{dataset}-{clip.replace('$_$', '-')}"]
            assert (sample.text, sample.split, sample.dialogue) == (
                part["raw_text"][row],
                split,
                f"{dataset}-{clip.split('$_$')[0]}",
            )
            assert sample.value == pytest.approx(float(part["regression_labels"][row]))
            assert sample.turn == row % 2
            for modality in ("audio", "vision"):
                length = lengths[split][modality][row]
                np.testing.assert_array_equal(sample.features[modality], part[modality][row, :length])


@pytest.mark.parametrize("dataset", list(LAYOUTS))
@pytest.mark.parametrize("aligned", [False, True])
def test_mmsa(dataset, aligned, tmp_path):
    data = mmsa_data(dataset, aligned)
    lengths = {
        split: {m: (part[m] != 0).any(axis=2).sum(axis=1) for m in ("audio", "vision")} for split, part in data.items()
    }
    source = write(tmp_path / "x.pkl", data | {"config": {"audio": "covarep"}}, protocol=2 if aligned else 5)
    manifest = import_mmsa(source, tmp_path / "out", dataset)
    samples = by_id(tmp_path / "out")
    check_samples(samples, data, dataset, lengths)
    english = dataset.startswith("mos")
    task = manifest["tasks"][0]
    assert manifest["languages"] == ["en" if english else "zh"]
    assert (task["low"], task["high"], task["convention"]) == ((-3, 3, "mosei") if english else (-1, 1, "sims"))
    assert task["step"] == pytest.approx(1 / 3 if dataset == "mosei" else 0.2)
    content = source.read_bytes()
    files = [{"file": "x.pkl", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}]
    assert manifest["source"]["files"] == files
    assert manifest["source"]["importer"] == "mmsa"
    assert manifest["source"]["keys_not_read"] == ["config"]
    assert manifest["source"]["counts_as_published"] is False
    for modality, report in manifest["source"]["features"].items():
        kept = sum(int(lengths[split][modality].sum()) for split in COUNTS)
        padded = sum(COUNTS.values()) * data["train"][modality].shape[1]
        assert (report["frames_kept"], report["padding_frames_removed"]) == (kept, padded - kept)


def test_mmsa_repairs_and_counts(tmp_path):
    data = mmsa_data("mosei")
    train, valid = data["train"], data["valid"]
    train["audio_lengths"] = [3, 5, 500, 900]  # the last is beyond the array
    train["audio"][0, :3] = 1
    train["audio"][0, 1, 7] = -np.inf
    train["audio"][1, :5] = [[np.nan]]
    train["audio"][3] = 1
    train["vision_lengths"] = np.array([0, 2, 4, 6])
    train["vision"][1, :2, 30] = [70_000, -1e6]
    train["vision"] = train["vision"].astype(np.float64)
    train["vision"][2, 1, 1] = 1e300  # beyond float32
    train["vision"][3] = 0
    valid["raw_text"][0] = "  "
    manifest = import_mmsa(write(tmp_path / "x.pkl", data), tmp_path / "out", "mosei")
    samples = by_id(tmp_path / "out")
    first, second = samples["mosei-train_vid-0-0"], samples["mosei-train_vid-0-1"]
    third, fourth = samples["mosei-train_vid-1-2"], samples["mosei-train_vid-1-3"]
    assert first.modalities == ("text", "audio")
    assert first.features["audio"].shape == (3, 74)
    assert (first.features["audio"][1, 7], first.features["audio"].sum()) == (0, 3 * 74 - 1)
    assert second.modalities == ("text", "vision")  # its audio was NaN throughout
    assert second.features["vision"][:, 30].tolist() == [70_000, -1e6]  # float32 keeps them
    assert (third.features["vision"].shape, third.features["vision"][1, 1]) == ((4, 35), 0)
    assert fourth.modalities == ("text", "audio")
    assert fourth.features["audio"].shape == (500, 74)
    assert samples["mosei-valid_vid-0-0"].modalities == ("audio", "vision")
    audio, vision = manifest["source"]["features"]["audio"], manifest["source"]["features"]["vision"]
    assert audio["numbers_not_finite_set_to_0"] == 1 + 5 * 74
    assert (audio["clips_with_non_finite_set_to_0"], audio["clips_without_frames"], audio["clips_of_zeros"]) == (
        2,
        0,
        1,
    )
    assert (audio["clips_longer_than_the_array_cut"], audio["clips_beyond_fp16"]) == (1, 0)
    assert (vision["numbers_not_finite_set_to_0"], vision["clips_without_frames"], vision["clips_of_zeros"]) == (
        1,
        1,
        1,
    )
    assert (vision["numbers_beyond_fp16"], vision["clips_beyond_fp16"], vision["clips_found"]) == (2, 1, 7)


def mixed(train: dict[str, Any], unlabelled: int) -> dict[str, Any]:
    """SIMS-V2's train_mix: the labelled rows of train, then unlabelled clips; a mask, and no raw_text."""
    extra = mmsa_split("simsv2", "unlabelled", unlabelled)
    both: dict[str, Any] = {}
    for key in train:
        a, b = train[key], extra[key]
        both[key] = np.concatenate([a, b]) if isinstance(a, np.ndarray) else a + b
    both["regression_labels"][len(train["id"]) :] = np.nan
    both["mask"] = np.array([1] * len(train["id"]) + [0] * unlabelled)
    del both["raw_text"]
    return both


@pytest.mark.parametrize(("protocol", "limit"), [(2, 1.5), (4, 1.3)])
def test_peak_memory_is_bounded_by_the_file(protocol, limit, tmp_path):
    data = {split: mmsa_split("simsv2", split, 10 * n) for split, n in COUNTS.items()}
    source = write(tmp_path / "x.pkl", data, protocol)
    del data
    import_mmsa(write(tmp_path / "small.pkl", mmsa_data("simsv2")), tmp_path / "small", "simsv2")  # imports webdataset
    tracemalloc.start()
    try:
        import_mmsa(source, tmp_path / "out", "simsv2")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit * source.stat().st_size


def test_train_mix_of_simsv2(tmp_path):
    data = mmsa_data("simsv2")
    data["train_mix"] = mixed(data["train"], 3)
    manifest = import_mmsa(write(tmp_path / "both.pkl", data), tmp_path / "both", "simsv2")
    assert manifest["source"]["train_mix"] == {
        "labelled": 4,
        "unlabelled": 3,
        "used": "unlabelled",
        "why": "its labelled rows repeat the train split",
    }
    beside = by_id(tmp_path / "both")
    assert len(beside) == 9
    unlabelled = ShardSet.open([tmp_path / "both"], "unlabelled")
    assert [(s.has_target, s.modalities) for s in unlabelled] == [(False, ("audio", "vision"))] * 3
    extra = mmsa_split("simsv2", "unlabelled", 3)
    assert {s.dialogue for s in unlabelled} == {f"simsv2-{clip.split('$_$')[0]}" for clip in extra["id"]}
    assert manifest["splits"]["unlabelled"]["values"] == {}

    train = data.pop("train")
    manifest = import_mmsa(write(tmp_path / "mix.pkl", data), tmp_path / "mix", "simsv2")
    assert manifest["source"]["train_mix"]["used"] == "all"
    keys = [np.asarray(s.table.column("key")) for s in (ShardSet.open([tmp_path / "mix"], "unlabelled"), unlabelled)]
    assert np.array_equal(*keys)
    alone = by_id(tmp_path / "mix")
    assert alone.keys() == beside.keys()
    for key, sample in alone.items():
        assert ("text" in sample.modalities) == (sample.split != "train")
        np.testing.assert_array_equal(sample.features["audio"], beside[key].features["audio"])

    data["train"] = mmsa_split("simsv2", "train", 3)
    with pytest.raises(ShardError, match=r"1 labelled clips are not in train, the first is 'train_vid-1\$_\$3'"):
        import_mmsa(write(tmp_path / "x.pkl", data), tmp_path / "x", "simsv2")
    data["train"] = train
    data["train_mix"]["mask"][0] = 2
    with pytest.raises(ShardError, match="mask holds more than 0 and 1"):
        import_mmsa(write(tmp_path / "x.pkl", data), tmp_path / "x", "simsv2")


def test_known_files_and_published_counts(tmp_path, monkeypatch, capsys):
    source = write(tmp_path / "x.pkl", mmsa_data("mosi"))
    monkeypatch.setitem(mmsa.KNOWN_FILES, hashlib.sha256(source.read_bytes()).hexdigest(), "the known file")
    monkeypatch.setitem(mmsa.PUBLISHED_COUNTS, "mosi", tuple(COUNTS.values()))
    manifest = import_mmsa(source, tmp_path / "out", "mosi")
    assert manifest["source"]["files"][0]["known_as"] == "the known file"
    assert manifest["source"]["counts_as_published"] is True
    monkeypatch.setitem(mmsa.PUBLISHED_COUNTS, "mosi", (4, 2, 4))
    import_mmsa(source, tmp_path / "again", "mosi")
    assert "not the published counts: train 4 of 4, valid 2 of 2, test 3 of 4" in capsys.readouterr().err


def test_the_ids_are_those_of_label_csv(tmp_path):
    data = mmsa_data("simsv2")
    rows = ["video_id,clip_id,text,label,mode"]
    for split, part in data.items():
        for clip, label in zip(part["id"], part["regression_labels"], strict=True):
            video, number = clip.split("$_$")
            rows.append(f"{video},{number},words,{label},{split}")
    (tmp_path / "label.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    import_label_csv(tmp_path / "label.csv", tmp_path / "table", "simsv2", "zh")
    import_mmsa(write(tmp_path / "x.pkl", data), tmp_path / "pickle", "simsv2")
    table, pickled = by_id(tmp_path / "table"), by_id(tmp_path / "pickle")
    assert {k: (s.dialogue, s.turn, s.split) for k, s in table.items()} == {
        k: (s.dialogue, s.turn, s.split) for k, s in pickled.items()
    }


def test_labels_of_one_modality_alone(tmp_path):
    data = mmsa_data("simsv2")
    rng = np.random.default_rng(3)
    columns = {"text": "regression_labels_T", "audio": "regression_labels_A", "vision": "regression_labels_V"}
    for part in data.values():
        part |= {column: rng.integers(-5, 6, len(part["id"])) / 5 for column in columns.values()}
    data["train"]["regression_labels_T"][2] = np.nan
    data["valid"]["regression_labels_A"] = [float(data["valid"]["regression_labels_A"][0]), None]
    data["test"]["vision_lengths"][0] = 0
    source = write(tmp_path / "x.pkl", data)
    assert len(import_mmsa(source, tmp_path / "plain", "simsv2")["tasks"]) == 1, "off unless asked for"
    manifest = import_mmsa(source, tmp_path / "out", "simsv2", modality_labels=True)
    plain, samples = by_id(tmp_path / "plain"), by_id(tmp_path / "out")
    assert len(samples) == 4 * 9 - 3
    for split, part in data.items():
        for row, clip in enumerate(part["id"]):
            key = f"simsv2-{clip.replace('$_$', '-')}"
            assert samples[key].to_json() == plain[key].to_json()
            for modality, column in columns.items():
                sample = samples.pop(f"{key}-{modality}", None)
                if (split, row, modality) in (("train", 2, "text"), ("valid", 1, "audio"), ("test", 0, "vision")):
                    assert sample is None
                    continue
                assert (sample.task, sample.modalities) == (f"simsv2-sentiment-{modality}", (modality,))
                assert sample.value == pytest.approx(part[column][row])
                assert (sample.dialogue, sample.turn, sample.split) == (
                    plain[key].dialogue, plain[key].turn, split,
                )  # fmt: skip
                assert sample.text == (plain[key].text if modality == "text" else "")
                for other in ("audio", "vision"):
                    assert (other in sample.features) is (other == modality)
                    if other == modality:
                        np.testing.assert_array_equal(sample.features[other], plain[key].features[other])
    assert samples.keys() == plain.keys()
    assert {s: d["utterances"] for s, d in manifest["splits"].items()} == COUNTS
    assert manifest["splits"]["train"]["missing"]["text"] == 8
    assert manifest["source"]["modality_labels"] == {
        "text": {"samples": 8, "clips_without_the_modality": 0, "clips_without_the_label": 1},
        "audio": {"samples": 8, "clips_without_the_modality": 0, "clips_without_the_label": 1},
        "vision": {"samples": 8, "clips_without_the_modality": 1, "clips_without_the_label": 0},
    }
    question = {t["name"]: t["questions"]["zh"] for t in manifest["tasks"]}
    assert question["simsv2-sentiment-audio"] == "只听声音：" + question["simsv2-sentiment"]


def test_labels_of_one_modality_that_are_not_there(tmp_path):
    data = mmsa_data("sims")
    source = write(tmp_path / "x.pkl", data)
    with pytest.raises(ShardError, match="train: has no regression_labels_T"):
        import_mmsa(source, tmp_path / "out", "sims", modality_labels=True)
    for part in data.values():
        part |= {f"regression_labels_{m}": part["regression_labels"].copy() for m in "TAV"}
    data["valid"]["regression_labels_A"][1] = 1.5
    source = write(tmp_path / "x.pkl", data)
    with pytest.raises(ShardError, match=r"valid, row 1, .*, regression_labels_A: value 1.5 is outside the range"):
        import_mmsa(source, tmp_path / "out", "sims", modality_labels=True)
    with pytest.raises(ShardError, match="which there is in en, zh only; task 'sims-sentiment' is asked in fr"):
        import_mmsa(source, tmp_path / "out", "sims", "fr", question="Humeur ?", modality_labels=True)
    assert not (tmp_path / "out").exists()


def test_train_mix_alone_with_labels_of_one_modality(tmp_path):
    data = mmsa_data("simsv2")
    for part in data.values():
        part |= {f"regression_labels_{m}": part["regression_labels"] / 2 for m in "TAV"}
    train = data.pop("train")
    extra = mmsa_split("simsv2", "unlabelled", 3)
    extra |= {f"regression_labels_{m}": np.full(3, np.nan) for m in "TAV"}
    both = {k: np.concatenate([a, extra[k]]) if isinstance(a, np.ndarray) else a + extra[k] for k, a in train.items()}
    del both["raw_text"]
    data["train_mix"] = both | {"mask": np.array([1, 1, 1, 1, 0, 0, 0])}
    source = write(tmp_path / "x.pkl", data)
    manifest = import_mmsa(source, tmp_path / "out", "simsv2", modality_labels=True)
    samples = by_id(tmp_path / "out")
    assert sum(s.split == "train" for s in samples.values()) == 12, "four clips, each with audio and vision alone"
    assert manifest["source"]["modality_labels"]["text"]["clips_without_the_modality"] == 4
