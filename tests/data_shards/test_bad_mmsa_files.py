"""MMSA's pickles that do not hold together, and arguments that do not fit: one line each, and nothing is left."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egmf_shards import ShardError
from egmf_shards.importers.mmsa import import_mmsa

_spec = importlib.util.spec_from_file_location("mmsa_files", Path(__file__).with_name("mmsa_files.py"))
mmsa_files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mmsa_files)
mmsa_data, write = mmsa_files.mmsa_data, mmsa_files.write


def spoil(data: dict[str, Any], case: str) -> Any:
    train = data["train"]
    match case:
        case "list":
            return [data]
        case "no split":
            del data["valid"]
        case "other keys":
            return {"a": 1, 2: data}
        case "split is no dict":
            data["test"] = 3
        case "no label":
            del train["regression_labels"]
        case "label out of range":
            train["regression_labels"][2] = 3.4
        case "label is NaN":
            train["regression_labels"][2] = np.nan
        case "label is a word":
            train["regression_labels"] = ["x"] * 4
        case "same id in two splits":
            data["test"]["id"][1] = train["id"][0]
        case "same id twice":
            train["id"][1] = train["id"][0]
        case "id without clip":
            train["id"][1] = "abc[3]"
        case "id is a number":
            train["id"][1] = 7
        case "too few texts":
            train["raw_text"].pop()
        case "text is a number":
            train["raw_text"][3] = 3
        case "flat features":
            train["audio"] = train["audio"][0]
        case "fewer features":
            train["vision"] = train["vision"][:3]
        case "other width":
            data["test"]["audio"] = data["test"]["audio"][:, :, :4]
        case "half a length":
            train["audio_lengths"][1] = 1.5
        case "negative length":
            train["audio_lengths"][1] = -1
        case "code":
            train["raw_text"][0] = print
    return data


@pytest.mark.parametrize(
    ("case", "reason"),
    {
        "list": "holds a list; a dict with the splits",
        "no split": "has no split valid",
        "other keys": r"its keys are \['2', 'a'\]",
        "split is no dict": "test: is a int",
        "no label": "train: has no regression_labels",
        "label out of range": r"train, row 2, id 'train_vid-1\$_\$2': .*value 3.4 is outside the range",
        "label is NaN": "row 2.*value nan is outside",
        "label is a word": "row 0.*regression_labels is 'x'; a number is needed",
        "same id in two splits": r"test, row 1, id 'train_vid-0\$_\$0': the id occurs in train already",
        "same id twice": "train, row 1.* the id occurs in train already",
        "id without clip": r"row 1.*not of the form video_id\$_\$clip_id",
        "id is a number": "row 1 of id is not text",
        "too few texts": "raw_text has 3 rows; id has 4",
        "text is a number": "row 3 of raw_text is a int",
        "flat features": r"audio is float32 \[500, 5\]",
        "fewer features": "vision has 3 rows; id has 4",
        "other width": "audio has width 4; it is 5 in this folder",
        "half a length": "row 1 of audio_lengths is 1.5",
        "negative length": "row 1 of audio_lengths is -1",
        "code": "asks for 'builtins.print'",
    }.items(),
)
def test_bad_mmsa_files(case, reason, tmp_path):
    source = write(tmp_path / "x.pkl", spoil(mmsa_data("mosi"), case))
    with pytest.raises(ShardError, match=reason) as caught:
        import_mmsa(source, tmp_path / "out", "mosi")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pkl"]


def test_bad_arguments_of_mmsa(tmp_path):
    source = write(tmp_path / "x.pkl", mmsa_data("mosi"))
    with pytest.raises(ShardError, match="give its low, high, step, convention"):
        import_mmsa(source, tmp_path / "out", "mine", language="en")
    with pytest.raises(ShardError, match="give one in words"):
        import_mmsa(source, tmp_path / "out", "mosi", language="fr")
    with pytest.raises(ShardError, match="letters, digits"):
        import_mmsa(source, tmp_path / "out", "../x")
    with pytest.raises(ShardError, match="no such file"):
        import_mmsa(tmp_path / "absent.pkl", tmp_path / "out", "mosi")
    manifest = import_mmsa(
        source, tmp_path / "out", "mine", "fr", low=-4, high=4, step=0.5, convention="mosei", question="Humeur ?"
    )
    assert (manifest["tasks"][0]["questions"], manifest["tasks"][0]["low"]) == ({"fr": "Humeur ?"}, -4)
    assert "published_counts" not in manifest["source"]
